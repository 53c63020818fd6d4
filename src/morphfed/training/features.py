"""Features of a frozen backbone, computed once for each image and view, and kept beside the images.

A view is the picture mirrored or turned by a right angle: what can be repeated exactly. The other perturbations of
``train.augment`` draw anew each time and are not applied to stored features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from morphfed.core.progress import Event, Reporter, silent
from morphfed.data.segments import SegmentStore
from morphfed.training.dataset import ImageSet

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from morphfed.data.augment import AugmentConfig
    from morphfed.data.cache import ImageStore

FORMAT = 1
BATCH = 64
"""Pictures that go through the backbone at once; the last batch is filled up, so that all are computed alike."""

SEGMENT_BYTES = 16 * 2**20
"""A killed run loses at most the features of one segment."""

Compute = Callable[["NDArray[np.uint8]"], "NDArray[np.float32]"]
"""Pictures uint8 ``(N, S, S, 3)`` → features float32 ``(N, width)``."""


def views_of(augment: AugmentConfig) -> tuple[int, ...]:
    """The views that training draws from: 8 with mirroring and right angles, 4 with one of them, else the picture.

    View ``v`` is the picture, mirrored if ``v`` ≥ 4, turned by ``v mod 4`` right angles; view 0 is the picture itself.
    """
    turns = (0, 1, 2, 3) if augment.right_angles else ((0, 2) if augment.flips else (0,))
    # Mirrored both ways is turned by two right angles, and a vertical mirror image is a turned horizontal one.
    return (*turns, *(4 + t for t in turns)) if augment.flips else turns


def view(pictures: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """One view of pictures uint8 ``(N, S, S, 3)``, of the same shape."""
    mirrored = pictures[:, :, ::-1] if number >= 4 else pictures
    return np.ascontiguousarray(np.rot90(mirrored, number % 4, axes=(1, 2)))


class FeatureStore(SegmentStore):
    """Feature vectors of the pictures of one image store.

    Args:
        images: where the pictures are; the features lie in a folder within it.
        backbone: fingerprint of what computes them (``models.features.fingerprint``).
        width: numbers of one vector.
    """

    def __init__(self, images: ImageStore, *, backbone: str, width: int) -> None:
        self._images = images
        super().__init__(images.folder / f"features-{backbone}-v{FORMAT}", shape=(width,), dtype=np.float32)

    def ensure(
        self, rows: NDArray[np.int64], views: Sequence[int], compute: Compute, *, report: Reporter = silent
    ) -> int:
        """Compute what is not stored yet, of pictures ``rows`` in each of ``views``; return how many vectors.

        Raises:
            StorageError: the cache folder cannot be written or the disk is full.
        """
        pairs = [(int(row), v) for row in rows for v in views]
        wanted = dict(zip(self._names(rows, views), pairs, strict=True))
        if wanted.keys() <= self._rows.keys():
            return 0
        with self.writing():
            missing = {key: pair for key, pair in wanted.items() if key not in self._rows}
            keys = list(missing)
            step = max(BATCH, SEGMENT_BYTES // self.row_bytes // BATCH * BATCH)
            for start in range(0, len(keys), step):
                part = keys[start : start + step]
                done: list[NDArray[np.float32]] = []
                for at in range(0, len(part), BATCH):
                    report(Event("features", start + at, len(keys), "computing features once"))
                    done.append(self._batch([missing[k] for k in part[at : at + BATCH]], compute))
                self.commit(part, np.concatenate(done))
            report(Event("features", len(keys), len(keys), "computing features once"))
        return len(missing)

    def places(self, rows: NDArray[np.int64], views: Sequence[int]) -> NDArray[np.int64]:
        """Rows of this store, int64 ``(len(rows), len(views))``.

        Raises:
            KeyError: a feature is not stored; call :meth:`ensure` first.
        """
        return self.rows_of(self._names(rows, views)).reshape(len(rows), len(views))

    def _names(self, rows: NDArray[np.int64], views: Sequence[int]) -> list[str]:
        return [f"{name}/{v}" for name in self._images.keys_of(rows) for v in views]

    def _batch(self, wanted: Sequence[tuple[int, int]], compute: Compute) -> NDArray[np.float32]:
        pictures = self._images.gather(np.array([row for row, _ in wanted]))
        turned = np.zeros((BATCH, *pictures.shape[1:]), dtype=np.uint8)
        for at, (_, number) in enumerate(wanted):
            turned[at] = view(pictures[at : at + 1], number)[0]
        return compute(turned)[: len(wanted)]


@dataclass(frozen=True)
class FeatureSet(ImageSet):
    """Labelled images, handed out as features.

    Attributes:
        store: a :class:`FeatureStore`.
        rows: int64 ``(N,)``, rows of the pictures as they are.
        views: int64 ``(N, V)``, rows of each picture's views.
    """

    views: NDArray[np.int64]

    @property
    def pictures(self) -> bool:
        """False: nothing is to be perturbed or normalised."""
        return False

    def batch(self, where: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features float32 ``(n, width)`` of the pictures as they are, and labels int64 ``(n,)``."""
        return super().batch(where)

    def sample(self, where: NDArray[np.int64], generator: Generator) -> tuple[Tensor, Tensor]:
        """Features of one view of each picture, drawn evenly, and labels."""
        return self.read(self.pick(where, generator)), self.targets(where)

    def pick(self, where: NDArray[np.int64], generator: Generator) -> NDArray[np.int64]:
        """Rows of one view of each picture, drawn evenly."""
        drawn = torch.randint(0, self.views.shape[1], (len(where),), generator=generator).numpy()
        rows: NDArray[np.int64] = self.views[where, drawn]
        return rows

    def rows_used(self) -> NDArray[np.int64]:
        """Rows of every view."""
        return self.views.reshape(-1)

    @staticmethod
    def shaped(values: Tensor) -> Tensor:
        """Vectors are a batch as they are."""
        return values
