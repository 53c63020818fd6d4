"""A model's scores at a site whose predictions stay there: vectors over resamples in place of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morphfed.evaluation.metrics import Floats
from morphfed.evaluation.predictions import ClusterUnit


@dataclass(frozen=True, eq=False)
class Vectored:
    """One model's vectors at one site, where its predictions stay at the site.

    It is judged like predictions are (:class:`morphfed.evaluation.predictions.Judged`), but has no images.

    Attributes:
        n: test images.
        count: clusters.
        cluster_unit: what a cluster is.
        vectors: metric → ``(1 + B,)``.
        classes, present: of a study of classes: all of them, and those in the test part.
        structures: of a study of masks.
    """

    n: int
    count: int
    cluster_unit: ClusterUnit
    vectors: Mapping[str, Floats]
    classes: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    structures: tuple[str, ...] = ()

    @property
    def ids(self) -> NDArray[np.str_]:
        """None is known."""
        return np.empty(0, dtype=np.str_)

    @property
    def clusters(self) -> NDArray[np.str_]:
        """None is known."""
        return np.empty(0, dtype=np.str_)

    def __len__(self) -> int:
        return self.n

    def at(self, rows: NDArray[np.int64]) -> Vectored:
        """The same: there are no rows to choose."""
        return self

    def differs(self, other: Vectored) -> str:
        """A site judges all models on its one test part; that the numbers of images agree is all that can be seen."""
        if (self.n, self.count, self.cluster_unit) == (other.n, other.count, other.cluster_unit):
            return ""
        return f"{self.n} images of {self.count} {self.cluster_unit}s in place of {other.n} of {other.count}"
