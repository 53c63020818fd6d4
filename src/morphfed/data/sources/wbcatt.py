"""WBCAtt (Tsutsui 2023): the five mature types of PBC with attributes, and an official split of 10,298 pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from morphfed.core.errors import DataError
from morphfed.data.sources._rows import confidence, read_rows
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source
from morphfed.data.sources.cellavision import prefix

SPLITS = {
    "pbc_attr_v1_train.csv": "train",
    "pbc_attr_v1_val.csv": "validation",
    "pbc_attr_v1_test.csv": "test",
}


@SOURCES.register("wbcatt")
class WBCAtt(Source):
    """The tables ``pbc_attr_v1_{train,val,test}.csv`` anywhere beside or below, with PBC's pictures.

    Only listed pictures are taken. Their label is PBC's prefix, which is finer than the table's (BNE and SNE are both
    Neutrophil there); the attributes are not read. No patient ids.
    """

    name = "wbcatt"
    title = "WBCAtt: PBC's mature leukocytes with the official split of WBCAtt"
    layout = "it has WBCAtt's tables (pbc_attr_v1_train.csv, …) and PBC's pictures"

    def detect(self, folder: Folder) -> float:
        """0.95 where at least half of the tables' pictures are there."""
        listed, there = _listed(folder), {(i.parent.name, i.name) for i in folder.images}
        return confidence(sum(key in there for key in listed), len(listed))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every listed picture with one of PBC's prefixes."""
        listed = _listed(folder)
        if not listed:
            raise DataError(f"{folder.path} has none of {', '.join(SPLITS)}.", fix="put them beside the pictures.")
        yield from (Skipped(table, "another table") for table in folder.tables if table.name not in SPLITS)
        for image in folder.images:
            split, label = listed.pop((image.parent.name, image.name), None), prefix(image)
            if split is None:
                yield Skipped(image, "not listed by WBCAtt")
            elif label is None:
                yield Skipped(image, "no prefix in the file name")
            else:
                yield Record(image, label, split=split)
        if listed:
            yield Note(f"WBCAtt lists {len(listed)} pictures that are not there")


def _listed(folder: Folder) -> dict[tuple[str, str], str]:
    """Class folder and name of a picture → split."""
    found: dict[tuple[str, str], str] = {}
    for table in folder.tables:
        for _, row in read_rows(table, ("path",)) if table.name in SPLITS else ():
            path = PurePosixPath(row["path"].replace("\\", "/"))
            found[path.parent.name, path.name] = SPLITS[table.name]
    return found
