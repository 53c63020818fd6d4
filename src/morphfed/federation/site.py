"""A training site in this process: its images, its private state, its gate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from morphfed.algorithms.base import SiteHalf, SiteWork
from morphfed.core.types import Tensors, Upload
from morphfed.federation import retrogress
from morphfed.federation.coding.wire import Coding
from morphfed.federation.secure.plan import of_round, of_row
from morphfed.federation.statistics import CLASS_COUNTS, SUMS
from morphfed.models.layout import Layout
from morphfed.privacy.egress import EgressGate
from morphfed.privacy.noise import Noise
from morphfed.privacy.secure.party import refusal
from morphfed.tasks.classification import Classification
from morphfed.tasks.temperature import tempered
from morphfed.training.optimise import export_state, import_state, make_optimizer
from morphfed.training.trainer import (
    AfterBackward,
    BeforeEpoch,
    Coupling,
    ExtraLoss,
    FitReport,
    Learner,
    Trainer,
    Views,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from morphfed.federation.secure.member import Member
    from morphfed.federation.transports.base import Note
    from morphfed.tasks.base import Loss
    from morphfed.training.dataset import ImageSet

UPLOAD_METRICS = frozenset({"loss", "steps", "images"})
"""Numbers that go with an upload."""

VALIDATION_METRICS = Classification.validation
"""Means over a site's validation part that leave it after each round of a classification."""

BEFORE_METRICS = retrogress.names(VALIDATION_METRICS)
"""The same of the model that the site has just trained, with its upload; only where the study asks for them."""

Measure = Callable[["NDArray[Any]", "NDArray[Any]"], dict[str, float]]
"""Truth and answers, ``(N, ...)`` each, → named validation metrics: labels ``(N,)`` and probabilities ``(N, C)``, or
masks ``(N, S, S)`` both."""


@dataclass
class Workspace:
    """The one network that all sites of this process take turns in.

    Attributes:
        model: the network.
        layout: what its keys are.
        travels: state-dict keys that go to and fro.
        local: keys that are trained and stay at each site (site-local normalisation, a personal head).
        fresh: values that the local keys have at a site before its first round.
    """

    model: nn.Module
    layout: Layout
    travels: tuple[str, ...]
    local: tuple[str, ...]
    fresh: Tensors

    @classmethod
    def of(cls, model: nn.Module, layout: Layout, travels: Sequence[str] | None = None) -> Workspace:
        """Split what is trained into what travels (None: all of it) and what stays."""
        going = layout.order if travels is None else tuple(travels)
        local = layout.without(going)
        state = model.state_dict()
        return cls(model, layout, going, local, {name: state[name].clone() for name in local})

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy values into the network."""
        if tensors:
            state = self.model.state_dict()
            torch._foreach_copy_([state[name] for name in tensors], list(tensors.values()))

    @contextmanager
    def holding(self, tensors: Tensors) -> Iterator[None]:
        """Within, the network has these values; after it, its own again, to the bit."""
        state = self.model.state_dict()
        before = {name: state[name].clone() for name in tensors}
        self.load(tensors)
        try:
            yield
        finally:
            self.load(before)

    def local_parts(self) -> Tensors:
        """Copies of the parts that stay."""
        state = self.model.state_dict()
        return {name: state[name].clone() for name in self.local}


class Site:
    """One site.

    Args:
        name: the site's name.
        train: training part, at least one image.
        validation: sets on which the site can judge a model, by the name under which they are reported
            (its own; the pooled site of the centralised arm holds one for every site).
        trainer: the training loop.
        workspace: the network that the sites of this process share.
        half: the algorithm's site half.
        gate: what may leave.
        measure: validation metrics.
        keep_optimizer: whether moments survive from round to round.
        judges_own: whether each upload carries the validation metrics of the model that was just trained.
        coding: how uploads are written and downloads read; None: as they are.
        noise: added to each upload before it is coded; None: none.
        member: this site's end of secure sums, behind the same gate; None: its uploads leave as they are.
    """

    def __init__(
        self,
        name: str,
        *,
        train: ImageSet,
        validation: Mapping[str, ImageSet],
        trainer: Trainer,
        workspace: Workspace,
        half: SiteHalf,
        gate: EgressGate,
        measure: Measure,
        keep_optimizer: bool,
        judges_own: bool = False,
        coding: Coding | None = None,
        noise: Noise | None = None,
        member: Member | None = None,
    ) -> None:
        self.name = name
        self._train, self._validation = train, validation
        self._trainer, self._workspace = trainer, workspace
        self._half, self._gate, self._measure = half, gate, measure
        self._keep_optimizer, self._judges_own = keep_optimizer, judges_own
        self._coding, self._noise, self._member = coding or Coding.none({}), noise, member
        self._residual: Tensors = {}
        self._local: Tensors = dict(workspace.fresh)
        self._optimizer_states: dict[str, Tensors] = {}
        self._private: Tensors = {}
        self._class_counts: NDArray[np.int64] | None = None

    def class_counts(self) -> NDArray[np.int64]:
        """Training images of each class, int64 ``(C,)``, through the gate.

        Raises:
            PrivacyError: the study does not declare that counts leave.
        """
        counts = self._train.class_counts
        self._gate.release_statistic(CLASS_COUNTS, counts, round_number=0)
        return counts

    def use_class_counts(self, counts: NDArray[np.int64]) -> None:
        """Take the federation's counts ``(C,)``: for the algorithm, and for a loss whose prior is the federation's."""
        self._class_counts = counts

    def train(self, round_number: int, rounds: int, download: Tensors) -> Upload:
        """Answer one round.

        Raises:
            TrainingError: the loss is not finite, or what was trained is not.
            PrivacyError: the algorithm tried to send what it did not declare.
        """
        download = self._coding.open(download)
        made = self._make(round_number, rounds, download)
        tensors, residual = self._coding.encode(
            made.tensors, download, self._residual, site=self.name, round_number=round_number
        )
        upload = self._gate.release(replace(made, tensors=tensors), noise=self._described(round_number))
        self._residual = residual
        return upload

    def _make(self, round_number: int, rounds: int, download: Tensors) -> Upload:
        """Train, and what the algorithm uploads, with its noise; nothing has left."""
        self._load_shared(download)
        answer = self._half.train(self._work(round_number, rounds), download)
        self._local = self._workspace.local_parts()
        self._keep_private(download)
        report = answer.report
        metrics = {"loss": report.loss, "steps": float(report.steps), "images": float(report.images), **answer.numbers}
        if self._judges_own:
            metrics |= retrogress.to_send(self._judge_own())
        where: dict[str, Any] = {"site": self.name, "round_number": round_number}
        noised = answer.tensors if self._noise is None else self._noise.add(answer.tensors, download, **where)
        return Upload(self.name, round_number, noised, float(len(self._train)), metrics)

    def _described(self, round_number: int) -> dict[str, Any] | None:
        return None if self._noise is None else self._noise.describe(round_number)

    def exchange(self, step: str, round_number: int, rounds: int, asked: Mapping[str, Any], download: Tensors) -> Note:
        """Take one step of a secure sum; the first trains, or looks at the images, and keeps what it finds here.

        Raises:
            TrainingError: as :meth:`train`.
            SecureSumError: this site does not go on; nothing has left in this step.
            PrivacyError: the algorithm tried to send what it did not declare.
        """
        if self._member is None:
            raise RuntimeError("this site takes part in no secure sum")
        session = str(asked.get("session"))
        if step != "keys":
            return self._member.answer(step, session, {key: v for key, v in asked.items() if key != "session"})
        if (row := asked.get("row")) is not None:
            statistic, values = str(row["statistic"]), self._row(row, download)
            return self._member.row(session, of_row(row, round_number), statistic, round_number, values)
        what, download = of_round(round_number, download), self._coding.open(download)
        made = self._make(round_number, rounds, download)
        return self._member.keys(session, what, made, download, noise=self._described(round_number))

    def _row(self, row: Mapping[str, Any], download: Tensors) -> NDArray[Any]:
        """A declared statistic; nothing has left."""
        statistic = str(row["statistic"])
        if statistic == CLASS_COUNTS:
            return self._train.class_counts
        if statistic not in SUMS:
            raise refusal(f"there is no statistic '{statistic[:40]}'")
        at = np.array(row["at"], dtype=np.float64)
        views: Views = 8 if row["views"] == 8 else 1
        return self._sums(statistic, download, at, temperature=float(row["temperature"]), views=views)

    def _judge_own(self) -> dict[str, float]:
        """Validation metrics of the model that this site would go on with if nothing were sent back; {}: no images.

        The network ends as it was, because the upload refers to it, and nothing random is drawn.
        """
        data = self._validation.get(self.name)
        if data is None or not len(data):
            return {}
        with self._workspace.holding(self._half.personal(self._private)):
            return self._score(self._workspace.model, data)

    def _score(self, model: nn.Module, *sets: ImageSet) -> dict[str, float]:
        truth = np.concatenate([data.truth() for data in sets])
        return self._measure(truth, np.concatenate([self._trainer.answers(model, data) for data in sets]))

    def _keep_private(self, download: Tensors) -> None:
        """What the half keeps must outlive the download, whose memory the coordinator uses again."""
        lent = {tensor.untyped_storage().data_ptr() for tensor in download.values()}
        for name, tensor in self._private.items():
            if tensor.untyped_storage().data_ptr() in lent:
                self._private[name] = tensor.clone()

    def _work(self, round_number: int, rounds: int) -> SiteWork:
        model = self._workspace.model

        def fit(
            *,
            after_backward: AfterBackward | None = None,
            extra_loss: ExtraLoss | None = None,
            only: Collection[str] | None = None,
            epochs: int | None = None,
            slot: str = "model",
            loss: Loss | None = None,
        ) -> FitReport:
            with training_only(model, only):
                optimizer = self._optimizer(model, slot)
                report = self._trainer.fit(
                    model,
                    optimizer,
                    self._train,
                    site=self.name,
                    round_number=round_number,
                    rounds=rounds,
                    after_backward=after_backward,
                    extra_loss=extra_loss,
                    epochs=epochs,
                    slot=slot,
                    class_counts=self._prior(),
                    loss=loss,
                )
            self._keep(optimizer, slot)
            return report

        def fit_together(
            models: Mapping[str, nn.Module],
            coupling: Coupling,
            *,
            losses: Mapping[str, Loss] | None = None,
            before_epoch: BeforeEpoch | None = None,
        ) -> FitReport:
            learners = {
                slot: Learner(net, self._optimizer(net, slot), (losses or {}).get(slot)) for slot, net in models.items()
            }
            report = self._trainer.fit_together(
                list(learners.values()),
                self._train,
                site=self.name,
                round_number=round_number,
                rounds=rounds,
                coupling=coupling,
                before_epoch=before_epoch,
                class_counts=self._prior(),
            )
            for slot, learner in learners.items():
                self._keep(learner.optimizer, slot)
            return report

        return SiteWork(
            site=self.name,
            round=round_number,
            model=model,
            layout=self._workspace.layout,
            travels=self._workspace.travels,
            epochs=self._trainer.config.local_epochs,
            fit=fit,
            loss=lambda: self._trainer.loss(model, self._train, self._prior()),
            load=self._workspace.load,
            state=self._private,
            rounds=rounds,
            seed=self._trainer.seed,
            class_counts=self._class_counts,
            fit_together=fit_together,
            judge=self._judge,
        )

    def _prior(self) -> NDArray[np.int64] | None:
        """Class counts for the study's loss; None: the site's own, even where an algorithm has the sum exchanged."""
        return self._class_counts if self._trainer.config.loss.prior == "federation" else None

    def _optimizer(self, model: nn.Module, slot: str) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self._trainer.config, model)
        if self._keep_optimizer and self._optimizer_states.get(slot):
            import_state(optimizer, self._optimizer_states[slot])
        return optimizer

    def _keep(self, optimizer: torch.optim.Optimizer, slot: str) -> None:
        if self._keep_optimizer:
            self._optimizer_states[slot] = {k: v.clone() for k, v in export_state(optimizer).items()}

    def _judge(self, model: nn.Module, part: Literal["validation", "training"]) -> dict[str, float] | None:
        sets = [self._train] if part == "training" else [data for data in self._validation.values() if len(data)]
        return self._score(model, *sets) if sets else None

    def _load_shared(self, download: Tensors) -> None:
        self._workspace.load({name: download[name] for name in self._workspace.travels})
        self._workspace.load(self._local)

    def load_model(self, download: Tensors) -> None:
        """Fill the workspace with the model that this site uses: the download, its own parts, its personal model."""
        self._load_shared(self._coding.open(download))
        self._workspace.load(self._half.personal(self._private))

    def evaluate(self, round_number: int, download: Tensors) -> dict[str, dict[str, float]]:
        """Validation metrics of the model as this site would use it; empty sets are left out.

        Raises:
            PrivacyError: a metric that is not declared.
        """
        judged = {name: data for name, data in self._validation.items() if len(data)}
        if judged:
            self.load_model(download)
        found = {name: self._score(self._workspace.model, data) for name, data in judged.items()}
        self._gate.release_validation(round_number, found)
        return found

    def validation_sums(
        self,
        statistic: str,
        round_number: int,
        download: Tensors,
        at: NDArray[np.float64],
        *,
        temperature: float,
        views: Views,
    ) -> NDArray[np.float64]:
        """A declared row of sums over the validation images at each point ``(G,)``, then their number: ``(G + 1,)``.

        Args:
            statistic: one of :data:`morphfed.federation.statistics.SUMS`.
            round_number: rounds that are over.
            download: travelling tensors of the model, which is judged as this site would use it.
            at: temperatures or thresholds ``(G,)``.
            temperature: that the probabilities are brought to before.
            views: as in the prediction that is prepared.

        Raises:
            PrivacyError: the study does not declare that these sums leave.
        """
        sums = self._sums(statistic, download, at, temperature=temperature, views=views)
        self._gate.release_statistic(statistic, sums, round_number=round_number)
        return sums

    def _sums(
        self, statistic: str, download: Tensors, at: NDArray[np.float64], *, temperature: float, views: Views
    ) -> NDArray[np.float64]:
        self.load_model(download)
        sums = np.zeros(len(at) + 1)
        for data in self._validation.values():
            if len(data):
                probabilities = self._trainer.predict(self._workspace.model, data, views=views)
                sums[:-1] += SUMS[statistic](data.labels, tempered(probabilities, temperature), at)
                sums[-1] += len(data)
        return sums

    def state(self) -> Tensors:
        """Private tensors by kind: ``local/…``, ``optimizer/…``, ``algorithm/…``, ``residual/…``."""
        return {
            **{f"local/{k}": v for k, v in self._local.items()},
            **{f"optimizer/{s}/{k}": v for s, state in self._optimizer_states.items() for k, v in state.items()},
            **{f"algorithm/{k}": v for k, v in self._private.items()},
            **{f"residual/{k}": v for k, v in self._residual.items()},
        }

    def load_state(self, tensors: Tensors) -> None:
        """Inverse of :meth:`state`."""
        self._local = {**self._workspace.fresh, **under("local/", tensors)}
        self._optimizer_states = {}
        for name, tensor in under("optimizer/", tensors).items():
            slot, _, key = name.partition("/")
            self._optimizer_states.setdefault(slot, {})[key] = tensor
        self._private = under("algorithm/", tensors)
        self._residual = under("residual/", tensors)


@contextmanager
def training_only(model: nn.Module, names: Collection[str] | None) -> Iterator[None]:
    """Within, only the parameters ``names`` are trained; None leaves all as they are.

    Raises:
        ValueError: a name that is no trained parameter.
    """
    if names is None:
        yield
        return
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if unknown := sorted(set(names) - set(trained)):
        raise ValueError(f"not trained here: {', '.join(unknown[:3])}")
    try:
        for name, parameter in trained.items():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for parameter in trained.values():
            parameter.requires_grad_(True)
            parameter.grad = None


def under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
