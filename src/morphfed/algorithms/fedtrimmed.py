"""Coordinate-wise trimmed mean of the sites' models.

Yin, Chen, Ramchandran, Bartlett: Byzantine-robust distributed learning: towards optimal statistical rates. ICML 2018,
definition 2: of K values at a coordinate the ⌊βK⌋ smallest and largest are dropped, the rest is averaged.
"""

from __future__ import annotations

import math
from functools import partial
from typing import cast

from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Facts
from morphfed.algorithms.fedavg import PlainSite
from morphfed.algorithms.gather import Gathering, GatheringConfig, Statistics
from morphfed.algorithms.order import over_names, trimmed_mean
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout


class FedTrimmedConfig(GatheringConfig):
    """Keys of the trimmed mean."""

    beta: float = Field(0.2, ge=0, lt=0.5, description="β, share of the sites dropped at either end of a coordinate")


class TrimmedMean(Gathering):
    """The global model is the coordinate-wise trimmed mean of the uploads, every site alike.

    Args:
        initial, layout, statistics: see :class:`Gathering`.
        beta: β in [0, 1/2); 0 is the unweighted mean.
    """

    def __init__(self, initial: Tensors, layout: Layout, statistics: Statistics, beta: float) -> None:
        super().__init__(initial, layout, statistics)
        self._beta = beta

    def aggregate(self, models: list[Tensors], sites: list[str]) -> Tensors:
        """Trimmed mean of each coordinate."""
        return over_names(partial(trimmed_mean, trim=dropped(self._beta, len(models))), models)


def dropped(beta: float, sites: int) -> int:
    """⌊βK⌋; a product that misses a whole number by rounding alone counts as that number."""
    return math.floor(beta * sites + 1e-9)


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> TrimmedMean:
    own = cast("FedTrimmedConfig", config)
    return TrimmedMean(initial, layout, own.statistics, own.beta)


def _note(config: AlgorithmConfig, sites: int) -> str:
    beta = cast("FedTrimmedConfig", config).beta
    if dropped(beta, sites):
        return ""
    return f"β = {beta:g} of {sites} sites drops none: this is their unweighted mean"


ALGORITHMS.register("fedtrimmed")(
    Algorithm(
        name="fedtrimmed",
        title="coordinate-wise trimmed mean",
        paper="Yin et al., ICML 2018",
        equation="w_j ← mean of (w_k)_j without the ⌊βK⌋ smallest and largest",
        config=FedTrimmedConfig,
        site=lambda config: PlainSite(),
        coordinator=_coordinator,
        facts=Facts(
            travels="the model, both ways",
            stays="images, labels, optimiser state",
            memory="K + 1 models for K sites",
            cost="1 × local training",
        ),
        note=_note,
    )
)
