"""FedAdagrad: a server rate for each weight that falls as its changes add up.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive federated optimization. ICLR 2021,
algorithm 2: ``v ← v + Δ²``, then ``w ← w + η m / (√v + τ)``.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Facts
from morphfed.algorithms.fedavg import PlainSite, mean_alone
from morphfed.algorithms.pseudo_gradient import Adaptive, AdaptiveConfig
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout


class FedAdagradConfig(AdaptiveConfig):
    """Keys of FedAdagrad."""

    beta1: float = Field(0.0, ge=0, lt=1, description="β₁, decay of the first moment; the paper has 0 here")


class FedAdagrad(Adaptive):
    """Adagrad at the server."""

    def second(self, v: list[torch.Tensor], square: list[torch.Tensor]) -> None:
        """``v + Δ²``."""
        torch._foreach_add_(v, square)


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> FedAdagrad:
    return FedAdagrad(initial, layout, cast("FedAdagradConfig", config))


ALGORITHMS.register("fedadagrad")(
    Algorithm(
        name="fedadagrad",
        title="Adagrad at the server",
        paper="Reddi et al., ICLR 2021",
        equation="v ← v + Δ²,  w ← w + η m / (√v + τ)",
        config=FedAdagradConfig,
        site=lambda config: PlainSite(),
        coordinator=_coordinator,
        facts=Facts(
            travels="the model, both ways",
            stays="images, labels, optimiser state",
            memory="6 models, whatever the number of sites",
            cost="1 × local training",
        ),
        sums=mean_alone,
    )
)
