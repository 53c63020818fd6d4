"""KU-Optofil PBC (Koç University, doi:10.5281/zenodo.17333317): 31,489 JPEG with patients and official splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from morphfed.core.errors import DataError
from morphfed.data.ontology import fold
from morphfed.data.sources._rows import confidence, read_rows
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source, split_of

TABLES = ("metadata_with_patient_level_splits.csv", "metadata.csv")
"""The first that is there is read; the second has no split by patient."""

_COLUMNS = ("image_name", "cell_type", "patient_id", "path")
Key = tuple[str, str, str]


@SOURCES.register("ku")
class KU(Source):
    """``dataset/train/Segmented Neutrophil/….jpg`` and the table beside ``dataset``.

    Where a picture lies and to which split it belongs differ: the folder is the first part of the table's ``path``,
    the split by patient is the column ``split``. A patient called unknown is nobody.
    """

    name = "ku"
    title = "KU-Optofil PBC, with patients and their official split"
    layout = "it has metadata_with_patient_level_splits.csv or metadata.csv and the pictures that it lists"

    def detect(self, folder: Folder) -> float:
        """0.95 where at least half of the table's pictures are there."""
        table = next((t for name in TABLES for t in folder.tables if t.name == name), None)
        if table is None:
            return 0.0
        try:
            rows = read_rows(table, _COLUMNS)
        except DataError:  # somebody else's metadata.csv
            return 0.0
        there = _by_key(folder)
        return confidence(sum(_key(row) in there for _, row in rows), len(rows))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every row of the table, also for one whose picture is missing."""
        table = next((t for name in TABLES for t in folder.tables if t.name == name), None)
        if table is None:
            raise DataError(f"{folder.path} has no {TABLES[0]}.", fix="put the published tables beside 'dataset'.")
        yield from (Skipped(other, "another table") for other in folder.tables if other != table)
        there, taken, absent, nobody = _by_key(folder), set[Path](), 0, 0
        for line, row in read_rows(table, _COLUMNS):
            image = there.get(_key(row))
            split = split_of(row.get("split", "")) if row.get("split") else None
            if row.get("split") and split is None:
                raise DataError(f"{table}, row {line}: '{row['split']}' is no split.", fix="restore the table.")
            patient = None if row["patient_id"].casefold() in ("", "nan", "none") else row["patient_id"]
            if patient is not None and patient.casefold().startswith("unknown"):
                patient = None
            nobody += patient is None
            absent += image is None
            if image is not None and image in taken:
                yield Skipped(image, f"listed again in {table.name}")
            elif not row["cell_type"]:
                yield Skipped(image or _expected(table, row), f"no label in {table.name}")
            else:
                yield Record(image or _expected(table, row), row["cell_type"], patient=patient, split=split)
            taken |= {image} if image is not None else set()
        yield from (Skipped(i, f"not listed in {table.name}") for i in folder.images if i not in taken)
        if absent:
            yield Note(f"{table.name} lists {absent} pictures that are not there; their rows are kept")
        if nobody:
            yield Note(f"{table.name} names no patient for {nobody} pictures")


def _key(row: Mapping[str, str]) -> Key:
    """Physical folder, class and name: names alone may occur twice."""
    return row["path"].replace("\\", "/").split("/")[0].casefold(), fold(row["cell_type"]), row["image_name"]


def _by_key(folder: Folder) -> dict[Key, Path]:
    found: dict[Key, list[Path]] = defaultdict(list)
    for image in folder.images:
        parts = folder.parts(image)
        if len(parts) >= 2:
            found[parts[-2].casefold(), fold(parts[-1]), image.name].append(image)
    return {key: images[0] for key, images in found.items() if len(images) == 1}


def _expected(table: Path, row: Mapping[str, str]) -> Path:
    folder = row["cell_type"].replace("_", " ").title()
    return table.parent / "dataset" / row["path"].replace("\\", "/").split("/")[0] / folder / row["image_name"]
