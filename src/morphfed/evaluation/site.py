"""One model at one site: the ``sites{…}`` block of ``results.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from morphfed.evaluation import metrics as m
from morphfed.evaluation.bootstrap import (
    RESAMPLES,
    cluster_codes,
    interval,
    proportion_interval,
    replicate,
    replicate_metrics,
)
from morphfed.evaluation.calibration import calibration_bins, risk_coverage_points
from morphfed.evaluation.predictions import Predictions

Role = Literal["train", "held_out"]

FEW_IMAGES = 10
MOST_ERRORS = 12


def evaluate_site(
    predictions: Predictions,
    *,
    role: Role,
    resamples: int = RESAMPLES,
    seed: int = 0,
    errors: int = MOST_ERRORS,
) -> dict[str, Any]:
    """Everything that ``results.json`` says about one model at one site; ready for JSON.

    Args:
        predictions: may be empty; every metric is then null and ``notes`` says so.
        role: whether the site took part in training or was held out.
        resamples: bootstrap resamples behind the intervals.
        seed: of the resampling; models that are judged on the same images meet the same resamples.
        errors: how many of the most confident mistakes to list. The caller adds each one's ``image``.
    """
    present = predictions.present
    clusters = cluster_codes(predictions.clusters)[1]
    free, recalls = _metrics(predictions, clusters, resamples, seed)
    masked = None
    if present and len(present) < len(predictions.classes):
        masked = {"metrics": _metrics(predictions.masked(present), clusters, resamples, seed)[0]}
    matrix = m.confusion(predictions.labels, predictions.predicted, len(predictions.classes))
    return {
        "role": role,
        "n": len(predictions),
        "clusters": clusters,
        "cluster_unit": predictions.cluster_unit,
        "classes_present": list(present),
        "metrics": free,
        "masked": masked,
        "per_class": _per_class(predictions, matrix, recalls),
        "confusion": matrix.astype(np.int64).tolist(),
        "calibration": calibration_bins(predictions),
        "risk_coverage": risk_coverage_points(predictions),
        "errors": _mistakes(predictions, errors),
        "notes": notes_of_classes(predictions.classes, matrix, clusters, predictions.cluster_unit),
    }


def _metrics(
    predictions: Predictions, clusters: int, resamples: int, seed: int
) -> tuple[dict[str, dict[str, float | None]], m.Floats]:
    """Metrics with their intervals, and the resampled recall of each class ``(C, resamples)``."""
    p = predictions
    if not len(p):
        return {k: {"value": None, "low": None, "high": None} for k in m.METRICS}, np.zeros((len(p.classes), 0))

    def statistic(q: Predictions, weights: m.Floats) -> dict[str, m.Floats]:
        matrix = m.confusion(q.labels, q.predicted, len(q.classes), weights)
        return m.measure(q.labels, q.probabilities, weights, ranking=q.ranking) | {"recall": m.recall(matrix)}

    drawn = replicate(p, statistic, resamples=resamples, seed=seed)
    result: dict[str, dict[str, float | None]] = {}
    for name, value in m.measure(p.labels, p.probabilities, ranking=p.ranking).items():
        number = _number(value)
        low, high = None, None
        if number is not None and drawn:
            low, high = interval(drawn[name], clusters, inflated=number if name == "ece" else None)
        result[name] = {"value": number, "low": low, "high": high}
    return result, drawn.get("recall", np.zeros((len(p.classes), 0)))


def adaptation(
    plain: Predictions, adapted: Predictions, *, how: str, metric: str, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The ``adapted`` block: scores of a model that was adapted to the site, and how much that changed.

    Args:
        plain, adapted: predictions for the same images, without and with adaptation.
        how: what was adapted, as the study names it.
        metric: of the paired difference, adapted less plain, inside each resample.
        resamples: bootstrap resamples.
        seed: of the resampling.
    """
    clusters = cluster_codes(plain.clusters)[1]
    metrics = _metrics(adapted, clusters, resamples, seed)[0]
    values = [
        float(m.measure(p.labels, p.probabilities, metrics=(metric,), ranking=p.ranking)[metric])
        for p in (plain, adapted)
    ]
    before, after = (replicate_metrics(p, (metric,), resamples=resamples, seed=seed) for p in (plain, adapted))
    low, high = interval(after[metric] - before[metric], clusters) if before else (None, None)
    difference = {"metric": metric, "value": _number(values[1] - values[0]), "low": low, "high": high}
    return {"how": how, "metrics": metrics, "difference": difference}


def calibration_error(p: Predictions, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, float | None]:
    """ECE with its interval, as in a block's ``metrics``: of the probabilities before their calibration."""
    if not len(p):
        return {"value": None, "low": None, "high": None}
    value = float(m.ece(p.labels, p.probabilities))
    drawn = replicate_metrics(p, ("ece",), resamples=resamples, seed=seed)
    low, high = interval(drawn["ece"], cluster_codes(p.clusters)[1], inflated=value) if drawn else (None, None)
    return {"value": value, "low": low, "high": high}


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _per_class(p: Predictions, matrix: m.Floats, recalls: m.Floats) -> dict[str, dict[str, Any]]:
    recall, precision, f1 = m.recall(matrix), m.precision(matrix), m.f1(matrix)
    auroc = m.class_auroc(p.labels, p.ranking)
    result: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(p.classes):
        n = int(matrix[c].sum())
        low, high = None, None
        if n:
            low, high = proportion_interval(float(recall[c]), _effective_n(p, c, float(recall[c]), recalls[c]))
        result[name] = {
            "n": n,
            "recall": _number(recall[c]),
            "low": low,
            "high": high,
            "precision": _number(precision[c]),
            "f1": _number(f1[c]),
            "auroc": _number(auroc[c]),
        }
    return result


def _effective_n(p: Predictions, c: int, recall: float, recalls: m.Floats) -> float:
    """How many independent images the images of class ``c`` are worth (Korn and Graubard 1998).

    Images of one patient resemble each other: the variance of the recall between resamples says by how much.
    Where the recall is 0 or 1 there is no variance to judge by, and the number of patients is taken.
    """
    inside = p.labels == c
    n = float(inside.sum())
    if p.cluster_unit in ("image", "bag"):
        return n
    patients = float(len(np.unique(p.clusters[inside])))
    defined = recalls[~np.isnan(recalls)]
    variance = float(defined.var()) if len(defined) else 0.0
    if variance == 0.0 or recall in (0.0, 1.0):
        return patients
    return min(n, max(1.0, recall * (1 - recall) / variance))


def _mistakes(p: Predictions, most: int) -> list[dict[str, Any]]:
    predicted = p.predicted
    wrong = np.flatnonzero(predicted != p.labels)
    confidence = p.probabilities.max(axis=1)
    # Equal confidence: by path, so that the list does not depend on the order of the rows.
    order = np.lexsort((p.ids[wrong], -confidence[wrong]))[:most]
    return [
        {
            "path": str(p.ids[i]),
            "truth": p.classes[p.labels[i]],
            "predicted": p.classes[predicted[i]],
            "confidence": float(confidence[i]),
        }
        for i in wrong[order]
    ]


def notes_of_classes(classes: Sequence[str], matrix: m.Floats, clusters: int, unit: str) -> list[str]:
    """What a reader must know before trusting this block's intervals."""
    counts = matrix.sum(axis=1).astype(int)
    n = int(counts.sum())
    if not n:
        return ["No test images: nothing can be computed."]
    notes = []
    few = [f"{name} ({k})" for name, k in zip(classes, counts, strict=True) if 0 < k < FEW_IMAGES]
    if few:
        notes.append(
            f"Fewer than {FEW_IMAGES} test images of {', '.join(few)}: intervals of class means are too narrow."
        )
    if clusters < 2:
        notes.append(f"All images come from one {unit}: no interval can be given.")
    if n == int(np.trace(matrix)):
        notes.append(f"No mistake among {n} images: resampling cannot vary that; see the recalls.")
    return notes
