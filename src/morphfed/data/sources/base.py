"""What an adapter is: it recognises a layout of files and yields one record an image. One small file each.

A third party adds one from its own package through the entry-point group ``morphfed.sources``.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from morphfed.core.errors import DataError
from morphfed.core.registry import Registry

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
TABLE_SUFFIXES = frozenset({".csv", ".tsv"})

_LITTER = {"thumbs.db", "desktop.ini", "ehthumbs.db"}
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
    "testa": "test",
    "testb": "test",
}
_FILLERS = re.compile(r"set|data|images?|\d+|phase\d*")
_PATIENT = re.compile(r"(patient|subject|case|pat)[ _-]?\d\w*", re.IGNORECASE)


@dataclass(frozen=True)
class Record:
    """One image as its source describes it; ``path`` may name a file that a table lists but nobody has.

    Attributes:
        path: the image file.
        source_label: the site's own label, untouched and not empty.
        patient: patient id.
        slide: slide or film id.
        um_per_px: physical size of a pixel.
        split: ``train``, ``validation`` or ``test`` where the source prescribes it.
        mask: the file that says of each pixel which structure it shows, where there is one.
    """

    path: Path
    source_label: str
    patient: str | None = None
    slide: str | None = None
    um_per_px: float | None = None
    split: str | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Skipped:
    """A file that becomes no row, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Note:
    """A sentence for the person who reads the draft."""

    text: str


@dataclass(frozen=True)
class Folder:
    """One walk through a folder, shared by all adapters that look at it.

    Attributes:
        path: the folder.
        images: files with an image's suffix, in any case, sorted.
        tables: ``.csv`` and ``.tsv`` files, sorted.
        skipped: every other file, with the reason.
    """

    path: Path
    images: tuple[Path, ...]
    tables: tuple[Path, ...]
    skipped: tuple[Skipped, ...]

    @classmethod
    def scan(cls, path: Path) -> Folder:
        """Walk ``path``; links to folders are followed once.

        Raises:
            DataError: not a folder.
        """
        path = Path(path)
        if not path.is_dir():
            what = "is a file, not a folder" if path.exists() else "does not exist"
            raise DataError(f"{path} {what}.", fix="name the folder that holds the images.")
        images: list[Path] = []
        tables: list[Path] = []
        skipped: list[Skipped] = []
        for found in _walk(path):
            file = found if isinstance(found, Path) else found.path
            reason = "" if isinstance(found, Path) else found.reason
            suffix = file.suffix.lower()
            reason = reason or _litter(file.relative_to(path))
            if reason:
                skipped.append(Skipped(file, reason))
            elif suffix in IMAGE_SUFFIXES:
                images.append(file)
            elif suffix in TABLE_SUFFIXES:
                tables.append(file)
            else:
                skipped.append(Skipped(file, f"not an image ({suffix or 'no suffix'})"))
        return cls(path, tuple(sorted(images)), tuple(sorted(tables)), tuple(sorted(skipped, key=lambda s: s.path)))

    def parts(self, image: Path) -> tuple[str, ...]:
        """Names of the folders between this one and the image, outermost first."""
        known = self._parts.get(image)
        return image.relative_to(self.path).parts[:-1] if known is None else known

    @cached_property
    def _parts(self) -> dict[Path, tuple[str, ...]]:
        # Asked for by every source for every image: with 170,000 of them relative_to would take half a minute.
        return {image: image.relative_to(self.path).parts[:-1] for image in self.images}

    def children(self) -> list[Path]:
        """Folders directly below that hold images somewhere, sorted."""
        return sorted({self.path / parts[0] for image in self.images if (parts := self.parts(image))})


class Source(ABC):
    """An adapter. It holds no state: one object may serve many folders.

    Attributes:
        name: what users write, and the value of the manifest's ``source`` column.
        title: what it reads, in a few words.
        layout: the layout that it recognises, to end the sentence "… because".
        whole: its set lies in several folders that it recognises one by one, and together they are one site.
        options: option → what it is for.
        mask_values: structure → its value in this source's masks; empty where it has none, or where users choose them.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    layout: ClassVar[str]
    whole: ClassVar[bool] = False
    options: ClassVar[Mapping[str, str]] = {}
    mask_values: ClassVar[Mapping[str, int]] = {}

    @abstractmethod
    def detect(self, folder: Folder) -> float:
        """How sure it is, 0 … 1, that the folder has its layout; 0 = it cannot read it."""

    @abstractmethod
    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """Every image as a record or as skipped with a reason; nothing is left unsaid.

        Raises:
            DataError: the folder or an option cannot be used; names the file and row.
        """


SOURCES: Registry[type[Source]] = Registry("source", package="morphfed.data.sources", group="morphfed.sources")


def split_of(text: str) -> str | None:
    """The split that a folder's or column's word names: ``Train``, ``phase2_eval``, ``Test-A`` …"""
    words = re.split(r"[\W_]+", text.casefold())
    return _SPLIT_WORDS.get("".join(word for word in words if not _FILLERS.fullmatch(word)))


def patient_of(parts: tuple[str, ...]) -> str | None:
    """The folder that names a patient (``Patient_07``), if one does."""
    return next((part for part in parts if _PATIENT.fullmatch(part)), None)


def _walk(root: Path) -> Iterator[Path | Skipped]:
    seen = {root.resolve()}
    failed: list[Skipped] = []

    def note(error: OSError) -> None:
        failed.append(Skipped(Path(error.filename), f"folder that cannot be read ({error.strerror})"))

    for here, folders, files in os.walk(root, onerror=note, followlinks=True):
        for name in list(folders):
            folder = Path(here, name)
            if folder.is_symlink() and (target := folder.resolve()) in seen:
                folders.remove(name)
                yield Skipped(folder, "link to a folder that was read already")
            elif folder.is_symlink():
                seen.add(target)
        yield from (Path(here, name) for name in files)
    yield from failed


def _litter(relative: Path) -> str:
    if "__MACOSX" in relative.parts or relative.name.startswith("._"):
        return "left by macOS (__MACOSX, ._*)"
    if any(part.startswith(".") for part in relative.parts):
        return "hidden"
    return "left by Windows (Thumbs.db, desktop.ini)" if relative.name.lower() in _LITTER else ""
