"""Over seeds and models: the ``summary``, ``cross_site`` and ``comparisons`` blocks of ``results.json``.

Each function takes units, or :class:`Scores` made of them once so that the resampling is not repeated;
``resamples`` and ``seed`` are of use with units only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from morphfed.core.errors import DataError
from morphfed.evaluation.bootstrap import RESAMPLES, interval
from morphfed.evaluation.metrics import Floats
from morphfed.evaluation.scores import (
    GAP_TRAINING,
    MEAN_LOCAL,
    OWN_SITE,
    WORST_TRAINING,
    Scores,
    UnitPredictions,
    Vectors,
    known,
    made_of_locals,
)

__all__ = [
    "Scores",
    "UnitPredictions",
    "compare_pairs",
    "cross_site_matrix",
    "default_pairs",
    "holm",
    "p_value",
    "paired",
    "summarise",
]

Units = Sequence[UnitPredictions] | Vectors

SMALLEST_P = 1e-5
"""No p-value is given below it: so far out, resamples of few images are not normal."""

_ROUNDING = 1e-12  # equal sums of fractions, added in another order, differ by less than this


def _scores(units: Units, metrics: Sequence[str] | None, resamples: int, seed: int) -> Vectors:
    if isinstance(units, Vectors):
        return units
    return Scores(units, metrics=metrics, resamples=resamples, seed=seed)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def summarise(units: Units, *, resamples: int = RESAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """Each model's seed-mean in each scope and metric, with its spread over seeds and its interval.

    ``sd`` is the sample standard deviation over seeds (how much training varies; null with one seed); ``low``
    and ``high`` are the bootstrap interval of the seed-mean (how much the choice of test images varies it).
    A model is left out of a scope in which it is not defined (``local (own site)`` at a held-out site).
    """
    scores = _scores(units, None, resamples, seed)
    rows = []
    for model in scores.all_models:
        seeds = scores.seeds(model)
        for scope in scores.scopes:
            for metric in scores.metrics:
                row = _summary_row(scores, model, scope, metric, seeds)
                if row is not None:
                    rows.append(row)
    return rows


def _summary_row(scores: Vectors, model: str, scope: str, metric: str, seeds: Sequence[int]) -> dict[str, Any] | None:
    vector = scores.seed_mean(model, scope, metric, seeds)
    if vector is None:
        return None
    each = [v[0] for s in seeds if (v := scores.vector(model, scope, metric, s)) is not None]
    mean = _number(vector[0])
    low, high = None, None
    if mean is not None:
        # Noise alone widens a calibration error, worsens the worst site and opens a gap.
        inflated = metric == "ece" or scope in (WORST_TRAINING, GAP_TRAINING)
        low, high = interval(
            vector[1:],
            scores.clusters_of(scope)[0],
            inflated=mean if inflated else None,
            most=scores.largest(metric),
        )
    return {
        "model": model,
        "arm": scores.arm(model),
        "scope": scope,
        "metric": metric,
        "mean": mean,
        "sd": _number(np.std(each, ddof=1)) if len(each) > 1 else None,
        "low": low,
        "high": high,
        "seeds": len(seeds),
    }


def cross_site_matrix(
    units: Sequence[UnitPredictions] | Scores, metric: str = "balanced_accuracy"
) -> dict[str, Any] | None:
    """Local models: trained on row, tested on column, mean over seeds; None without local models.

    Of several arms of local models the first of the study is shown.
    """
    scores = units if isinstance(units, Scores) else Scores(units, metrics=[metric], resamples=0)
    if not scores.locals:
        return None
    models = next(iter(scores.locals.values()))
    rows = [site for site in scores.sites if site in models]
    values = []
    for row in rows:
        model = models[row]
        vectors = [scores.seed_mean(model, c, metric, scores.seeds(model)) for c in scores.sites]
        values.append([None if v is None else _number(v[0]) for v in vectors])
    return {"metric": metric, "rows": rows, "columns": list(scores.sites), "values": values}


def default_pairs(units: Sequence[UnitPredictions]) -> list[tuple[str, str]]:
    """The comparisons that a study states by itself, in the order of the units.

    Every federated model against the centralised one, against each site's own local model, and against the
    mean local model; then every federated model against each earlier one. ``(a, b)`` stands for a − b.
    """
    local_arms = dict.fromkeys(u.arm for u in units if u.own_site is not None)
    pooled = dict.fromkeys(u.model for u in units if u.centralised)
    federated = list(dict.fromkeys(u.model for u in units if u.own_site is None and not u.centralised))
    against = list(pooled)
    against += [made_of_locals(kind, arm) for arm in local_arms for kind in (OWN_SITE, MEAN_LOCAL)]
    pairs = [(a, b) for a in federated for b in against]
    return pairs + [(a, b) for i, a in enumerate(federated) for b in federated[:i]]


def compare_pairs(
    units: Units,
    pairs: Sequence[tuple[str, str]] | None = None,
    metrics: Sequence[str] | None = None,
    scopes: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Paired differences ``a − b`` with intervals, p-values and Holm's correction.

    Both models meet the same resampled patients (or images) and their means over the seeds that both have are
    taken inside each resample. The p-value centres the resampled differences on 0 and counts those at
    least as large as the observed one, two-sided (:func:`p_value`). **Family** of the Holm
    correction: all pairs within one metric and one scope, which is one question ("which models differ
    here?").

    Args:
        pairs: by default :func:`default_pairs` of the units; without units they must be given.
        metrics: by default those of ``Vectors.compared``: of classes balanced accuracy and macro-F1, masked too where a
            site lacks classes.
        scopes: by default all but the gap between sites.

    Returns:
        one entry a pair, metric and scope in which both models and the metric are defined.

    Raises:
        DataError: an unknown model, metric or scope, or a pair without a common seed.
    """
    scores = _scores(units, metrics, resamples, seed)
    if pairs is None:
        if not isinstance(scores, Scores):
            raise ValueError("scores without units need the pairs to compare")
        pairs = default_pairs(scores.units)
    if metrics is None:
        metrics = scores.compared
    scopes = [s for s in scores.scopes if s != GAP_TRAINING] if scopes is None else scopes
    known("model", [m for pair in pairs for m in pair], scores.all_models)
    known("metric", metrics, scores.metrics)
    known("scope", scopes, scores.scopes)
    result = []
    for metric in metrics:
        for scope in scopes:
            family = [e for a, b in pairs if (e := _compare(scores, a, b, metric, scope)) is not None]
            for entry, adjusted in zip(family, holm([e["p"] for e in family]), strict=True):
                entry["p_holm"] = adjusted
            result += family
    return result


def _compare(scores: Vectors, a: str, b: str, metric: str, scope: str) -> dict[str, Any] | None:
    seeds = sorted(set(scores.seeds(a)) & set(scores.seeds(b)))
    if not seeds:
        raise DataError(
            f"'{a}' and '{b}' have no seed in common, so they cannot be paired.",
            fix="train both with the same seeds.",
        )
    first, second = (scores.seed_mean(m, scope, metric, seeds) for m in (a, b))
    clusters, unit = scores.clusters_of(scope)
    if first is None or second is None or (difference := paired(first, second, clusters)) is None:
        return None
    return {
        "a": a,
        "b": b,
        "metric": metric,
        "scope": scope,
        **difference,
        "p_holm": None,
        "resamples": scores.resamples,
        "seeds": len(seeds),
        "clusters": clusters,
        "cluster_unit": unit,
    }


def paired(first: Floats, second: Floats, clusters: int) -> dict[str, float | None] | None:
    """``difference``, ``low``, ``high`` and ``p`` of ``first − second``; None where the difference is not defined.

    Args:
        first, second: vectors ``(1 + B,)`` over the same resamples.
        clusters: how many were resampled.
    """
    difference = first - second
    if not np.isfinite(difference[0]):
        return None
    observed = float(difference[0])
    low, high = interval(difference[1:], clusters)
    p = None if low is None else p_value(observed, difference[1:])
    return {"difference": observed, "low": low, "high": high, "p": p}


def p_value(observed: float, replicates: Floats) -> float:
    """Two-sided achieved significance level of a difference, from its bootstrap replicates ``(B,)``.

    ``(1 + #{|d_b − observed| ≥ |observed|}) / (B + 1)`` (Efron and Tibshirani 1993, section 16.4; the
    added ones keep a p-value from being 0, Davison and Hinkley 1997, chapter 4).

    Where no replicate is as extreme, counting only says ``p < 1 / (B + 1)``, which Holm's correction of a study of many
    arms can never bring below .05. There the tail of the normal with the replicates' spread is taken, down to
    ``SMALLEST_P``.
    """
    defined = replicates[~np.isnan(replicates)]
    extreme = np.abs(defined - observed) >= abs(observed) - _ROUNDING
    counted = float((1 + extreme.sum()) / (len(defined) + 1))
    spread = float(defined.std()) if len(defined) else 0.0
    if extreme.any() or spread < _ROUNDING:
        return counted
    return min(counted, max(SMALLEST_P, math.erfc(abs(observed) / spread / math.sqrt(2))))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of one family (Holm 1979); a null p-value stays null and does not count."""
    order = sorted((value, k) for k, value in enumerate(p) if value is not None)
    result: list[float | None] = [None] * len(p)
    reached = 0.0
    for rank, (value, k) in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * value))
        result[k] = reached
    return result
