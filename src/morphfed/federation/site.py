"""A training site in this process: its images, its private state, its gate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from morphfed.algorithms.base import SiteHalf, SiteWork
from morphfed.core.types import Tensors, Upload
from morphfed.federation.statistics import CLASS_COUNTS, SUMS
from morphfed.models.layout import Layout
from morphfed.privacy.egress import EgressGate
from morphfed.tasks.classification import Classification
from morphfed.tasks.temperature import tempered
from morphfed.training.optimise import export_state, import_state, make_optimizer
from morphfed.training.trainer import AfterBackward, ExtraLoss, FitReport, Trainer, Views

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from morphfed.training.dataset import ImageSet

UPLOAD_METRICS = frozenset({"loss", "steps", "images"})
"""Numbers that go with an upload."""

VALIDATION_METRICS = Classification.validation
"""Means over a site's validation part that leave it after each round of a classification."""

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
    ) -> None:
        self.name = name
        self._train, self._validation = train, validation
        self._trainer, self._workspace = trainer, workspace
        self._half, self._gate, self._measure = half, gate, measure
        self._keep_optimizer = keep_optimizer
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
        """Take the federation's counts ``(C,)`` in place of the site's own for the loss."""
        self._class_counts = counts

    def train(self, round_number: int, rounds: int, download: Tensors) -> Upload:
        """Answer one round.

        Raises:
            TrainingError: the loss is not finite.
            PrivacyError: the algorithm tried to send what it did not declare.
        """
        self._load_shared(download)
        answer = self._half.train(self._work(round_number, rounds), download)
        self._local = self._workspace.local_parts()
        report = answer.report
        metrics = {"loss": report.loss, "steps": float(report.steps), "images": float(report.images), **answer.numbers}
        return self._gate.release(Upload(self.name, round_number, answer.tensors, float(len(self._train)), metrics))

    def _work(self, round_number: int, rounds: int) -> SiteWork:
        model = self._workspace.model

        def fit(
            *,
            after_backward: AfterBackward | None = None,
            extra_loss: ExtraLoss | None = None,
            only: Collection[str] | None = None,
            epochs: int | None = None,
            slot: str = "model",
        ) -> FitReport:
            with training_only(model, only):
                optimizer = make_optimizer(self._trainer.config, model)
                if self._keep_optimizer and self._optimizer_states.get(slot):
                    import_state(optimizer, self._optimizer_states[slot])
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
                    class_counts=self._class_counts,
                )
            if self._keep_optimizer:
                self._optimizer_states[slot] = {k: v.clone() for k, v in export_state(optimizer).items()}
            return report

        return SiteWork(
            site=self.name,
            round=round_number,
            model=model,
            layout=self._workspace.layout,
            travels=self._workspace.travels,
            epochs=self._trainer.config.local_epochs,
            fit=fit,
            loss=lambda: self._trainer.loss(model, self._train, self._class_counts),
            load=self._workspace.load,
            state=self._private,
        )

    def _load_shared(self, download: Tensors) -> None:
        self._workspace.load({name: download[name] for name in self._workspace.travels})
        self._workspace.load(self._local)

    def load_model(self, download: Tensors) -> None:
        """Fill the workspace with the model that this site uses: the download, its own parts, its personal model."""
        self._load_shared(download)
        self._workspace.load(self._half.personal(self._private))

    def evaluate(self, round_number: int, download: Tensors) -> dict[str, dict[str, float]]:
        """Validation metrics of the model as this site would use it; empty sets are left out.

        Raises:
            PrivacyError: a metric that is not declared.
        """
        self.load_model(download)
        found = {}
        for name, data in self._validation.items():
            if len(data):
                found[name] = self._measure(data.truth(), self._trainer.answers(self._workspace.model, data))
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
        self.load_model(download)
        sums = np.zeros(len(at) + 1)
        for data in self._validation.values():
            if len(data):
                probabilities = self._trainer.predict(self._workspace.model, data, views=views)
                sums[:-1] += SUMS[statistic](data.labels, tempered(probabilities, temperature), at)
                sums[-1] += len(data)
        self._gate.release_statistic(statistic, sums, round_number=round_number)
        return sums

    def state(self) -> Tensors:
        """Private tensors by kind: ``local/…``, ``optimizer/…``, ``algorithm/…``."""
        return {
            **{f"local/{k}": v for k, v in self._local.items()},
            **{f"optimizer/{s}/{k}": v for s, state in self._optimizer_states.items() for k, v in state.items()},
            **{f"algorithm/{k}": v for k, v in self._private.items()},
        }

    def load_state(self, tensors: Tensors) -> None:
        """Inverse of :meth:`state`."""
        self._local = {**self._workspace.fresh, **under("local/", tensors)}
        self._optimizer_states = {}
        for name, tensor in under("optimizer/", tensors).items():
            slot, _, key = name.partition("/")
            self._optimizer_states.setdefault(slot, {})[key] = tensor
        self._private = under("algorithm/", tensors)


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
