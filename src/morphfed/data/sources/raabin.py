"""Raabin-WBC, cropped and labelled twice (Kouzehkanan 2022, doi:10.1038/s41598-021-04426-x)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from morphfed.data.sources._class_folders import ClassFolders
from morphfed.data.sources._json_labels import json_labels, json_records
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, split_of

_GROUP = re.compile(r"(\d+(?:-\d+)+)_\d+_\d+")


@SOURCES.register("raabin")
class Raabin(ClassFolders):
    """``Train/Neutrophil/95-9-3-4_30_1.jpg`` with ``TestA`` and ``TestB``, or ``Train.json`` and ``Test.json``.

    The leading part of a name (95-9-3-4) is taken for the film and kept in ``slide``: it groups the pictures, though
    nobody has published what it stands for. The official split is kept. TestB lacks classes and was taken with another
    microscope: name its folder as a site of its own to study that.
    """

    name = "raabin"
    title = "Raabin-WBC, cropped and labelled twice"
    layout = "its file names are Raabin's (95-9-3-4_30_1.jpg), in class folders or listed in Train.json"
    stem = _GROUP

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of images with such a name that have a label."""
        listed = {entry.images / name for entry in json_labels(folder) for name in entry.labels}
        fitting = sum(self._fits(folder, i) or (i in listed and bool(_GROUP.fullmatch(i.stem))) for i in folder.images)
        return 0.95 * fitting / max(1, len(folder.images))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every image in a class folder, or listed in a JSON file where there is one."""
        if files := json_labels(folder):
            yield from (Skipped(table, "table, not an image") for table in folder.tables)
            found = json_records(folder, files)
        else:
            found = super().records(folder, options)
        grouped = 0
        for item in found:
            if isinstance(item, Record) and (name := _GROUP.fullmatch(item.path.stem)):
                split = item.split or next((s for part in folder.parts(item.path) if (s := split_of(part))), None)
                yield replace(item, slide=name[1], split=split)
                grouped += 1
            else:
                yield item
        if grouped:
            yield Note(f"slide from the file name for {grouped} images: a guess, what its parts mean is not published")
