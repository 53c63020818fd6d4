"""AML-Cytomorphology_MLL_Helmholtz (Hehr 2023, doi:10.7937/6ppe-4020): 189 patients, no labels of cells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

from morphfed.data.ontology import load_ontology
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source

_PATIENT = re.compile(r"[A-Z]{3}")


@SOURCES.register("hehr")
class Hehr(Source):
    """``PML_RARA/ABF/….tif``: the outer folder is the patient's genetic diagnosis, the inner one the patient.

    The diagnosis becomes ``source_label`` and is mapped to no cell type: every picture is one cell of one bag, the
    patient. ``metadata.csv`` repeats the two and adds counts of the differential; it is not needed.
    """

    name = "hehr"
    title = "AML-Cytomorphology_MLL_Helmholtz (Hehr 2023): bags of cells, labelled by patient"
    layout = "its images lie in DIAGNOSIS/PATIENT folders with the names of that set (PML_RARA/ABF)"

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of images in a three-letter folder inside one of a diagnosis."""
        return 0.95 * sum(_places(folder.parts(i)) is not None for i in folder.images) / max(1, len(folder.images))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every image of a patient."""
        for table in folder.tables:
            yield Skipped(table, "table, not an image")
        for image in folder.images:
            places = _places(folder.parts(image))
            if places is None:
                yield Skipped(image, "not in a DIAGNOSIS/PATIENT folder")
            else:
                yield Record(image, places[0], patient=places[1])


def _places(parts: tuple[str, ...]) -> tuple[str, str] | None:
    """Diagnosis and patient: two folders, one inside the other."""
    known = load_ontology().tables["hehr"].unmapped
    return next(
        ((outer, inner) for outer, inner in pairwise(parts) if outer in known and _PATIENT.fullmatch(inner)), None
    )
