"""A site's images as the trainer sees them: rows of a memory-mapped store, and labels."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from morphfed.tasks.coarse import Parents
from morphfed.training.resident import ResidentStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Generator, Tensor


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
        labels: int64 ``(N,)``, class indices; ``classes + k`` for an image of one of the classes ``parents[k]``.
        classes: number of classes of the study, C.
        ids: str ``(N,)``, the manifest's paths.
        clusters: str ``(N,)``, patient where known, else the image itself.
        sites: K whose images these are; more than one where they are pooled.
        parents: the study's coarser labels; only a training part holds images with one.
    """

    store: Gather
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: int
    ids: NDArray[np.object_]
    clusters: NDArray[np.object_]
    sites: int = field(default=1, kw_only=True)
    parents: Parents = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def pictures(self) -> bool:
        """Whether what is handed out are pictures, which are perturbed and normalised before a network sees them."""
        return True

    def pieces(self, where: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """A batch in the pieces that are computed one after the other, gradients adding up: here it is one."""
        return [where]

    def batch(self, where: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images uint8 ``(n, 3, S, S)`` (channels-last in memory) and labels int64 ``(n,)``."""
        return self.read(self.rows[where]), self.targets(where)

    def targets(self, where: NDArray[np.int64]) -> Tensor:
        """What the network is to say of these images, in host memory: labels int64 ``(n,)``."""
        return torch.from_numpy(self.labels[where])

    def sample(self, where: NDArray[np.int64], generator: Generator) -> tuple[Tensor, Tensor]:
        """What training takes of these images, before augmentation, and labels; here the same as :meth:`batch`."""
        return self.batch(where)

    def pick(self, where: NDArray[np.int64], generator: Generator) -> NDArray[np.int64]:
        """Rows of the store, int64 ``(n,)``, that :meth:`sample` reads for the same state of ``generator``."""
        return self.rows[where]

    def rows_used(self) -> NDArray[np.int64]:
        """All rows of the store that this set may ask for."""
        return self.rows

    def stored(self) -> Mapping[str, tuple[Gather, NDArray[np.int64]]]:
        """Name of each field that holds a store → the store, and all rows that this set may ask of it."""
        return {"store": (self.store, self.rows_used())}

    def marks(self, where: NDArray[np.int64]) -> NDArray[np.int64]:
        """What stands for the targets of these images until a device looks them up, ``(n,)``: here the labels."""
        return self.labels[where]

    def marked(self, marks: Tensor) -> Tensor:
        """The targets that :meth:`marks` stand for, on the device of ``marks``; the stores must be there."""
        return marks

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Rows of the store, in host memory, as :meth:`shaped` gives them."""
        return self.shaped(torch.from_numpy(self.store.gather(rows)))

    @staticmethod
    def shaped(values: Tensor) -> Tensor:
        """Rows as the store holds them, here ``(n, S, S, 3)``, as a batch: a view ``(n, 3, S, S)``."""
        return values.permute(0, 3, 1, 2)

    @property
    def exact(self) -> NDArray[np.bool_]:
        """bool ``(N,)``, whether an image's label is a class."""
        return self.labels < self.classes

    def truth(self) -> NDArray[Any]:
        """What a model's answers are judged by: labels int64 ``(N,)``."""
        return self.labels

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """int64 ``(C,)``, images of each class; those with a coarser label count nowhere."""
        return np.bincount(self.labels[self.exact], minlength=self.classes).astype(np.int64)

    @property
    def used_parents(self) -> Parents:
        """The coarser labels for the loss: none where no image here has one."""
        return () if self.exact.all() else self.parents

    def only(self, kept: NDArray[np.bool_]) -> ImageSet:
        """The images for which ``kept`` ``(N,)`` holds."""
        return replace(self, **{name: getattr(self, name)[kept] for name in per_image(self)})


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

    @property
    def exact(self) -> NDArray[np.bool_]:
        """bool ``(N,)``: a mask is never coarse."""
        return np.ones(len(self), dtype=np.bool_)

    def targets(self, where: NDArray[np.int64]) -> Tensor:
        """Masks uint8 ``(n, S, S)``."""
        return torch.from_numpy(self.masks.gather(self.labels[where]))

    def stored(self) -> Mapping[str, tuple[Gather, NDArray[np.int64]]]:
        """Pictures and masks."""
        return {**super().stored(), "masks": (self.masks, self.labels)}

    def marks(self, where: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the masks lie on the device."""
        return self._on_device().places(self.labels[where])

    def marked(self, marks: Tensor) -> Tensor:
        """Masks uint8 ``(n, S, S)``."""
        return self._on_device().take(marks)

    def _on_device(self) -> ResidentStore:
        if not isinstance(self.masks, ResidentStore):
            raise TypeError("the pictures are on a device, their masks are not")
        return self.masks

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
    """The union of several sites' images, for the centralised arm. All must share their stores and coarser labels."""
    if len({(*(id(store) for store, _ in s.stored().values()), s.parents) for s in sets}) != 1:
        raise ValueError("pooled sites must share one image store and the same coarser labels")
    joined: dict[str, Any] = {name: np.concatenate([getattr(s, name) for s in sets]) for name in per_image(sets[0])}
    return replace(sets[0], **joined, sites=sum(s.sites for s in sets))


def per_image(images: ImageSet) -> list[str]:
    """Names of the fields that hold one entry an image."""
    return [part.name for part in fields(images) if isinstance(getattr(images, part.name), np.ndarray)]
