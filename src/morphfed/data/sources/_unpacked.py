"""Sets that ``morphfed data unpack`` has written out: pictures and one table, named after the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from morphfed.core.errors import DataError
from morphfed.data.sources.base import Folder, Note, Record, Skipped, Source
from morphfed.data.sources.table import Table


class UnpackedSet(Source):
    """Reads ``NAME.csv`` as the source ``table`` does, and says what was noted when it was written."""

    def detect(self, folder: Folder) -> float:
        """0.95 where the table is there; 0.9, to be refused with what to do, where the published files are."""
        if folder.path / f"{self.name}.csv" in folder.tables:
            return 0.95
        return 0.9 if self.published(folder) else 0.0

    def published(self, folder: Folder) -> bool:
        """Whether the folder holds the set as published, which is not yet one picture a cell."""
        return False

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every row.

        Raises:
            DataError: the set was not unpacked.
        """
        if folder.path / f"{self.name}.csv" not in folder.tables:
            raise DataError(
                f"{folder.path} does not hold one picture a cell.",
                fix=f"write the cells out first: morphfed data unpack {self.name} {folder.path} NEW-FOLDER",
            )
        notes = folder.path / f"{self.name}.notes.txt"
        if notes.is_file():
            yield from (Note(text) for text in notes.read_text(encoding="utf-8").splitlines() if text)
        yield from Table().records(folder, {"table": f"{self.name}.csv"})
