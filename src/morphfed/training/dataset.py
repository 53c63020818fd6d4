"""A site's images as the trainer sees them: rows of a memory-mapped store, and labels."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


_AT_ONCE = 256
"""Masks that are read at once where all of a set are counted."""


class Gather(Protocol):
    """Anything that hands out pictures by row number (``data.cache.ImageStore``, an array in a test)."""

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 ``(N, S, S, 3)``; of masks ``(N, S, S)``."""
        ...


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Attributes:
        store: where the pictures are.
        rows: int64 ``(N,)``, rows of the store.
        labels: int64 ``(N,)``, class indices.
        classes: number of classes of the study.
        ids: str ``(N,)``, the manifest's paths.
        clusters: str ``(N,)``, patient where known, else the image itself.
    """

    store: Gather
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: int
    ids: NDArray[np.object_]
    clusters: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, where: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images uint8 ``(n, 3, S, S)`` (channels-last in memory) and labels int64 ``(n,)``."""
        pixels = torch.from_numpy(self.store.gather(self.rows[where])).permute(0, 3, 1, 2)
        return pixels, torch.from_numpy(self.labels[where])

    def truth(self) -> NDArray[Any]:
        """What a model's answers are judged by: labels int64 ``(N,)``."""
        return self.labels

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """int64 ``(C,)``, images of each class."""
        return np.bincount(self.labels, minlength=self.classes).astype(np.int64)


@dataclass(frozen=True)
class MaskSet(ImageSet):
    """Images with masks: 0 the background, k the k-th structure.

    Attributes:
        labels: int64 ``(N,)``, rows of the masks in ``masks``.
        classes: background and structures, C.
        masks: where the masks are, uint8 ``(N, S, S)``.
        present: bool ``(N, C - 1)``, which structures the file of each mask shows.
        um_per_px: float ``(N,)``, micrometres per pixel as stored; NaN where the scale is not known.
    """

    masks: Gather
    present: NDArray[np.bool_]
    um_per_px: NDArray[np.float64]

    def batch(self, where: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images as those of the base class, and masks uint8 ``(n, S, S)``."""
        return super().batch(where)[0], torch.from_numpy(self.masks.gather(self.labels[where]))

    def truth(self) -> NDArray[np.uint8]:
        """Masks, uint8 ``(N, S, S)``."""
        return self.masks.gather(self.labels)

    @cached_property
    def _pixels(self) -> NDArray[np.int64]:
        found = np.zeros(self.classes, dtype=np.int64)
        for start in range(0, len(self), _AT_ONCE):
            some = self.masks.gather(self.labels[start : start + _AT_ONCE])
            found += np.bincount(some.ravel(), minlength=self.classes)
        return found

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """int64 ``(C,)``, pixels of each class as they are stored."""
        return self._pixels


def pool(sets: Sequence[ImageSet]) -> ImageSet:
    """The union of several sites' images, for the centralised arm. All must share one store."""
    if len({id(s.store) for s in sets}) != 1:
        raise ValueError("pooled sites must share one image store")
    joined: dict[str, Any] = {name: np.concatenate([getattr(s, name) for s in sets]) for name in per_image(sets[0])}
    return replace(sets[0], **joined)


def per_image(images: ImageSet) -> list[str]:
    """Names of the fields that hold one entry an image."""
    return [part.name for part in fields(images) if isinstance(getattr(images, part.name), np.ndarray)]
