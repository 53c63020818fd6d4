"""FedAdam: a server rate for each weight from a running mean of its squared changes.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive federated optimization. ICLR 2021,
algorithm 2: ``v ← β₂ v + (1 - β₂) Δ²``, then ``w ← w + η m / (√v + τ)``.
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


class FedAdamConfig(AdaptiveConfig):
    """Keys of FedAdam."""

    beta2: float = Field(0.99, ge=0, lt=1, description="β₂, decay of the second moment")


class FedAdam(Adaptive):
    """Adam at the server, without bias correction."""

    def __init__(self, initial: Tensors, layout: Layout, config: FedAdamConfig) -> None:
        self._beta2 = config.beta2
        super().__init__(initial, layout, config)

    def second(self, v: list[torch.Tensor], square: list[torch.Tensor]) -> None:
        """``β₂ v + (1 - β₂) Δ²``."""
        torch._foreach_lerp_(v, square, 1.0 - self._beta2)


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> FedAdam:
    return FedAdam(initial, layout, cast("FedAdamConfig", config))


ALGORITHMS.register("fedadam")(
    Algorithm(
        name="fedadam",
        title="Adam at the server",
        paper="Reddi et al., ICLR 2021",
        equation="v ← β₂ v + (1 - β₂) Δ²,  w ← w + η m / (√v + τ)",
        config=FedAdamConfig,
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
