"""A training site in this process: its images, its private state, its gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from morphfed.algorithms.base import SiteHalf, SiteWork
from morphfed.core.types import Tensors, Upload
from morphfed.models.norm import norm_keys
from morphfed.privacy.egress import EgressGate
from morphfed.training.optimise import export_state, import_state, make_optimizer
from morphfed.training.trainer import AfterBackward, FitReport, Trainer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from morphfed.models.norm import Norm
    from morphfed.training.dataset import ImageSet

UPLOAD_METRICS = frozenset({"loss", "steps", "images"})
"""Numbers that go with an upload."""

VALIDATION_METRICS = frozenset({"balanced_accuracy", "macro_f1", "loss"})
"""Means over a site's validation part that leave it after each round."""

Measure = Callable[["NDArray[np.int64]", "NDArray[np.float32]"], dict[str, float]]
"""Labels ``(N,)`` and probabilities ``(N, C)`` → named validation metrics."""


@dataclass
class Workspace:
    """The one network that all sites of this process take turns in.

    Attributes:
        model: the network.
        travels: floating-point state-dict keys that go to and fro.
        local: keys that stay at each site (site-local normalisation).
        fresh: values that the local keys have at a site before its first round.
    """

    model: nn.Module
    travels: tuple[str, ...]
    local: tuple[str, ...]
    fresh: Tensors

    @classmethod
    def of(cls, model: nn.Module, norm: Norm) -> Workspace:
        """Split a network's state into what travels and what stays.

        Integer buffers (counters, index tables) do neither: they are no weights, and are part of the architecture.
        """
        state = model.state_dict()
        stay = norm_keys(model) if norm == "local" else frozenset()
        floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
        local = tuple(name for name in floating if name in stay)
        travels = tuple(name for name in floating if name not in stay)
        return cls(model, travels, local, {name: state[name].clone() for name in local})

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy values into the network."""
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
        self._optimizer_state: Tensors = {}
        self._private: Tensors = {}

    def train(self, round_number: int, rounds: int, download: Tensors) -> Upload:
        """Answer one round.

        Raises:
            TrainingError: the loss is not finite.
            PrivacyError: the algorithm tried to send what it did not declare.
        """
        self.load_model(download)
        model = self._workspace.model
        optimizer = make_optimizer(self._trainer.config, model)
        if self._keep_optimizer and self._optimizer_state:
            import_state(optimizer, self._optimizer_state)

        def fit(after_backward: AfterBackward | None) -> FitReport:
            return self._trainer.fit(
                model,
                optimizer,
                self._train,
                site=self.name,
                round_number=round_number,
                rounds=rounds,
                after_backward=after_backward,
            )

        work = SiteWork(self.name, round_number, model, self._workspace.travels, fit, self._private)
        tensors, report = self._half.train(work, download)
        self._local = self._workspace.local_parts()
        if self._keep_optimizer:
            self._optimizer_state = {k: v.clone() for k, v in export_state(optimizer).items()}
        metrics = {"loss": report.loss, "steps": float(report.steps), "images": float(report.images)}
        return self._gate.release(Upload(self.name, round_number, tensors, float(len(self._train)), metrics))

    def load_model(self, download: Tensors) -> None:
        """Fill the workspace with a global model and this site's own parts."""
        self._workspace.load(download)
        if self._local:
            self._workspace.load(self._local)

    def evaluate(self, round_number: int, download: Tensors) -> dict[str, dict[str, float]]:
        """Validation metrics of the model as this site would use it; empty sets are left out.

        Raises:
            PrivacyError: a metric that is not declared.
        """
        self.load_model(download)
        found = {}
        for name, data in self._validation.items():
            if len(data):
                found[name] = self._measure(data.labels, self._trainer.predict(self._workspace.model, data))
        self._gate.release_validation(round_number, found)
        return found

    def state(self) -> Tensors:
        """Private tensors by kind: ``local/…``, ``optimizer/…``, ``algorithm/…``."""
        return {
            **{f"local/{k}": v for k, v in self._local.items()},
            **{f"optimizer/{k}": v for k, v in self._optimizer_state.items()},
            **{f"algorithm/{k}": v for k, v in self._private.items()},
        }

    def load_state(self, tensors: Tensors) -> None:
        """Inverse of :meth:`state`."""
        self._local = {**self._workspace.fresh, **_under("local/", tensors)}
        self._optimizer_state = _under("optimizer/", tensors)
        self._private = _under("algorithm/", tensors)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
