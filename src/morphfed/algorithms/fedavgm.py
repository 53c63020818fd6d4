"""FedAvgM: FedAvg with momentum at the server.

Hsu, Qi, Brown: Measuring the effects of non-identical data distribution for federated visual classification.
arXiv 1909.06335 (2019): ``v ← β v + Δ``, ``w ← w + η v`` with Δ the mean change of the sites' weights.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Facts
from morphfed.algorithms.fedavg import FedAvgConfig, PlainSite, mean_alone
from morphfed.algorithms.pseudo_gradient import FIRST, ServerOptimiser
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout


class FedAvgMConfig(FedAvgConfig):
    """Keys of FedAvgM."""

    eta: float = Field(1.0, gt=0, description="η, the server's rate")
    beta: float = Field(0.9, ge=0, lt=1, description="β, momentum; 0 with η = 1 is FedAvg")


class Momentum(ServerOptimiser):
    """Server momentum.

    Args:
        initial, layout: see :class:`ServerOptimiser`.
        config: η, β and the weighting.
    """

    moments = (FIRST,)

    def __init__(self, initial: Tensors, layout: Layout, config: FedAvgMConfig) -> None:
        self._eta, self._beta = config.eta, config.beta
        super().__init__(initial, layout, weighting=config.weighting)

    def step(self, change: list[torch.Tensor], moments: dict[str, list[torch.Tensor]]) -> list[torch.Tensor]:
        """``η (β v + Δ)``."""
        v = moments[FIRST]
        torch._foreach_mul_(v, self._beta)
        torch._foreach_add_(v, change)
        return list(torch._foreach_mul(v, self._eta))


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> Momentum:
    return Momentum(initial, layout, cast("FedAvgMConfig", config))


ALGORITHMS.register("fedavgm")(
    Algorithm(
        name="fedavgm",
        title="FedAvg with server momentum",
        paper="Hsu et al., arXiv 1909.06335",
        equation="v ← β v + Δ,  w ← w + η v,  Δ = Σ_k p_k (w_k - w)",
        config=FedAvgMConfig,
        site=lambda config: PlainSite(),
        coordinator=_coordinator,
        facts=Facts(
            travels="the model, both ways",
            stays="images, labels, optimiser state",
            memory="4 models, whatever the number of sites",
            cost="1 × local training",
        ),
        sums=mean_alone,
    )
)
