"""What an option of the judging changed: the same models with it and without it, on the same resampled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from morphfed.core.errors import DataError
from morphfed.evaluation.bootstrap import RESAMPLES
from morphfed.evaluation.compare import holm, paired
from morphfed.evaluation.predictions import in_order
from morphfed.evaluation.scores import GAP_TRAINING, WORST_TRAINING, Scores, UnitPredictions

OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "views": ("balanced_accuracy", "macro_f1", "ece", "aurc"),
        "calibrate": ("ece",),  # a temperature moves no predicted class
        "adapt": ("balanced_accuracy", "macro_f1", "ece", "aurc"),
    }
)
"""Keys of ``evaluation`` whose change is measured in a study of classes, and in which metrics."""


def gains(
    option: str,
    treated: Sequence[UnitPredictions],
    plain: Sequence[UnitPredictions],
    metrics: Sequence[str],
    *,
    make: Callable[..., Scores] = Scores,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Paired differences *with the option − without it* of every model, metric and scope: the ``options`` block.

    As in the comparisons of arms, means over seeds and sites are taken inside each resample. **Family** of the Holm
    correction: the models within one metric and one scope. Noise makes every calibration error larger, the smaller one
    more than the other, so a difference of calibration errors is a little too near to 0, and its interval with it.

    Args:
        option: its name.
        treated, plain: units of the same models, seeds, sites and images.
        metrics: names of metrics.
        make: the task's scores.
        resamples: B.
        seed: of the resampling.

    Raises:
        DataError: the units differ in their models, seeds, sites or images.
    """
    if not treated:
        return []
    _check_paired(option, treated, plain)
    with_it, without = (make(u, metrics=metrics, resamples=resamples, seed=seed) for u in (treated, plain))
    found = []
    for metric in metrics:
        for scope in (s for s in with_it.scopes if s not in (WORST_TRAINING, GAP_TRAINING)):
            family = [e for m in with_it.all_models if (e := _gain(option, with_it, without, m, metric, scope))]
            for entry, adjusted in zip(family, holm([e["p"] for e in family]), strict=True):
                entry["p_holm"] = adjusted
            found += family
    return found


def _gain(option: str, treated: Scores, plain: Scores, model: str, metric: str, scope: str) -> dict[str, Any] | None:
    seeds = treated.seeds(model)
    after, before = (scores.seed_mean(model, scope, metric, seeds) for scores in (treated, plain))
    if after is None or before is None:
        return None
    clusters, unit = treated.clusters_of(scope)
    if (difference := paired(after, before, clusters)) is None:
        return None
    return {
        "option": option,
        "model": model,
        "arm": treated.arm(model),
        "metric": metric,
        "scope": scope,
        "without": float(before[0]),
        "with": float(after[0]),
        **difference,
        "p_holm": None,
        "resamples": treated.resamples,
        "seeds": len(seeds),
        "clusters": clusters,
        "cluster_unit": unit,
    }


def _check_paired(option: str, treated: Sequence[UnitPredictions], plain: Sequence[UnitPredictions]) -> None:
    before = {(u.model, u.seed): u for u in plain}
    after = {(u.model, u.seed): u for u in treated}
    fix = "compare predictions of the same study, trained with the same models, seeds and images."
    if set(before) != set(after):
        odd = ", ".join(f"{model} (seed {seed})" for model, seed in sorted(set(before) ^ set(after)))
        raise DataError(f"{option}: only with it or only without it there are {odd}.", fix=fix)
    for key, unit in after.items():
        other = before[key]
        if set(unit.sites) != set(other.sites):
            raise DataError(f"{option}: model '{unit.model}' was judged at other sites without it.", fix=fix)
        for site, found in unit.sites.items():
            if said := in_order(found).differs(in_order(other.sites[site])):
                raise DataError(
                    f"{option}: model '{unit.model}' was judged on other images at '{site}': {said}.", fix=fix
                )
