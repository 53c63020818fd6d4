"""Decode, crop and resize every image once, into uint8 files on disk that all later work maps into memory.

A store holds square pictures of one size. A picture's key is the hash of its content and of how it was cut, so the
same file under two names is stored once, and a changed crop never meets an old picture (``data.segments`` says how
they lie on disk).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from morphfed.core.errors import DataError
from morphfed.core.progress import Event, Reporter, silent
from morphfed.data.decode import decode_bytes, probe_bytes, read_bytes
from morphfed.data.segments import SEGMENT_BYTES, SegmentStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1

Pad = Literal["edge", "none"]


@dataclass(frozen=True)
class Picture:
    """One image to be stored.

    Attributes:
        path: where the file is.
        sha256: of its bytes.
        crop_px: side of the centred square to keep, in pixels of the file; None = the short side.
    """

    path: Path
    sha256: str
    crop_px: int | None = None


@dataclass
class CacheNotes:
    """What a call of :meth:`ImageStore.ensure` did."""

    decoded: int = 0
    reused: int = 0
    rebuilt: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """path → why it could not be decoded"""


class ImageStore(SegmentStore):
    """Pictures of ``size`` × ``size`` pixels below ``folder``.

    Args:
        folder: the cache's root; stores of other sizes live beside this one.
        size: side in pixels of the stored pictures.
        pad: what lies outside the file where the crop is larger than the picture: ``edge`` repeats its border,
            ``none`` keeps the whole picture instead.
    """

    def __init__(self, folder: Path, *, size: int, pad: Pad = "none") -> None:
        self.size, self.pad = size, pad
        super().__init__(Path(folder) / f"{size}px-{pad}-v{FORMAT}", shape=(size, size, 3), dtype=np.uint8)

    def key(self, picture: Picture) -> str:
        """Key of a picture: its content and how it is cut."""
        text = f"{picture.sha256}|{picture.crop_px or 'short side'}|{self.size}|{self.pad}|{FORMAT}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def rows(self, pictures: Iterable[Picture]) -> NDArray[np.int64]:
        """Row numbers for :meth:`gather`.

        Raises:
            KeyError: a picture is not stored; call :meth:`ensure` first.
        """
        return self.rows_of(self.key(p) for p in pictures)

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy rows out of the store: uint8 ``(N, size, size, 3)``, RGB."""
        return super().gather(rows)

    def ensure(
        self, pictures: Sequence[Picture], *, workers: int | None = None, report: Reporter = silent
    ) -> CacheNotes:
        """Store every picture that is not stored yet; damaged segments are dropped and made again.

        Returns:
            Counts, and the pictures that could not be decoded. Nothing is raised for those: the caller shows them.

        Raises:
            StorageError: the cache folder cannot be written or the disk is full.
        """
        notes = CacheNotes()
        with self.writing() as notes.rebuilt:
            missing = {self.key(p): p for p in pictures if self.key(p) not in self._rows}
            notes.reused = len({self.key(p) for p in pictures}) - len(missing)
            if missing:
                self._decode(missing, notes, workers or os.cpu_count() or 1, report)
        return notes

    def _decode(self, missing: dict[str, Picture], notes: CacheNotes, workers: int, report: Reporter) -> None:
        keys = list(missing)
        step = max(1, SEGMENT_BYTES // self.row_bytes)
        done = 0
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(keys), step):
                chunk = keys[start : start + step]
                good: list[str] = []
                pixels: list[NDArray[np.uint8]] = []
                for key, result in zip(chunk, pool.map(self._cut, [missing[k] for k in chunk]), strict=True):
                    done += 1
                    report(Event("cache", done, len(keys), "decoding images"))
                    if isinstance(result, DataError):
                        notes.failed[str(missing[key].path)] = result.message
                        continue
                    good.append(key)
                    pixels.append(result)
                if good:
                    self.commit(good, np.stack(pixels))
                    notes.decoded += len(good)

    def _cut(self, picture: Picture) -> NDArray[np.uint8] | DataError:
        try:
            content = read_bytes(picture.path)
            if hashlib.sha256(content).hexdigest() != picture.sha256:
                raise DataError(
                    f"{picture.path} has changed since the manifest was made.", fix="draft the manifest again."
                )
            return cut_bytes(content, picture.path, size=self.size, crop_px=picture.crop_px, pad=self.pad)
        except DataError as cause:
            return cause


def cut(path: Path, *, size: int, crop_px: int | None, pad: Pad = "none") -> NDArray[np.uint8]:
    """Read one file and :func:`cut_bytes` it."""
    return cut_bytes(read_bytes(path), path, size=size, crop_px=crop_px, pad=pad)


def cut_bytes(content: bytes, path: Path, *, size: int, crop_px: int | None, pad: Pad = "none") -> NDArray[np.uint8]:
    """Decode one image, keep the centred square, resize it.

    Args:
        content: the file's bytes.
        path: what errors call it.
        size: side of the result in pixels.
        crop_px: side of the square in pixels of the file; None = the short side.
        pad: see :class:`ImageStore`.

    Returns:
        uint8 ``(size, size, 3)``, RGB.

    Raises:
        DataError: the file cannot be decoded.
    """
    from PIL import Image

    facts = probe_bytes(content, path)
    short = min(facts.width, facts.height)
    side = side_of(short, crop_px, pad)
    # The decoder may halve a JPEG while reading it as long as the crop keeps at least the wanted pixels.
    image = decode_bytes(content, path, min_side=max(1, -(-short * size // side)))
    height, width = image.shape[:2]
    rim, box = window(height, width, side * min(height, width) / short)
    if rim:
        image = np.pad(image, ((rim, rim), (rim, rim), (0, 0)), mode="edge")
    picture = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return np.asarray(picture)


def side_of(short: int, crop_px: int | None, pad: Pad) -> int:
    """Side in pixels of the file of the square that is kept of a picture with the short side ``short``."""
    side = short if crop_px is None else crop_px
    return min(side, short) if pad == "none" else side


def window(height: int, width: int, span: float) -> tuple[int, tuple[float, float, float, float]]:
    """The centred square of side ``span``: pixels to add on every side first, and its box in the padded picture."""
    rim = max(0, int(np.ceil((span - min(height, width)) / 2)))
    height, width = height + 2 * rim, width + 2 * rim
    span = min(span, float(min(height, width)))
    left, top = (width - span) / 2, (height - span) / 2
    return rim, (left, top, left + span, top + span)
