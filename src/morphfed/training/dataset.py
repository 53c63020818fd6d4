"""A site's images as the trainer sees them: rows of a memory-mapped store, and labels."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


class Gather(Protocol):
    """Anything that hands out pictures by row number (``data.cache.ImageStore``, an array in a test)."""

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 ``(N, S, S, 3)``."""
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
        sites: K whose images these are; more than one where they are pooled.
    """

    store: Gather
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: int
    ids: NDArray[np.object_]
    clusters: NDArray[np.object_]
    sites: int = field(default=1, kw_only=True)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, where: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images uint8 ``(n, 3, S, S)`` (channels-last in memory) and labels int64 ``(n,)``."""
        pixels = torch.from_numpy(self.store.gather(self.rows[where])).permute(0, 3, 1, 2)
        return pixels, torch.from_numpy(self.labels[where])

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """int64 ``(C,)``, images of each class."""
        return np.bincount(self.labels, minlength=self.classes).astype(np.int64)


def pool(sets: Sequence[ImageSet]) -> ImageSet:
    """The union of several sites' images, for the centralised arm. All must share one store."""
    if len({id(s.store) for s in sets}) != 1:
        raise ValueError("pooled sites must share one image store")
    joined: dict[str, Any] = {
        part.name: np.concatenate([getattr(s, part.name) for s in sets])
        for part in fields(sets[0])
        if part.name not in {"store", "classes", "sites"}
    }
    return replace(sets[0], **joined, sites=sum(s.sites for s in sets))
