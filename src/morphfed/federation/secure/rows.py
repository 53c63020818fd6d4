"""A transport whose statistics outside the rounds come as one sum over the sites, not site by site."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from morphfed.core.errors import FederationError
from morphfed.core.progress import Event, Reporter, silent
from morphfed.core.types import Failure, Tensors, Upload
from morphfed.federation.secure.total import SecureSums
from morphfed.federation.statistics import CLASS_COUNTS
from morphfed.federation.transports.base import Metrics, Note, Transport

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOGETHER = "together"
"""The name under which stands what is known of all sites only."""


class SummedRows:
    """Asks as the transport that it wraps, but for class counts and sums over validation images.

    Args:
        inner: reaches the sites.
        sums: runs the sessions.
        classes: length of the class counts.
        quorum: share of the sites that a sum needs, beside the threshold.
        report, task: progress.
    """

    def __init__(
        self,
        inner: Transport,
        sums: SecureSums,
        *,
        classes: int,
        quorum: float,
        report: Reporter = silent,
        task: str = "rounds",
    ) -> None:
        self._inner, self._sums, self._classes = inner, sums, classes
        self._quorum, self._report, self._task = quorum, report, task

    @property
    def sites(self) -> Sequence[str]:
        """As of the transport within."""
        return self._inner.sites

    def train(self, round_number: int, rounds: int, downloads: Mapping[str, Tensors]) -> Iterator[Upload | Failure]:
        """As of the transport within, whose sites refuse."""
        return self._inner.train(round_number, rounds, downloads)

    def exchange(
        self,
        step: str,
        round_number: int,
        rounds: int,
        asked: Mapping[str, Mapping[str, Any]],
        downloads: Mapping[str, Tensors],
    ) -> Iterator[Note | Failure]:
        """As of the transport within."""
        return self._inner.exchange(step, round_number, rounds, asked, downloads)

    def evaluate(self, round_number: int, downloads: Mapping[str, Tensors]) -> dict[str, Metrics]:
        """As of the transport within: validation means are of each site."""
        return self._inner.evaluate(round_number, downloads)

    def class_counts(self) -> dict[str, NDArray[np.int64]]:
        """Training images of each class ``(C,)`` of all sites together, under one name."""
        row = {"statistic": CLASS_COUNTS, "at": [], "temperature": 1.0, "views": 1}
        downloads: dict[str, Tensors] = {site: {} for site in self.sites}
        found = self._sum(row, self._classes, 0, downloads)
        return {TOGETHER: np.rint(found).astype(np.int64)}

    def use_class_counts(self, counts: NDArray[np.int64]) -> None:
        """As of the transport within."""
        self._inner.use_class_counts(counts)

    def validation_sums(
        self,
        statistic: str,
        round_number: int,
        downloads: Mapping[str, Tensors],
        at: NDArray[np.float64],
        *,
        temperature: float = 1.0,
        views: Literal[1, 8] = 1,
    ) -> dict[str, NDArray[np.float64]]:
        """Sums ``(G + 1,)`` over the validation images of all sites together, under one name."""
        row = {"statistic": statistic, "at": at.tolist(), "temperature": temperature, "views": views}
        found = self._sum(row, len(at) + 1, round_number, downloads)
        # A sum of nothing is written as it is; what rounding leaves below 0 is none.
        return {TOGETHER: np.maximum(found, 0.0)}

    def site_states(self) -> dict[str, Tensors]:
        """As of the transport within."""
        return self._inner.site_states()

    def load_site_states(self, states: Mapping[str, Tensors]) -> None:
        """As of the transport within."""
        self._inner.load_site_states(states)

    def keep(self, best_round: int) -> None:
        """As of the transport within."""
        self._inner.keep(best_round)

    def _sum(
        self, row: Mapping[str, Any], length: int, round_number: int, downloads: Mapping[str, Tensors]
    ) -> NDArray[np.float64]:
        what, said = str(row["statistic"]), list[str]()
        needed = max(math.ceil(self._quorum * len(downloads)), self._sums.plan.threshold)

        def refused(failure: Failure, counted: bool) -> None:
            said.append(failure.reason)
            self._report(Event(self._task, text=f"{what}: {failure.reason}", level="warning"))

        def enough(left: int, done: str) -> None:
            if left < needed:
                raise FederationError(
                    f"{what}: {left} of {len(downloads)} sites {done}, {needed} are needed. " + " ".join(said),
                    fix="mend what is said of those sites and run the same command again.",
                )

        return self._sums.of_row(self._inner, row, length, round_number, downloads, refused=refused, enough=enough)
