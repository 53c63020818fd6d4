"""Sites as objects of this process: tensors are handed over by reference, nothing is serialised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from morphfed.core.errors import SecureSumError, TrainingError
from morphfed.core.progress import Event, Reporter, silent
from morphfed.core.types import Failure, Tensors, Upload
from morphfed.federation.site import Site
from morphfed.federation.transports.base import Metrics, Note

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class InProcess:
    """Lets the sites train one after another, always in the same order.

    Args:
        sites: in the study's order.
        report: gets an event a site.
        task: key of the progress bar.
    """

    def __init__(self, sites: Sequence[Site], *, report: Reporter = silent, task: str = "rounds") -> None:
        self._sites = {site.name: site for site in sites}
        self._report, self._task = report, task

    @property
    def sites(self) -> Sequence[str]:
        """Names in the study's order."""
        return tuple(self._sites)

    def train(self, round_number: int, rounds: int, downloads: Mapping[str, Tensors]) -> Iterator[Upload | Failure]:
        """One answer a site. Uploads refer to the shared network: fold each before asking for the next."""
        total = rounds * len(self._sites)
        done = (round_number - 1) * len(self._sites)
        for name, download in downloads.items():
            text = f"round {round_number}/{rounds} · {name}"
            self._report(Event(self._task, done, total, text))
            try:
                yield self._sites[name].train(round_number, rounds, download)
            except TrainingError as cause:
                yield Failure(name, round_number, cause.message)
            done += 1
            self._report(Event(self._task, done, total, text))

    def exchange(
        self,
        step: str,
        round_number: int,
        rounds: int,
        asked: Mapping[str, Mapping[str, Any]],
        downloads: Mapping[str, Tensors],
    ) -> Iterator[Note | Failure]:
        """One step of a secure sum. Each site holds its own upload from the first step to the third."""
        total = rounds * len(self._sites)
        done = (round_number - 1) * len(self._sites)
        for name, question in asked.items():
            trains = step == "keys"
            text = f"round {round_number}/{rounds} · {name}"
            if trains:
                self._report(Event(self._task, done, total, text))
            try:
                yield self._sites[name].exchange(step, round_number, rounds, question, downloads.get(name, {}))
            except TrainingError as cause:
                yield Failure(name, round_number, cause.message)
            except SecureSumError as cause:
                yield Failure(name, round_number, f"Site '{name}': {cause.message}")
            if trains:
                done += 1
                self._report(Event(self._task, done, total, text))

    def evaluate(self, round_number: int, downloads: Mapping[str, Tensors]) -> dict[str, Metrics]:
        """Each site judges the model that it would use."""
        found: dict[str, Metrics] = {}
        for name, download in downloads.items():
            found |= self._sites[name].evaluate(round_number, download)
        return found

    def class_counts(self) -> dict[str, NDArray[np.int64]]:
        """Training images of each class by site, through each site's gate."""
        return {name: site.class_counts() for name, site in self._sites.items()}

    def use_class_counts(self, counts: NDArray[np.int64]) -> None:
        """Hand the summed counts to every site."""
        for site in self._sites.values():
            site.use_class_counts(counts)

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
        """Each site's sums, through its gate."""
        return {
            name: self._sites[name].validation_sums(
                statistic, round_number, download, at, temperature=temperature, views=views
            )
            for name, download in downloads.items()
        }

    def site_states(self) -> dict[str, Tensors]:
        """Private state of each site."""
        return {name: site.state() for name, site in self._sites.items()}

    def load_site_states(self, states: Mapping[str, Tensors]) -> None:
        """Give each site its private state back."""
        for name, tensors in states.items():
            self._sites[name].load_state(tensors)

    def keep(self, best_round: int) -> None:
        """Nothing to do: the loop holds copies of the best round's private states."""
