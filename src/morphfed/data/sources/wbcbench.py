"""WBCBench 2026 (ISBI challenge, Chulalongkorn University): 55,012 JPEG of 13 classes in two phases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from morphfed.core.errors import DataError
from morphfed.data.sources._rows import confidence, read_rows
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source

PARTS = {
    "phase1_label.csv": ("phase1", "train"),
    "phase2_train.csv": ("phase2/train", "train"),
    "phase2_eval.csv": ("phase2/eval", "validation"),
    "phase2_test.csv": ("phase2/test", "test"),
}
"""Table → folder of its pictures beside it, and their split."""


@SOURCES.register("wbcbench")
class WBCBench(Source):
    """``phase1/….jpg`` with ``phase1_label.csv``; ``phase2/{train,eval,test}`` with a table each.

    The test labels are not published: those pictures are skipped and counted. So a study needs a test part from
    elsewhere, or the option ``use_split=no``. Patients (74, 222, 49 and 148 in the four parts) are not in the
    tables. Some JPEG files are truncated; the data check names them.
    """

    name = "wbcbench"
    title = "WBCBench 2026, phases 1 and 2"
    layout = "it has the challenge's tables (phase1_label.csv, phase2_train.csv, …) beside their folders"
    options: ClassVar[Mapping[str, str]] = {"use_split": "no: let morphfed split, for no test label is published"}

    def detect(self, folder: Folder) -> float:
        """0.95 where at least half of the tables' pictures are there."""
        there, listed = set(folder.images), _listed(folder)
        return confidence(sum(image in there for image in listed), len(listed))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every labelled row, also for one whose picture is missing."""
        listed, there = _listed(folder), set(folder.images)
        if not listed:
            raise DataError(f"{folder.path} has none of {', '.join(PARTS)}.", fix="name the folder that holds them.")
        keep = options.get("use_split", "yes").casefold() not in {"no", "false"}
        yield from (Skipped(table, "another table") for table in folder.tables if table.name not in PARTS)
        for image, (label, split) in listed.items():
            if label:
                yield Record(image, label, split=split if keep else None)
            else:
                yield Skipped(image, "no label published")
        yield from (Skipped(image, "in none of the tables") for image in folder.images if image not in listed)
        if absent := sum(image not in there for image in listed):
            yield Note(f"the tables list {absent} pictures that are not there; labelled rows are kept")


def _listed(folder: Folder) -> dict[Path, tuple[str, str]]:
    """Picture → label, empty if there is none, and split."""
    found: dict[Path, tuple[str, str]] = {}
    for table in folder.tables:
        if table.name not in PARTS:
            continue
        place, split = PARTS[table.name]
        for _, row in read_rows(table, ("ID",)):
            name = row["ID"] if Path(row["ID"]).suffix else f"{row['ID']}.jpg"
            found[table.parent / place / name] = row.get("labels", ""), split
    return found
