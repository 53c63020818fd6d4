"""A site's images as the trainer sees them: rows of a memory-mapped store, and labels."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from morphfed.tasks.coarse import Parents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Generator, Tensor


class Gather(Protocol):
    """Anything that hands out pictures by row number (``data.cache.ImageStore``, an array in a test)."""

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 ``(N, S, S, 3)``."""
        ...


_SHARED = {"store", "classes", "parents", "sites"}
"""Fields of a set that are not one entry an image."""


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

    def batch(self, where: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images uint8 ``(n, 3, S, S)`` (channels-last in memory) and labels int64 ``(n,)``."""
        return self.read(self.rows[where]), torch.from_numpy(self.labels[where])

    def sample(self, where: NDArray[np.int64], generator: Generator) -> tuple[Tensor, Tensor]:
        """What training takes of these images, before augmentation, and labels; here the same as :meth:`batch`."""
        return self.batch(where)

    def pick(self, where: NDArray[np.int64], generator: Generator) -> NDArray[np.int64]:
        """Rows of the store, int64 ``(n,)``, that :meth:`sample` reads for the same state of ``generator``."""
        return self.rows[where]

    def rows_used(self) -> NDArray[np.int64]:
        """All rows of the store that this set may ask for."""
        return self.rows

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
        parts = {p.name: getattr(self, p.name)[kept] for p in fields(self) if p.name not in _SHARED}
        return replace(self, **parts)


def pool(sets: Sequence[ImageSet]) -> ImageSet:
    """The union of several sites' images, for the centralised arm. All must share one store and coarser labels."""
    if len({(id(s.store), s.parents) for s in sets}) != 1:
        raise ValueError("pooled sites must share one image store and the same coarser labels")
    joined: dict[str, Any] = {
        part.name: np.concatenate([getattr(s, part.name) for s in sets])
        for part in fields(sets[0])
        if part.name not in _SHARED
    }
    return replace(sets[0], **joined, sites=sum(s.sites for s in sets))
