"""BCCD, one crop a cell: ``neutrophil/BloodImage_00008_1.jpg``.

Crops by apple2373/BCCD from the fields of Shenggan/BCCD_Dataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from morphfed.data.ontology import load_ontology
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source

_NAME = re.compile(r"(BloodImage_\d{5})_\d+")


@SOURCES.register("bccd_crops")
class BCCDCrops(Source):
    """Class folders of crops. The field that a crop was cut from stands in the ``slide`` column.

    Patients and films are unknown, so the field of view is the largest thing known to belong together.
    """

    name = "bccd_crops"
    title = "BCCD, single-cell crops"
    layout = "its class folders hold crops named BloodImage_NNNNN_N"

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of images with BCCD's crop names in a folder of a known class."""
        labels = load_ontology().tables["bccd"].labels
        known = {label.casefold() for label in labels}
        fits = [bool(_NAME.fullmatch(i.stem)) and i.parent.name.casefold() in known for i in folder.images]
        return 0.95 * sum(fits) / max(1, len(fits))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every image in a class folder."""
        for table in folder.tables:
            yield Skipped(table, "table, not an image")
        for image in folder.images:
            parts = folder.parts(image)
            if not parts:
                yield Skipped(image, "in no class folder")
                continue
            field = _NAME.fullmatch(image.stem)
            yield Record(image, parts[-1], slide=field[1] if field else None)
