"""q-FedAvg: sites with a high loss count more.

Li, Sanjabi, Beirami, Smith: Fair resource allocation in federated learning. ICLR 2020. Algorithm 2 (q-FedAvg) for
the objective ``Σ_k p_k F_k(w)^{q+1} / (q + 1)`` with equal p_k, all sites in every round:

``Δ_k = L (w^t - w_k)``,  ``h_k = q F_k^{q-1} ‖Δ_k‖² + L F_k^q``,  ``w ← w^t - Σ_k F_k^q Δ_k / Σ_k h_k``

where F_k is the site's loss under the *downloaded* model over its training part (evaluation mode, no augmentation),
which the site uploads as ``start_loss``. 10⁻¹⁰ is added to it, as in the authors' code: F^{q-1} has a pole at 0.

L estimates the Lipschitz constant of the gradients at q = 0. The paper takes ``1 / η`` with the best rate η of plain
SGD. That is no estimate where another optimiser or many steps have made ``w^t - w_k``: the larger ``L ‖w^t - w_k‖²``,
the shorter the step. So L is a key without a default. At q = 0 it cancels, and the rule is FedAvg with equal weights.

Weights only: running statistics have no gradient, and are averaged, every site alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from pydantic import Field

from morphfed.algorithms.base import (
    ALGORITHMS,
    Algorithm,
    AlgorithmConfig,
    Answer,
    CoordinatorHalf,
    Facts,
    SiteHalf,
    SiteWork,
)
from morphfed.algorithms.mean import RunningMean
from morphfed.core.types import Tensors, Upload
from morphfed.models.layout import Layout

START_LOSS = "start_loss"
FLOOR = 1e-10


class QFedAvgConfig(AlgorithmConfig):
    """Keys of q-FedAvg."""

    q: float = Field(1.0, ge=0, description="q, how much a high loss counts; 0 is FedAvg with equal weights")
    lipschitz: float = Field(gt=0, description="L; as published 1 / train.lr of plain SGD; larger: shorter steps")


class LossFirst(SiteHalf):
    """Measure the download, then train plainly."""

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """One round; uploads the model and F_k(w^t)."""
        start = work.loss()
        report = work.fit()
        return Answer(work.current(), report, {START_LOSS: start})


class FairMean(CoordinatorHalf):
    """Updates weighted by F_k^q, with the step that the h_k allow.

    L divides out of one of its places: ``Σ F^q L d / Σ (q F^{q-1} L² ‖d‖² + L F^q)``, with ``d = w^t - w_k``, is
    computed as ``Σ F^q d / Σ (q F^{q-1} L ‖d‖² + F^q)``.

    Args:
        initial: the global model's travelling tensors before round 1.
        layout: tells parameters from running statistics.
        q: q ≥ 0.
        lipschitz: L > 0.
    """

    def __init__(self, initial: Tensors, layout: Layout, *, q: float, lipschitz: float) -> None:
        self._model = {name: tensor.clone() for name, tensor in initial.items()}
        self._parameters = [name for name in initial if name in layout.parameters]
        self._weights = frozenset(self._parameters)
        self._q, self._lipschitz = q, lipschitz
        self._forget()

    def _forget(self) -> None:
        self._updates: list[torch.Tensor] = []
        self._steps = 0.0
        self._statistics = RunningMean()

    def download(self, site: str) -> Tensors:
        """The global model, the same for every site."""
        return self._model

    def begin_round(self, round_number: int, cohort: Iterable[str]) -> None:
        """Forget the last round's sums."""
        self._forget()

    @torch.no_grad()
    def fold(self, upload: Upload) -> None:
        """Add one site's weighted update and its h_k to the sums."""
        loss = upload.metrics[START_LOSS] + FLOOR
        weight = loss**self._q
        update = [self._model[name] - upload.tensors[name] for name in self._parameters]
        squared = sum(float(n) ** 2 for n in torch._foreach_norm(update))
        self._steps += self._q * loss ** (self._q - 1) * self._lipschitz * squared + weight
        torch._foreach_mul_(update, weight)
        if self._updates:
            torch._foreach_add_(self._updates, update)
        else:
            self._updates = update
        self._statistics.add({n: t for n, t in upload.tensors.items() if n not in self._weights}, 1.0)

    @torch.no_grad()
    def end_round(self) -> None:
        """Take the step."""
        if not self._steps:
            return
        moved = {n: self._model[n] - u / self._steps for n, u in zip(self._parameters, self._updates, strict=True)}
        self._model = {**self._model, **moved, **self._statistics.result()}
        self._forget()

    def model(self) -> Tensors:
        """The global model."""
        return self._model

    def state(self) -> Tensors:
        """The global model is all there is."""
        return self._model

    def load_state(self, tensors: Tensors) -> None:
        """Take over a saved global model."""
        self._model = {name: tensors[name].to(old.device, copy=True) for name, old in self._model.items()}


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> FairMean:
    keys = cast("QFedAvgConfig", config)
    return FairMean(initial, layout, q=keys.q, lipschitz=keys.lipschitz)


ALGORITHMS.register("qfedavg")(
    Algorithm(
        name="qfedavg",
        title="fair federated averaging",
        paper="Li et al., ICLR 2020",
        equation="Δ_k = L (w - w_k),  h_k = q F_k^{q-1} ‖Δ_k‖² + L F_k^q,  w ← w - Σ_k F_k^q Δ_k / Σ_k h_k",
        config=QFedAvgConfig,
        site=lambda config: LossFirst(),
        coordinator=_coordinator,
        facts=Facts(
            travels="the model, both ways; up also the loss of the downloaded model on the site's training part",
            stays="images, labels, optimiser state",
            memory="2 models, whatever the number of sites",
            cost="1 × local training and one forward pass over the training part",
        ),
        numbers=frozenset({START_LOSS}),
    )
)
