"""The one interface that matters: an algorithm is a site half and a coordinator half with a frozen config.

Both halves know neither the transport nor the command line. A module of this package registers its algorithm with
``@ALGORITHMS.register(name)``; another package adds one through the entry-point group ``morphfed.algorithms``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from morphfed.core.config import Config
from morphfed.core.registry import Registry
from morphfed.core.types import Spec, Tensors, Upload
from morphfed.models.layout import Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from morphfed.tasks.base import Loss
    from morphfed.training.trainer import AfterBackward, BeforeEpoch, Coupling, ExtraLoss, FitReport

Weighting = Literal["images", "uniform"]
"""Of a mean over sites: ``n_k / n``, or every site alike."""

Specs = Mapping[str, Spec]
"""Name → shape and dtype."""


class AlgorithmConfig(Config):
    """Base of the algorithms' configurations: frozen, unknown keys refused."""


class Fit(Protocol):
    """Trains the site's network; what :attr:`SiteWork.fit` is."""

    def __call__(
        self,
        *,
        after_backward: AfterBackward | None = None,
        extra_loss: ExtraLoss | None = None,
        only: Collection[str] | None = None,
        epochs: int | None = None,
        slot: str = "model",
        loss: Loss | None = None,
    ) -> FitReport:
        """Train.

        Args:
            after_backward: changes the gradients of each step.
            extra_loss: a term that is added to the task's loss in each step.
            only: parameters to train; the others stay as they are. None: all.
            epochs: passes over the site's training part; None: ``train.local_epochs``.
            slot: which of the site's optimisers; a half that trains two models, or two parts in turn, names each.
            loss: in place of ``train.loss``.
        """
        ...


class FitTogether(Protocol):
    """Trains several networks on the same batches; what :attr:`SiteWork.fit_together` is."""

    def __call__(
        self,
        models: Mapping[str, nn.Module],
        coupling: Coupling,
        *,
        losses: Mapping[str, Loss] | None = None,
        before_epoch: BeforeEpoch | None = None,
    ) -> FitReport:
        """Train for ``train.local_epochs`` passes.

        Args:
            models: networks by the slot of their optimiser.
            coupling: terms added to their losses, from the batch and their logits, in the order of ``models``.
            losses: in place of ``train.loss``, by slot.
            before_epoch: called before each pass.
        """
        ...


class Judge(Protocol):
    """Judges a network on a part of the site's images; what :attr:`SiteWork.judge` is."""

    def __call__(self, model: nn.Module, part: Literal["validation", "training"]) -> dict[str, float] | None:
        """The study's validation metrics by name, without augmentation; None: the part is empty."""
        ...


def not_offered(*_: object, **__: object) -> Any:
    """Stands for what the caller of a site half did not provide.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("this SiteWork does not offer what the algorithm asks for")


@dataclass(frozen=True)
class Outlook:
    """What a coordinator half may know before round 1.

    Attributes:
        rounds: how many there will be.
        sites: those that take part, in the study's order.
        seed: of the study, for what the coordinator draws.
    """

    rounds: int
    sites: tuple[str, ...] = ()
    seed: int = 0


@dataclass
class SiteWork:
    """What a site half works with in one round.

    Attributes:
        site: the site's name.
        round: from 1.
        model: the network, already filled with the download and with the site's private parts.
        layout: what its keys are.
        travels: state-dict keys that go to and fro.
        epochs: ``train.local_epochs``.
        fit: trains ``model``.
        loss: mean loss of ``model`` as it stands over the training part, without augmentation.
        load: copies named values into ``model``.
        state: private tensors that the half keeps between rounds; they are stored at the site and never leave.
        rounds: in all.
        seed: of the study, for draws that must be the same at every site.
        class_counts: int64 ``(C,)``, training images of each class summed over the sites, where the algorithm or the
            study has them exchanged; else None.
        fit_together: trains several networks side by side.
        judge: validation metrics of a network at this site.
    """

    site: str
    round: int
    model: nn.Module
    layout: Layout
    travels: tuple[str, ...]
    epochs: int
    fit: Fit
    loss: Callable[[], float]
    load: Callable[[Tensors], None]
    state: Tensors = field(default_factory=dict)
    rounds: int = 1
    seed: int = 0
    class_counts: NDArray[np.int64] | None = None
    fit_together: FitTogether = not_offered
    judge: Judge = not_offered

    def current(self) -> Tensors:
        """What travels, as it stands: references into ``model``."""
        state = self.model.state_dict()
        return {name: state[name] for name in self.travels}


@dataclass(frozen=True)
class Answer:
    """What a site half gives back.

    Attributes:
        tensors: to upload; references are allowed until the next site trains.
        report: steps, images and loss, summed over all that was trained.
        numbers: further numbers to upload, all named in ``Algorithm.numbers``.
    """

    tensors: Tensors
    report: FitReport
    numbers: dict[str, float] = field(default_factory=dict)


class SiteHalf(ABC):
    """What a site does with a download."""

    @abstractmethod
    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """Train, and return what is uploaded; the network is left as the model that the site has just trained.

        Args:
            work: the network and what surrounds it.
            download: what the coordinator sent, lent for this round: not to be changed, and copied where it is
                needed later.
        """

    def personal(self, state: Tensors) -> Tensors:
        """Values that this site's own model has in place of the download's, from its private state; {}: none."""
        return {}


class CoordinatorHalf(ABC):
    """What the coordinator sends, and how it folds uploads in as they arrive.

    Every site of the study is in every cohort; one whose upload is missing or was rejected is never folded in.
    """

    def plan(self, outlook: Outlook) -> None:
        """Told once, before anything else; most rules need not know.

        Raises:
            ConfigError: keys that do not fit these sites or rounds.
        """
        return

    @abstractmethod
    def download(self, site: str) -> Tensors:
        """The tensors that ``site`` gets this round, by reference; they stand still until the next round begins."""

    def own(self, site: str) -> Tensors:
        """Travelling values that ``site``'s download has in place of the global model's, by reference; {}: none."""
        return {}

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


class SummingHalf(CoordinatorHalf):
    """A coordinator half that needs means only: that of every rule whose ``Algorithm.sums`` gives a weighting."""

    @abstractmethod
    def fold_mean(self, mean: Tensors, weight: float, sites: Collection[str]) -> None:
        """Take in the weighted mean of several sites' uploads, in place of the uploads (secure aggregation).

        The result must be that of folding the uploads one by one, up to rounding.

        Args:
            mean: of the uploads' tensors, lent for this call.
            weight: of the sites together.
            sites: whose uploads are in it.
        """


@dataclass(frozen=True)
class Facts:
    """One line each for ``morphfed list algorithms`` and ``show``."""

    travels: str
    stays: str
    memory: str
    cost: str


GLOBAL_MODEL = "the global model"


def everything(config: AlgorithmConfig, layout: Layout) -> tuple[str, ...]:
    """All that is trained travels."""
    return layout.order


@dataclass(frozen=True)
class Sums:
    """Whether a rule needs no more of the uploads than their weighted mean, so that they can be summed under masks.

    Attributes:
        weighting: of that mean; None: the rule needs each upload by itself.
        why: what for, in words.
    """

    weighting: Weighting | None
    why: str = ""


def single_uploads(config: AlgorithmConfig) -> Sums:
    """Unless a rule says otherwise, it looks at each upload."""
    return Sums(None, "it looks at each site's upload by itself")


def the_same(config: AlgorithmConfig, layout: Layout, specs: Specs) -> Specs:
    """An upload holds what travels, and nothing else."""
    return specs


def no_changes(specs: Specs) -> frozenset[str]:
    """Nothing but the model may be coded."""
    return frozenset()


def one_training(config: AlgorithmConfig, local_epochs: int) -> int:
    """A site trains one model."""
    return local_epochs


def no_note(config: AlgorithmConfig, sites: int) -> str:
    """Nothing special."""
    return ""


def the_global_model(config: AlgorithmConfig) -> str:
    """What a newcomer uses where nothing is personal."""
    return GLOBAL_MODEL


def no_counts(config: AlgorithmConfig) -> bool:
    """No class counts leave a site for it."""
    return False


def fit_for_all(config: AlgorithmConfig, task: str) -> str:
    """Its keys mean the same in every task of ``Algorithm.tasks``."""
    return ""


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
        coordinator: builds the coordinator half from the initial global tensors and the network's layout.
        facts: what travels and what it costs.
        kind: ``federated``, or ``baseline`` for arms that move no model between sites.
        travels: keys of the network that go to and fro; the others stay at each site. Default: all that are trained.
        uploads: what one upload holds, from the specs of what travels. Default: the same.
        changes: those of ``uploads`` beside the model that are changes by nature, such as a control variate's, and may
            be coded like the weights' changes (``federation.upload``). All else is sent exactly. Default: none.
        numbers: names of numbers that go with an upload beyond those of every algorithm.
        newcomer: what a site that took no part uses with these keys, in words; empty: nothing is defined for it.
        passes: passes over a site's training part in a round, from ``train.local_epochs``; for the plan's estimate.
        note: what the report must say of this method for a number of training sites; empty: nothing.
        counts: whether the method needs the sites' class counts, summed before round 1.
        tasks: tasks that it is defined for.
        unfit: why it is not defined for a task with these keys, in words; empty: it is.
        defaults: by task, keys that have another default there.
        sums: whether the coordinator half needs only the weighted mean of the uploads (secure aggregation).
    """

    name: str
    title: str
    paper: str
    equation: str
    config: type[AlgorithmConfig]
    site: Callable[[AlgorithmConfig], SiteHalf]
    coordinator: Callable[[AlgorithmConfig, Tensors, Layout], CoordinatorHalf]
    facts: Facts
    kind: Literal["federated", "baseline"] = "federated"
    travels: Callable[[AlgorithmConfig, Layout], tuple[str, ...]] = everything
    uploads: Callable[[AlgorithmConfig, Layout, Specs], Specs] = the_same
    changes: Callable[[Specs], frozenset[str]] = no_changes
    numbers: frozenset[str] = frozenset()
    newcomer: Callable[[AlgorithmConfig], str] = the_global_model
    passes: Callable[[AlgorithmConfig, int], int] = one_training
    note: Callable[[AlgorithmConfig, int], str] = no_note
    counts: Callable[[AlgorithmConfig], bool] = no_counts
    tasks: frozenset[str] = frozenset({"classification", "segmentation", "mil", "survival"})
    unfit: Callable[[AlgorithmConfig, str], str] = fit_for_all
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sums: Callable[[AlgorithmConfig], Sums] = single_uploads

    def __reduce__(self) -> tuple[object, ...]:
        # A worker process finds the algorithm by its name in its own registry; the halves need not be picklable.
        return (_by_name, (self.name,))


def _by_name(name: str) -> Algorithm:
    return ALGORITHMS[name]


ALGORITHMS: Registry[Algorithm] = Registry("algorithm", package="morphfed.algorithms", group="morphfed.algorithms")
