"""FedMedian: the coordinate-wise median of the sites' models.

Yin, Chen, Ramchandran, Bartlett: Byzantine-robust distributed learning: towards optimal statistical rates. ICML 2018,
definition 1. Up to half of the sites may be wrong in any way at a coordinate. With an even number of sites the median
is the mean of the two middle values, so with two sites FedMedian is the unweighted mean.
"""

from __future__ import annotations

from typing import cast

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Facts
from morphfed.algorithms.fedavg import PlainSite
from morphfed.algorithms.gather import Gathering, GatheringConfig
from morphfed.algorithms.order import coordinate_median, over_names
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout


class FedMedianConfig(GatheringConfig):
    """Keys of FedMedian."""


class Median(Gathering):
    """The global model is the coordinate-wise median of the uploads, every site alike."""

    def aggregate(self, models: list[Tensors], sites: list[str]) -> Tensors:
        """Median of each coordinate."""
        return over_names(coordinate_median, models)


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> Median:
    return Median(initial, layout, cast("FedMedianConfig", config).statistics)


ALGORITHMS.register("fedmedian")(
    Algorithm(
        name="fedmedian",
        title="coordinate-wise median",
        paper="Yin et al., ICML 2018",
        equation="w_j ← median_k (w_k)_j",
        config=FedMedianConfig,
        site=lambda config: PlainSite(),
        coordinator=_coordinator,
        facts=Facts(
            travels="the model, both ways",
            stays="images, labels, optimiser state",
            memory="K + 1 models for K sites",
            cost="1 × local training",
        ),
        note=lambda config, sites: "with two sites the median is their unweighted mean" if sites == 2 else "",
    )
)
