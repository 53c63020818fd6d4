"""Krum and Multi-Krum: the model, or the models, that lie closest to the others.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine learning with adversaries: Byzantine tolerant gradient descent.
NeurIPS 2017, section 4: the score of upload i is the sum of its squared distances to its K - f - 2 nearest uploads;
Krum takes the upload with the lowest score, Multi-Krum the mean of the m lowest. K ≥ 2f + 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Facts
from morphfed.algorithms.fedavg import PlainSite
from morphfed.algorithms.gather import Gathering, GatheringConfig, Statistics
from morphfed.algorithms.mean import RunningMean
from morphfed.core.errors import FederationError
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 2**20
"""Coordinates whose differences are held at once for all uploads."""


class KrumConfig(GatheringConfig):
    """Keys of Krum."""

    statistics: Statistics = Field(
        "same", description="running means and variances. same: of the chosen models; mean: of all, n_k / n"
    )
    f: int = Field(0, ge=0, description="f, sites that may be wrong in any way; needs 2f + 3 sites")


class MultiKrumConfig(KrumConfig):
    """Keys of Multi-Krum."""

    m: int = Field(0, ge=0, description="m, models that are averaged; 0: K - f")


class Krum(Gathering):
    """The global model is the unweighted mean of the ``m`` uploads with the lowest scores.

    Args:
        initial, layout, statistics: see :class:`Gathering`.
        f: sites that may be wrong.
        m: models to average; 0: K - f.
    """

    def __init__(self, initial: Tensors, layout: Layout, statistics: Statistics, *, f: int, m: int) -> None:
        super().__init__(initial, layout, statistics)
        self._f, self._m = f, m
        self._scored = [name for name in initial if name in layout.parameters]

    def aggregate(self, models: list[Tensors], sites: list[str]) -> Tensors:
        """Mean of the chosen uploads; distances are those of weights alone, whatever is done with statistics."""
        count = self._m or len(models) - self._f
        if len(models) < 2 * self._f + 3 or count > len(models):
            raise FederationError(
                f"Krum with f = {self._f} and m = {count} was asked for with {len(models)} uploads "
                f"({', '.join(sites)}), expected at least {max(2 * self._f + 3, count)}.",
                fix="lower f or m, let more sites take part, or use fedmedian.",
            )
        scores = krum_scores(squared_distances([{n: m[n] for n in self._scored} for m in models]), self._f)
        chosen = sorted(range(len(models)), key=lambda k: (scores[k].item(), sites[k]))[:count]
        mean = RunningMean()
        for k in sorted(chosen):
            mean.add(models[k], 1.0)
        return mean.result()


@torch.no_grad()
def squared_distances(models: list[Tensors]) -> Tensor:
    """Squared Euclidean distances between models, float64 ``(K, K)``.

    The products are those of differences from the first model: of the models themselves they would nearly cancel.
    """
    gram = torch.zeros(len(models), len(models), dtype=torch.float64)
    for name, first in models[0].items():
        columns = [model[name].reshape(-1) for model in models]
        for start in range(0, first.numel(), CHUNK):
            base = columns[0][start : start + CHUNK].float()
            rows = torch.stack([column[start : start + CHUNK].float() - base for column in columns])
            gram += (rows @ rows.T).to("cpu", torch.float64)
    norms = gram.diagonal()
    return (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=0.0)


def krum_scores(distances: Tensor, f: int) -> Tensor:
    """Sum of the K - f - 2 smallest distances of each upload to the others, float64 ``(K,)``.

    Args:
        distances: squared, ``(K, K)``, K ≥ 2f + 3.
        f: sites that may be wrong.
    """
    others = distances.clone().fill_diagonal_(torch.inf)
    return others.sort(dim=1).values[:, : len(distances) - f - 2].sum(dim=1)


def _krum(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> Krum:
    own = cast("KrumConfig", config)
    return Krum(initial, layout, own.statistics, f=own.f, m=1)


def _multi(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> Krum:
    own = cast("MultiKrumConfig", config)
    return Krum(initial, layout, own.statistics, f=own.f, m=own.m)


_FACTS = Facts(
    travels="the model, both ways",
    stays="images, labels, optimiser state",
    memory="K + 1 models for K sites",
    cost="1 × local training",
)

ALGORITHMS.register("krum")(
    Algorithm(
        name="krum",
        title="the upload nearest to the others",
        paper="Blanchard et al., NeurIPS 2017",
        equation="w ← w_i,  i = argmin_k Σ_{K-f-2 nearest l} ‖w_k - w_l‖²",
        config=KrumConfig,
        site=lambda config: PlainSite(),
        coordinator=_krum,
        facts=_FACTS,
    )
)

ALGORITHMS.register("multikrum")(
    Algorithm(
        name="multikrum",
        title="mean of the uploads nearest to the others",
        paper="Blanchard et al., NeurIPS 2017",
        equation="w ← mean of the m models with the lowest Krum scores",
        config=MultiKrumConfig,
        site=lambda config: PlainSite(),
        coordinator=_multi,
        facts=_FACTS,
    )
)
