"""HistoFL: a weighted mean of models with noise in proportion to each tensor's spread.

Lu, Chen, Kong, Lipkova, Singh, Williamson, Chen, Mahmood: Federated learning for computational pathology on gigapixel
whole slide images. Medical Image Analysis 76:102298, 2022. Tensor by tensor, with ``ξ_k ~ N(0, std(W_k)² I)``:

* ``noise = "unweighted"``, as in the authors' code: ``W ← Σ_k (w_k W_k + α ξ_k)``. The weight does not act on it: the
  standard deviation is ``α √(Σ_k std_k²)``, with K sites alike ``α √K std``. The coordinator adds it, so it
  protects nobody from the coordinator.
* ``noise = "weighted"``: ``W ← Σ_k w_k (W_k + α ξ_k)``, standard deviation ``α √(Σ_k w_k² std_k²)``, K times less for
  equal weights. Each site adds its noise to what it uploads.

std is over the numbers of that tensor of that site. Biases get none, as published (``biases``), nor do running
statistics, which are no weights. The scale depends on private weights and nothing is clipped: there is no (ε, δ), and
the paper's words "differential privacy" do not hold in the formal sense. For noise with a guarantee see
``federation.noise``. α = 0 is FedAvg, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, cast

import torch
from pydantic import Field

from morphfed.algorithms.base import (
    ALGORITHMS,
    Algorithm,
    AlgorithmConfig,
    Answer,
    Facts,
    Outlook,
    SiteHalf,
    SiteWork,
    Sums,
)
from morphfed.algorithms.fedavg import FedAvgConfig, PlainSite
from morphfed.algorithms.mean import Averaging
from morphfed.core.seeding import derive
from morphfed.core.types import Tensors, Upload
from morphfed.models.layout import Layout
from morphfed.privacy.noise import is_bias, spread_noise


class HistoFLConfig(FedAvgConfig):
    """Keys of HistoFL."""

    alpha: float = Field(0.001, ge=0, description="α, noise over a tensor's standard deviation; the paper tries to 1")
    noise: Literal["unweighted", "weighted"] = Field(
        "unweighted",
        description="unweighted: Σ (w_k W_k + α ξ_k), as published, added by the coordinator; "
        "weighted: Σ w_k (W_k + α ξ_k), added by each site",
    )
    biases: bool = Field(False, description="noise on biases too; published: not")


def noised(layout: Layout, config: HistoFLConfig, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that get noise: trained weights, without biases unless asked for."""
    return [name for name in names if name in layout.parameters and (config.biases or not is_bias(name))]


class NoisySite(PlainSite):
    """Trains plainly, and adds noise to what it uploads.

    Args:
        config: α and what gets noise.
    """

    def __init__(self, config: HistoFLConfig) -> None:
        self._config = config

    @torch.no_grad()
    def _noise(self, work: SiteWork, tensors: Tensors) -> Tensors:
        names = noised(work.layout, self._config, tensors)
        seeds = {name: derive(work.seed, "histofl", work.site, work.round, name) for name in names}
        return {name: tensors[name] + spread_noise(tensors[name], self._config.alpha, seeds[name]) for name in names}

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """One round of plain training; the network stays as it was trained."""
        answer = super().train(work, download)
        return Answer(answer.tensors | self._noise(work, answer.tensors), answer.report)


class NoisyMean(Averaging):
    """FedAvg's mean, to which noise of every upload's spread is added.

    Args:
        initial: the global model's travelling tensors before round 1.
        layout: tells trained weights from statistics.
        config: the rule.
    """

    def __init__(self, initial: Tensors, layout: Layout, config: HistoFLConfig) -> None:
        super().__init__(initial, weighting=config.weighting)
        self._alpha, self._names = config.alpha, noised(layout, config, initial)
        self._seed = self._round = 0
        self._noise: Tensors = {}

    def plan(self, outlook: Outlook) -> None:
        """The seed of the draws."""
        self._seed = outlook.seed

    def begin_round(self, round_number: int, cohort: Iterable[str]) -> None:
        """Forget the last round's sums."""
        super().begin_round(round_number, cohort)
        self._round, self._noise = round_number, {}

    @torch.no_grad()
    def fold(self, upload: Upload) -> None:
        """Add one site's model to the mean, and α ξ_k to the noise."""
        super().fold(upload)
        for name in self._names:
            seed = derive(self._seed, "histofl", upload.site, self._round, name)
            drawn = spread_noise(upload.tensors[name], self._alpha, seed)
            self._noise[name] = self._noise[name] + drawn if name in self._noise else drawn

    @torch.no_grad()
    def end_round(self) -> None:
        """The mean and the noise become the global model."""
        super().end_round()
        self._model |= {name: self._model[name] + noise for name, noise in self._noise.items()}
        self._noise = {}


def _site(config: AlgorithmConfig) -> SiteHalf:
    keys = cast("HistoFLConfig", config)
    return NoisySite(keys) if keys.noise == "weighted" and keys.alpha else PlainSite()


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> Averaging:
    keys = cast("HistoFLConfig", config)
    if keys.noise == "unweighted" and keys.alpha:
        return NoisyMean(initial, layout, keys)
    return Averaging(initial, weighting=keys.weighting)


def _note(config: AlgorithmConfig, sites: int) -> str:
    keys = cast("HistoFLConfig", config)
    if not keys.alpha:
        return "alpha = 0: this is FedAvg"
    where = (
        "by the coordinator, unweighted as published: the coordinator itself sees the models without it"
        if keys.noise == "unweighted"
        else "by each site to its upload"
    )
    return f"noise of {keys.alpha:g} × each tensor's spread was added {where}; it gives no formal guarantee of privacy"


def _sums(config: AlgorithmConfig) -> Sums:
    keys = cast("HistoFLConfig", config)
    if keys.noise == "unweighted" and keys.alpha:
        return Sums(None, "the coordinator draws noise by each upload's spread; noise = 'weighted' draws at the site")
    return Sums(keys.weighting)


ALGORITHMS.register("histofl")(
    Algorithm(
        name="histofl",
        title="weighted mean with noise (HistoFL)",
        paper="Lu et al., Medical Image Analysis 2022",
        equation="W ← Σ_k (w_k W_k + α ξ_k),  ξ_k ~ N(0, std(W_k)²);  weighted: W ← Σ_k w_k (W_k + α ξ_k)",
        config=HistoFLConfig,
        site=_site,
        coordinator=_coordinator,
        facts=Facts(
            travels="the model, both ways; with noise = weighted noised at the site, without a formal guarantee",
            stays="images, labels, optimiser state",
            memory="2 models, whatever the number of sites; 3 with noise = unweighted",
            cost="1 × local training, and a draw for each weight",
        ),
        note=_note,
        sums=_sums,
    )
)
