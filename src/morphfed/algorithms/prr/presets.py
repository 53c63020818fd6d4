"""PRR-FL: Fourier aggregation, deputy transfer and the prototype-aligned loss together, and any part of them.

``prr`` has the defaults of Chen et al., IEEE TMI 2022 (skin lesions), ``prr-2021`` those of MICCAI 2021: phases stay
private, the classifier is transformed as any layer, and the loss is the study's. What the papers set outside the
algorithm, a study sets: 5 local epochs, SGD without momentum, learning rate halved every 5 of 50 rounds.

``pfa-cpa`` is the combination to begin with, by our study of unlike class mixtures (docs/results.md): no deputies, and
a Fourier mean that keeps FedAvg's mean. It is ours, not the papers'.

``aggregation``, ``transfer`` and ``loss`` switch the three pieces, so that FedAvg, with PFA, with DET and with CPA are
four arms of one study. With ``aggregation = "mean"``, no transfer and the study's loss it is FedBN, and with
``norms = "travel"`` FedAvg, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, cast

from pydantic import Field

from morphfed.algorithms.base import (
    ALGORITHMS,
    Algorithm,
    AlgorithmConfig,
    CoordinatorHalf,
    Facts,
    SiteHalf,
    Specs,
    Sums,
)
from morphfed.algorithms.fedmedian import Median
from morphfed.algorithms.mean import Averaging
from morphfed.algorithms.prr import deputy, prototypes
from morphfed.algorithms.prr.deputy import DeputyConfig, DeputySite, two_models_note, unfit
from morphfed.algorithms.prr.fourier import Pfa, PfaConfig, travels
from morphfed.algorithms.prr.objective import Objective, PlainObjectiveSite
from morphfed.algorithms.prr.prototypes import (
    PrototypeConfig,
    PrototypeExchange,
    PrototypeObjective,
    prototype_specs,
)
from morphfed.algorithms.prr.spectrum import Phase
from morphfed.core.types import Spec, Tensors
from morphfed.models.layout import Layout


class PrrConfig(PfaConfig, DeputyConfig, PrototypeConfig):
    """Keys of PRR-FL: which pieces, and the keys of each."""

    aggregation: Literal["pfa", "mean", "median"] = Field("pfa", description="what is made of the uploads")
    transfer: bool = Field(True, description="DET: a personal model beside the one that travels")
    loss: Literal["cpa", "task"] = Field(
        "cpa",
        description="cpa: prototype-aligned, in place of the study's; task: train.loss (of masks train.mask_loss)",
    )
    phase: Phase = Field(
        "arithmetic", description="as in pfa; arithmetic as published in 2022, private as in 2021; complex keeps means"
    )
    symmetric: bool = Field(False, description="as in pfa; false as published")


class Prr2021Config(PrrConfig):
    """Keys of PRR-FL with the defaults of 2021."""

    loss: Literal["cpa", "task"] = Field("task", description="as in prr")
    phase: Phase = Field("private", description="as in pfa")
    classifier: Literal["rows", "matrix"] = Field("matrix", description="as in pfa")


class PfaCpaConfig(PrrConfig):
    """Keys of PRR-FL with the defaults of ``pfa-cpa``."""

    transfer: bool = Field(False, description="as in prr")
    phase: Phase = Field("complex", description="as in pfa")
    symmetric: bool = Field(True, description="as in pfa")


def _site(config: AlgorithmConfig) -> SiteHalf:
    keys = cast("PrrConfig", config)
    objective = PrototypeObjective(keys) if keys.loss == "cpa" else Objective()
    return DeputySite(keys, objective) if keys.transfer else PlainObjectiveSite(objective)


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> CoordinatorHalf:
    keys = cast("PrrConfig", config)
    rule: CoordinatorHalf
    if keys.aggregation == "pfa":
        rule = Pfa(initial, layout, keys)
    elif keys.aggregation == "mean":
        rule = Averaging(initial, weighting=keys.weighting)
    else:
        rule = Median(initial, layout, "mean")
    if keys.loss == "task":
        return rule
    specs = prototype_specs(layout, {name: Spec.of(tensor) for name, tensor in initial.items()})
    return PrototypeExchange(rule, specs, next(iter(initial.values())).device)


def _uploads(config: AlgorithmConfig, layout: Layout, specs: Specs) -> Specs:
    """The model, and prototypes where the loss needs them."""
    return {**specs, **(prototype_specs(layout, specs) if cast("PrrConfig", config).loss == "cpa" else {})}


def _sums(config: AlgorithmConfig) -> Sums:
    keys = cast("PrrConfig", config)
    if keys.aggregation == "mean" and keys.loss == "task":
        return Sums(keys.weighting)
    if keys.loss == "cpa":
        return Sums(None, "loss = 'cpa' compares the mean features of each site by itself")
    return Sums(None, f"aggregation = '{keys.aggregation}' looks at each site's upload by itself")


def _passes(config: AlgorithmConfig, local_epochs: int) -> int:
    return local_epochs * (2 if cast("PrrConfig", config).transfer else 1)


def _note(config: AlgorithmConfig, sites: int) -> str:
    return two_models_note(config, sites) if cast("PrrConfig", config).transfer else ""


def _unfit(config: AlgorithmConfig, task: str) -> str:
    keys = cast("PrrConfig", config)
    if task in ("mil", "survival") and keys.loss == "cpa":
        return "loss = 'cpa' compares mean features of classes, one vector an image; bags take loss = 'task'"
    return unfit(config, task) if keys.transfer else ""


_OF_MASKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"segmentation": MappingProxyType({**deputy.OF_MASKS["segmentation"], **prototypes.OF_MASKS})}
)


def _preset(name: str, title: str, paper: str, config: type[PrrConfig]) -> Algorithm:
    return Algorithm(
        name=name,
        title=title,
        paper=paper,
        equation="d_k ← PFA({d_j})_k;  p_k and d_k teach each other (DET);  L = -Σ_c γ_c y_c log p̂_c (CPA)",
        config=config,
        site=_site,
        coordinator=_coordinator,
        facts=Facts(
            travels="the deputy without its normalisation layers, both ways; for cpa class counts once, each round "
            "C × D mean features up, twice as many numbers down",
            stays="images, labels, optimiser state, the personal model, normalisation with its running statistics",
            memory="with pfa K + 2 models for K sites and the spectra of one layer; with mean 2; a site 2 networks",
            cost="2 × local training, and a prediction of the validation part by both models before each pass but one",
        ),
        travels=travels,
        uploads=_uploads,
        newcomer=lambda config: (
            "the mean (median) of the deputies; where norms stay, with those that training started from and "
            "running statistics re-estimated on the newcomer's own unlabelled images"
        ),
        passes=_passes,
        note=_note,
        unfit=_unfit,
        defaults=_OF_MASKS,
        counts=lambda keys: cast("PrrConfig", keys).loss == "cpa",
        sums=_sums,
    )


ALGORITHMS.register("prr")(
    _preset("prr", "personalised retrogress-resilient federation", "Chen et al., IEEE TMI 2022", PrrConfig)
)
ALGORITHMS.register("prr-2021")(
    _preset("prr-2021", "the same as first published", "Chen et al., MICCAI 2021", Prr2021Config)
)
ALGORITHMS.register("pfa-cpa")(
    replace(
        _preset("pfa-cpa", "PRR-FL without deputies, complex means", "after Chen et al., IEEE TMI 2022", PfaCpaConfig),
        equation="θ_k ← PFA({θ_j})_k;  L = -Σ_c γ_c y_c log p̂_c (CPA)",
        facts=Facts(
            travels="the model without its normalisation layers, both ways; class counts once, each round C × D mean "
            "features up, twice as many numbers down",
            stays="images, labels, optimiser state, normalisation with its running statistics",
            memory="K + 2 models for K sites and the spectra of one layer",
            cost="1 × local training",
        ),
    )
)
