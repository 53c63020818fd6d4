"""FedYogi: Adam whose second moment changes by no more than the square of the step.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive federated optimization. ICLR 2021,
algorithm 2: ``v ← v - (1 - β₂) Δ² sign(v - Δ²)``, then ``w ← w + η m / (√v + τ)``.
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


class FedYogiConfig(AdaptiveConfig):
    """Keys of FedYogi."""

    beta2: float = Field(0.99, ge=0, lt=1, description="β₂, decay of the second moment")


class FedYogi(Adaptive):
    """Yogi at the server."""

    def __init__(self, initial: Tensors, layout: Layout, config: FedYogiConfig) -> None:
        self._beta2 = config.beta2
        super().__init__(initial, layout, config)

    def second(self, v: list[torch.Tensor], square: list[torch.Tensor]) -> None:
        """``v - (1 - β₂) Δ² sign(v - Δ²)``."""
        signs = torch._foreach_sign(torch._foreach_sub(v, square))
        torch._foreach_mul_(square, signs)
        torch._foreach_sub_(v, square, alpha=1.0 - self._beta2)


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> FedYogi:
    return FedYogi(initial, layout, cast("FedYogiConfig", config))


ALGORITHMS.register("fedyogi")(
    Algorithm(
        name="fedyogi",
        title="Yogi at the server",
        paper="Reddi et al., ICLR 2021",
        equation="v ← v - (1 - β₂) Δ² sign(v - Δ²),  w ← w + η m / (√v + τ)",
        config=FedYogiConfig,
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
