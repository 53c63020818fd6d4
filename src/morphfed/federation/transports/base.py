"""What the round loop asks of a transport."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from morphfed.core.types import Failure, Tensors, Upload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Metrics = dict[str, float]


@dataclass(frozen=True)
class Note:
    """What a site lets out in one step of a secure sum.

    Attributes:
        site: its name.
        numbers: in the clear.
        tensors: keys and shares as bytes, or masked integers; valid until the next note is asked for.
    """

    site: str
    numbers: Mapping[str, int]
    tensors: Tensors


class Transport(Protocol):
    """Delivers downloads and yields uploads as they arrive."""

    @property
    def sites(self) -> Sequence[str]:
        """Names of the training sites, in the study's order."""
        ...

    def train(self, round_number: int, rounds: int, downloads: Mapping[str, Tensors]) -> Iterator[Upload | Failure]:
        """Have the sites of ``downloads`` train; one answer each. An upload is valid until the next is asked for."""
        ...

    def exchange(
        self,
        step: str,
        round_number: int,
        rounds: int,
        asked: Mapping[str, Mapping[str, Any]],
        downloads: Mapping[str, Tensors],
    ) -> Iterator[Note | Failure]:
        """One step of a secure sum: a question for each site of ``asked``, and its answers in that order.

        Args:
            step: ``keys`` (the site trains first), ``shares``, ``masked`` or ``opened``.
            round_number, rounds: of the run.
            asked: by site, plain JSON.
            downloads: for ``keys``; else empty.
        """
        ...

    def evaluate(self, round_number: int, downloads: Mapping[str, Tensors]) -> dict[str, Metrics]:
        """Validation metrics by site, computed where the images are; sites without validation images are absent."""
        ...

    def class_counts(self) -> dict[str, NDArray[np.int64]]:
        """Training images of each class ``(C,)`` by site."""
        ...

    def use_class_counts(self, counts: NDArray[np.int64]) -> None:
        """Have every site use these counts ``(C,)`` in its loss."""
        ...

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
        """By site, sums over its validation images at each point ``(G,)``, then the number of images: ``(G + 1,)``."""
        ...

    def site_states(self) -> dict[str, Tensors]:
        """Private state of each site, for its own folder."""
        ...

    def load_site_states(self, states: Mapping[str, Tensors]) -> None:
        """Inverse of :meth:`site_states`."""
        ...

    def keep(self, best_round: int) -> None:
        """The best round so far: sites that keep their own private state must not drop this round's."""
        ...
