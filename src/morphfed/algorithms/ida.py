"""IDA: sites whose model lies far from the mean count less.

Yeganeh, Farshad, Navab, Albarqouni: Inverse distance aggregation for federated learning with non-IID data. DART at
MICCAI 2020 (arXiv 2008.07665): ``w ← Σ_k α_k w_k`` with ``α_k ∝ 1 / ‖w̄ - w_k‖``, w̄ the unweighted mean of the round's
models.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Facts
from morphfed.algorithms.fedavg import PlainSite
from morphfed.algorithms.gather import Gathering, GatheringConfig, Statistics
from morphfed.algorithms.mean import RunningMean
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout


class IDAConfig(GatheringConfig):
    """Keys of IDA."""

    p: Literal[1, 2] = Field(1, description="which norm measures the distance: sum of absolute values, or Euclidean")


class InverseDistance(Gathering):
    """The global model is the mean of the uploads, weighted by the inverse of their distance to the plain mean.

    Args:
        initial, layout, statistics: see :class:`Gathering`.
        p: 1 or 2.
    """

    def __init__(self, initial: Tensors, layout: Layout, statistics: Statistics, p: int) -> None:
        super().__init__(initial, layout, statistics)
        self._p = p
        self._measured = [name for name in initial if name in layout.parameters]

    def aggregate(self, models: list[Tensors], sites: list[str]) -> Tensors:
        """Weighted mean; distances are those of weights alone."""
        weighted = RunningMean()
        shares = self.shares(models)
        for model, share in zip(models, shares, strict=True):
            weighted.add(model, share)
        return weighted.result()

    def shares(self, models: list[Tensors]) -> list[float]:
        """α_k of each upload, summing to 1; uniform where any model coincides with the mean."""
        plain = RunningMean()
        for model in models:
            plain.add({name: model[name] for name in self._measured}, 1.0)
        centre = plain.result()
        distances = [self._distance(model, centre) for model in models]
        # A floor relative to the largest keeps one model that happens to be the mean from being the only one.
        floor = max(distances) * 1e-6
        if floor == 0.0:
            return [1.0 / len(models)] * len(models)
        inverse = [1.0 / max(d, floor) for d in distances]
        return [value / sum(inverse) for value in inverse]

    @torch.no_grad()
    def _distance(self, model: Tensors, centre: Tensors) -> float:
        total = 0.0
        for name, middle in centre.items():
            gap = model[name].float() - middle.float()
            total += float((gap.abs() if self._p == 1 else gap.square()).sum(dtype=torch.float64))
        return total if self._p == 1 else total**0.5


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> InverseDistance:
    own = cast("IDAConfig", config)
    return InverseDistance(initial, layout, own.statistics, own.p)


ALGORITHMS.register("ida")(
    Algorithm(
        name="ida",
        title="inverse distance aggregation",
        paper="Yeganeh et al., DART at MICCAI 2020",
        equation="w ← Σ_k α_k w_k,  α_k ∝ 1 / ‖w̄ - w_k‖",
        config=IDAConfig,
        site=lambda config: PlainSite(),
        coordinator=_coordinator,
        facts=Facts(
            travels="the model, both ways",
            stays="images, labels, optimiser state",
            memory="K + 3 models for K sites",
            cost="1 × local training",
        ),
        note=lambda config, sites: (
            "with two sites both lie equally far from their mean, which IDA then is" if sites == 2 else ""
        ),
    )
)
