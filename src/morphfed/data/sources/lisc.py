"""LISC, leukocytes of healthy persons (Rezatofighi 2011), as crops with ``Train.json`` and ``Test.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from morphfed.core.errors import DataError
from morphfed.data.sources._json_labels import json_labels, json_records
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source


@SOURCES.register("lisc")
class LISC(Source):
    """``LISC/Train/….bmp`` and ``LISC/Train.json``, codes 1 … 5 as Raabin's. No patient ids; the split is kept."""

    name = "lisc"
    title = "LISC, crops with Train.json and Test.json"
    layout = "a folder called LISC holds Train.json or Test.json beside the folder of that name"

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of listed images, where the set's name is in the path: other sets come packed alike."""
        files = json_labels(folder)
        near = {folder.path.absolute().name, *(p for e in files for p in e.file.relative_to(folder.path).parts)}
        if not any(part.casefold().startswith("lisc") for part in near):
            return 0.0
        listed = {entry.images / name for entry in files for name in entry.labels}
        return 0.95 * sum(image in listed for image in folder.images) / max(1, len(folder.images))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every listed image."""
        files = json_labels(folder)
        if not files:
            raise DataError(
                f"{folder.path} has no Train.json or Test.json beside a folder of that name.",
                fix="keep them side by side as published; for folders of classes use the source folders.",
            )
        yield from (Skipped(table, "table, not an image") for table in folder.tables)
        yield from json_records(folder, files)
