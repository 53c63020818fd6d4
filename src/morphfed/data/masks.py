"""Masks on disk: which structure each pixel shows, cut and resized exactly as the picture that it belongs to.

A stored mask holds 0 for the background and k for the k-th of the study's structures. It is resized to the nearest
pixel, so that no value arises that nobody drew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.errors import DataError
from morphfed.core.progress import Event, Reporter, silent
from morphfed.data.cache import Pad, side_of, window
from morphfed.data.decode import decode_mask, read_bytes
from morphfed.data.segments import SEGMENT_BYTES, SegmentStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
STRAY = 0.01
"""Largest share of a mask's pixels that may have unknown values: strokes of a pen between two grey levels. They take
the nearest known value, and the mask is counted and named; with more of them it is left out."""

Values = Mapping[int, int]
"""Value in a site's files → index of the structure, 0 the background."""


def known_values(structures: Sequence[str], given: Mapping[str, int | Sequence[int]]) -> dict[int, int]:
    """What each value in a site's masks stands for.

    Args:
        structures: the study's, in its order.
        given: structure → its value or values; those that the study does not name count as background. Empty: the
            k-th structure is k, and a single structure may also be 255.

    Returns:
        Value → index; 0 is background unless a structure claims it.

    Raises:
        DataError: a structure has no value, or two structures share one.
    """
    if not given:
        return {0: 0, 255: 1, 1: 1} if len(structures) == 1 else {k: k for k in range(len(structures) + 1)}
    lacking = [name for name in structures if name not in given]
    if lacking:
        raise DataError(
            f"the masks have no value for '{lacking[0]}'; they know {', '.join(given)}.",
            fix="correct the study's structures, or give each its value in mask_values.",
        )
    index = {name: k for k, name in enumerate(structures, start=1)}
    found: dict[int, int] = {}
    # The study's structures last: they win over a value that an unused structure shares with them.
    for name in sorted(given, key=lambda n: n in index):
        values = given[name]
        for value in (values,) if isinstance(values, int) else tuple(values):
            if found.get(value, 0) and name in index:
                raise DataError(f"two structures share the value {value}.", fix="give each its own in mask_values.")
            found[value] = index.get(name, 0)
    return {0: 0, **found}


UNREADABLE, OTHER_SIZE, UNKNOWN_VALUES = "mask cannot be read", "mask of another size", "mask with unknown values"


@dataclass(frozen=True)
class MaskFacts:
    """What one look at a mask's file says.

    Attributes:
        sha256: of its bytes; None where it cannot be opened.
        pixels: pixels of each index, background first, ``(1 + structures,)``; empty where it cannot be used.
        stray: pixels of unknown values that took the nearest known one.
        problem: why it cannot be used, in words that many masks may share; empty: it can.
        detail: what is peculiar to this mask.
    """

    sha256: str | None
    pixels: tuple[int, ...] = ()
    stray: int = 0
    problem: str = ""
    detail: str = ""


def look(path: Path, size: tuple[int, int], known: Values) -> MaskFacts:
    """Read one mask and see whether it can be used.

    Args:
        path: the file.
        size: width and height in pixels of its picture.
        known: what its values stand for.
    """
    digest = None
    try:
        content = read_bytes(path)
        digest = hashlib.sha256(content).hexdigest()
        values = decode_mask(content, path)
    except DataError as cause:
        return MaskFacts(digest, problem=UNREADABLE, detail=cause.message)
    height, width = values.shape
    if (width, height) != size:
        detail = f"{width}×{height} pixels, its image {size[0]}×{size[1]}"
        return MaskFacts(digest, problem=OTHER_SIZE, detail=detail)
    unknown = values[~np.isin(values, list(known))]
    detail = tally(unknown) if unknown.size else ""
    if unknown.size > STRAY * values.size:
        return MaskFacts(digest, problem=UNKNOWN_VALUES, detail=detail)
    pixels = np.bincount(indices(values, known).ravel(), minlength=1 + max(known.values()))
    return MaskFacts(digest, tuple(pixels.tolist()), int(unknown.size), detail=detail)


@dataclass(frozen=True)
class Mask:
    """One mask to be stored, of the same size as its picture.

    Attributes:
        path: where the file is.
        sha256: of its bytes.
        crop_px: as of the picture (:class:`morphfed.data.cache.Picture`).
        values: what its values stand for.
    """

    path: Path
    sha256: str
    crop_px: int | None
    values: Values


@dataclass
class MaskNotes:
    """What a call of :meth:`MaskStore.ensure` did.

    Attributes:
        failed: path → why the mask cannot be read now.
        rebuilt: damaged masks that were made again.
    """

    failed: dict[str, str] = field(default_factory=dict)
    rebuilt: int = 0


class MaskStore(SegmentStore):
    """Masks of ``size`` × ``size`` pixels below ``folder``.

    Args:
        folder: the cache's root; the pictures' store lives beside this one.
        size, pad: as of the pictures' store.
    """

    def __init__(self, folder: Path, *, size: int, pad: Pad = "none") -> None:
        self.size, self.pad = size, pad
        super().__init__(Path(folder) / f"masks-{size}px-{pad}-v{FORMAT}", shape=(size, size), dtype=np.uint8)

    def key(self, mask: Mask) -> str:
        """Key of a mask: its content, how it is cut, and what its values stand for."""
        meaning = json.dumps(sorted(mask.values.items()))
        text = f"{mask.sha256}|{mask.crop_px or 'short side'}|{self.size}|{self.pad}|{meaning}|{FORMAT}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def ensure(self, masks: Sequence[Mask], *, workers: int | None = None, report: Reporter = silent) -> MaskNotes:
        """Store every mask that is not stored yet.

        Returns:
            The masks that cannot be used. Nothing is raised for those: the caller counts and shows them.

        Raises:
            StorageError: the cache folder cannot be written or the disk is full.
        """
        notes = MaskNotes()
        with self.writing() as notes.rebuilt:
            missing = {key: m for m in masks if (key := self.key(m)) not in self._rows}
            keys = list(missing)
            step = max(1, SEGMENT_BYTES // self.row_bytes)
            with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
                for start in range(0, len(keys), step):
                    part = keys[start : start + step]
                    report(Event("masks", start, len(keys), "reading masks"))
                    made = list(zip(part, pool.map(self._cut, [missing[k] for k in part]), strict=True))
                    good = [(key, values) for key, values in made if not isinstance(values, DataError)]
                    notes.failed |= {str(missing[k].path): v.message for k, v in made if isinstance(v, DataError)}
                    if good:
                        self.commit([key for key, _ in good], np.stack([values for _, values in good]))
        return notes

    def _cut(self, mask: Mask) -> NDArray[np.uint8] | DataError:
        try:
            content = read_bytes(mask.path)
            if hashlib.sha256(content).hexdigest() != mask.sha256:
                raise DataError(f"{mask.path} has changed since it was looked at.", fix="use a new run folder.")
            known = indices(decode_mask(content, mask.path), mask.values)
            return cut_mask(known, size=self.size, crop_px=mask.crop_px, pad=self.pad)
        except DataError as cause:
            return cause


def tally(values: NDArray[np.int64], most: int = 5) -> str:
    """``7 × 179 pixels, 9 × 22 pixels``, the most frequent first."""
    counts = Counter(values.tolist()).most_common()
    rest = f" and {len(counts) - most} more values" if len(counts) > most else ""
    return ", ".join(f"{value} in {n} pixels" for value, n in counts[:most]) + rest


def indices(values: NDArray[np.int64], known: Values) -> NDArray[np.uint8]:
    """Replace values by indices; an unknown value counts as the nearest known one, the smaller of two."""
    levels = np.array(sorted(known))
    middles = (levels[1:] + levels[:-1]) / 2
    return np.array([known[int(v)] for v in levels], dtype=np.uint8)[np.searchsorted(middles, values)]


def cut_mask(indices: NDArray[np.uint8], *, size: int, crop_px: int | None, pad: Pad) -> NDArray[np.uint8]:
    """Keep the centred square that :func:`morphfed.data.cache.cut_bytes` keeps of the picture, and resize it.

    Args:
        indices: ``(height, width)``.
        size, crop_px, pad: as of the picture.

    Returns:
        uint8 ``(size, size)``, each pixel that of the file which is nearest to its centre.
    """
    from PIL import Image

    height, width = indices.shape
    rim, box = window(height, width, float(side_of(min(height, width), crop_px, pad)))
    if rim:
        indices = np.pad(indices, rim, mode="edge")
    return np.asarray(Image.fromarray(indices).resize((size, size), Image.Resampling.NEAREST, box=box))
