"""The one interface that matters: an algorithm is a site half and a coordinator half with a frozen config.

Both halves know neither the transport nor the command line. A module of this package registers its algorithm with
``@ALGORITHMS.register(name)``; another package adds one through the entry-point group ``morphfed.algorithms``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from morphfed.core.config import Config
from morphfed.core.registry import Registry
from morphfed.core.types import Tensors, Upload

if TYPE_CHECKING:
    from torch import nn

    from morphfed.training.trainer import AfterBackward, FitReport


class AlgorithmConfig(Config):
    """Base of the algorithms' configurations: frozen, unknown keys refused."""


@dataclass
class SiteWork:
    """What a site half works with in one round.

    Attributes:
        site: the site's name.
        round: from 1.
        model: the network, already filled with the download and with the site's private parts.
        travels: state-dict keys that go to and fro.
        fit: trains ``model`` for this round's local epochs.
        state: private tensors that the half keeps between rounds; they are stored at the site and never leave.
    """

    site: str
    round: int
    model: nn.Module
    travels: tuple[str, ...]
    fit: Callable[[AfterBackward | None], FitReport]
    state: Tensors = field(default_factory=dict)


class SiteHalf(ABC):
    """What a site does with a download."""

    @abstractmethod
    def train(self, work: SiteWork, download: Tensors) -> tuple[Tensors, FitReport]:
        """Train, and return what is uploaded: references into ``work.model``, no copies."""


class CoordinatorHalf(ABC):
    """What the coordinator sends, and how it folds uploads in as they arrive."""

    @abstractmethod
    def download(self, site: str) -> Tensors:
        """The tensors that ``site`` gets this round, by reference."""

    @abstractmethod
    def begin_round(self, round_number: int, cohort: Iterable[str]) -> None:
        """A round starts."""

    @abstractmethod
    def fold(self, upload: Upload) -> None:
        """Take in one validated upload; its tensors belong to the sender and change after this call."""

    @abstractmethod
    def end_round(self) -> None:
        """All uploads of the round are in."""

    @abstractmethod
    def model(self) -> Tensors:
        """The global model's travelling tensors."""

    @abstractmethod
    def state(self) -> Tensors:
        """Everything that a resumed coordinator needs, at the end of a round."""

    @abstractmethod
    def load_state(self, tensors: Tensors) -> None:
        """Inverse of :meth:`state`."""


@dataclass(frozen=True)
class Facts:
    """One line each for ``morphfed list algorithms`` and ``show``."""

    travels: str
    stays: str
    memory: str
    cost: str


@dataclass(frozen=True)
class Algorithm:
    """A named pair of halves.

    Attributes:
        name: as written in a study.
        title: in words.
        paper: where it comes from.
        equation: its core, in the paper's symbols.
        config: model of its keys.
        site: builds the site half.
        coordinator: builds the coordinator half from the initial global tensors.
        facts: what travels and what it costs.
        kind: ``federated``, or ``baseline`` for arms that move no model between sites.
    """

    name: str
    title: str
    paper: str
    equation: str
    config: type[AlgorithmConfig]
    site: Callable[[AlgorithmConfig], SiteHalf]
    coordinator: Callable[[AlgorithmConfig, Tensors], CoordinatorHalf]
    facts: Facts
    kind: Literal["federated", "baseline"] = "federated"

    def __reduce__(self) -> tuple[object, ...]:
        # A worker process finds the algorithm by its name in its own registry; the halves need not be picklable.
        return (_by_name, (self.name,))


def _by_name(name: str) -> Algorithm:
    return ALGORITHMS[name]


ALGORITHMS: Registry[Algorithm] = Registry("algorithm", package="morphfed.algorithms", group="morphfed.algorithms")
