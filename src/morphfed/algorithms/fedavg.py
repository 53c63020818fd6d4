"""FedAvg: train locally, average the models.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-efficient learning of deep networks from decentralized
data. AISTATS 2017. Algorithm 1 with full participation: ``w ← Σ_k (n_k / n) w_k``.
"""

from __future__ import annotations

from typing import cast

from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Answer, Facts, SiteHalf, SiteWork, Sums
from morphfed.algorithms.mean import Averaging, Weighting
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout


class FedAvgConfig(AlgorithmConfig):
    """Keys of FedAvg."""

    weighting: Weighting = Field("images", description="images: n_k / n as published; uniform: every site alike")


class PlainSite(SiteHalf):
    """Train on the site's own images; upload the model."""

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """One round of plain training."""
        report = work.fit()
        return Answer(work.current(), report)


def averaging(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> Averaging:
    """The coordinator half that FedAvg and its relatives share."""
    return Averaging(initial, weighting=cast("FedAvgConfig", config).weighting)


def mean_alone(config: AlgorithmConfig) -> Sums:
    """FedAvg and its relatives need the weighted mean of the uploads and nothing else."""
    return Sums(cast("FedAvgConfig", config).weighting)


ALGORITHMS.register("fedavg")(
    Algorithm(
        name="fedavg",
        title="federated averaging",
        paper="McMahan et al., AISTATS 2017",
        equation="w ← Σ_k (n_k / n) w_k",
        config=FedAvgConfig,
        site=lambda config: PlainSite(),
        coordinator=averaging,
        facts=Facts(
            travels="the model, both ways",
            stays="images, labels, optimiser state",
            memory="2 models, whatever the number of sites",
            cost="1 × local training",
        ),
        sums=mean_alone,
    )
)
