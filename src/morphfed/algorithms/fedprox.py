"""FedProx: FedAvg whose sites are held near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated optimization in heterogeneous networks. MLSys 2020.
Equation 2: each site minimises ``h_k(w; w^t) = F_k(w) + (μ / 2) ‖w - w^t‖²``. The square matters: its gradient is
``μ (w - w^t)``, where the gradient of the plain norm would have length μ everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Answer, Facts, SiteHalf, SiteWork
from morphfed.algorithms.fedavg import FedAvgConfig, PlainSite, averaging, mean_alone
from morphfed.core.types import Tensors
from morphfed.training.trainer import AfterBackward

if TYPE_CHECKING:
    from torch import Tensor, nn


class FedProxConfig(FedAvgConfig):
    """Keys of FedProx."""

    mu: float = Field(0.01, ge=0, description="μ, strength of the pull to the global model; 0 is FedAvg")


def proximal_gradient(model: nn.Module, anchor: Tensors, mu: float) -> AfterBackward:
    """A hook that adds ``μ (w - w^t)`` to the gradient of every parameter that travels.

    Args:
        model: the network being trained.
        anchor: the download ``w^t``; parameters that it lacks (site-local norms) are left alone.
        mu: μ ≥ 0.
    """
    pairs = [(p, anchor[name]) for name, p in model.named_parameters() if name in anchor and p.requires_grad]
    parameters: list[Tensor] = [p for p, _ in pairs]
    anchors = [a for _, a in pairs]

    @torch.no_grad()
    def add(_: nn.Module) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if len(gradients) != len(parameters):
            raise RuntimeError("every travelling parameter must have a gradient")
        torch._foreach_add_(gradients, parameters, alpha=mu)
        torch._foreach_add_(gradients, anchors, alpha=-mu)

    return add


class ProximalSite(SiteHalf):
    """Train with the proximal term.

    Args:
        mu: μ ≥ 0.
    """

    def __init__(self, mu: float) -> None:
        self._mu = mu

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """One round of proximal training; with μ = 0 exactly the plain one."""
        if self._mu == 0:
            return PlainSite().train(work, download)
        report = work.fit(after_backward=proximal_gradient(work.model, download, self._mu))
        return Answer(work.current(), report)


def _site(config: AlgorithmConfig) -> ProximalSite:
    return ProximalSite(cast("FedProxConfig", config).mu)


ALGORITHMS.register("fedprox")(
    Algorithm(
        name="fedprox",
        title="FedAvg with a proximal term",
        paper="Li et al., MLSys 2020",
        equation="min_w F_k(w) + (μ / 2) ‖w - w^t‖²,  then  w ← Σ_k (n_k / n) w_k",
        config=FedProxConfig,
        site=_site,
        coordinator=averaging,
        facts=Facts(
            travels="the model, both ways",
            stays="images, labels, optimiser state",
            memory="2 models, whatever the number of sites",
            cost="1 × local training, one more pass over the weights a step",
        ),
        sums=mean_alone,
    )
)
