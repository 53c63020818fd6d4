"""Published sets with a folder for each class, recognised by the names of folders and files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import ClassVar

from morphfed.data.ontology import load_ontology
from morphfed.data.sources.base import Folder, Note, Record, Skipped, Source


class ClassFolders(Source):
    """The innermost folder with a published class's name is the label; its depth does not matter.

    Attributes:
        stem: what a published file's name looks like without its suffix; a group ``label`` must repeat the folder's
            name. It decides how sure ``detect`` is, not what is read: copies are renamed.
    """

    stem: ClassVar[re.Pattern[str]]

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of images that lie in a class folder and are named as published."""
        looked_at = [image for image in folder.images if not self.leave_out(folder, image)]
        fitting = sum(self._fits(folder, image) for image in looked_at)
        return 0.95 * fitting / max(1, len(looked_at))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every image below a class folder."""
        for table in folder.tables:
            yield Skipped(table, "table, not an image")
        for image in folder.images:
            reason, label = self.leave_out(folder, image), self.label(folder, image)
            if reason or label is None:
                yield Skipped(image, reason or "in no class folder")
            else:
                yield self.record(folder, image, label)

    def leave_out(self, folder: Folder, image: Path) -> str:
        """Why an image of the published archive is not taken, else the empty string."""
        return ""

    def record(self, folder: Folder, image: Path, label: str) -> Record:
        """The record of an image."""
        return Record(image, label)

    def label(self, folder: Folder, image: Path) -> str | None:
        """The innermost folder that is named after a class of the ontology's table of this source."""
        known = _known(self.name)
        return next((part for part in reversed(folder.parts(image)) if part.casefold() in known), None)

    def _fits(self, folder: Folder, image: Path) -> bool:
        label, match = self.label(folder, image), self.stem.fullmatch(image.stem)
        if label is None or match is None:
            return False
        return match.groupdict().get("label", label).casefold() == label.casefold()


@cache
def _known(source: str) -> frozenset[str]:
    return frozenset(label.casefold() for label in load_ontology().tables[source].labels)
