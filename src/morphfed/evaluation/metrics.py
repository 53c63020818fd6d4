"""Classification metrics as pure functions, computed for many bootstrap weightings at once.

Shapes used throughout: N images, C classes, B weightings. ``weights`` is ``None`` (every image once),
``(N,)`` or ``(N, B)``, not negative; the result has the shape ``weights.shape[1:]``, so one number or B of
them. An integer weight w means exactly what w copies of the image would. Images come first so that every
gather and running sum goes through whole rows of B numbers that lie beside each other in memory.

What cannot be computed is NaN here and ``null`` in ``results.json``, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

METRICS = ("balanced_accuracy", "macro_f1", "accuracy", "auroc", "ece", "aurc")
"""Names of all metrics of a site, in the order of the report."""

HIGHER_IS_BETTER: Mapping[str, bool] = MappingProxyType({m: m not in ("ece", "aurc") for m in METRICS})
"""Whether more of a metric is better; the calibration error and the area under the risk curve are losses."""

CALIBRATION_BINS = 15


def _weights(weights: NDArray[np.generic] | None, n: int) -> Floats:
    return np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """``numerator / denominator``, NaN where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    nan = np.full(shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=nan, where=np.asarray(denominator) != 0))


def mean_of_defined(values: Floats) -> Floats:
    """Mean over axis 0 of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0, dtype=np.float64))


def confusion(labels: Labels, predicted: Labels, classes: int, weights: Floats | None = None) -> Floats:
    """Weighted counts, rows truth and columns prediction: ``(C, C)``, or ``(C, C, B)``."""
    w = _weights(weights, len(labels))
    cell = np.zeros((classes * classes, len(labels)))
    cell[labels * classes + predicted, np.arange(len(labels))] = 1.0
    return np.asarray(cell @ w).reshape(classes, classes, *w.shape[1:])


def _diagonal(matrix: Floats) -> Floats:
    return np.asarray(np.einsum("cc...->c...", matrix))


def recall(matrix: Floats) -> Floats:
    """Recall of each class ``(C, ...)`` from a confusion matrix; NaN for a class without images."""
    return ratio(_diagonal(matrix), matrix.sum(axis=1))


def precision(matrix: Floats) -> Floats:
    """Precision of each class ``(C, ...)``; NaN for a class that was never predicted."""
    return ratio(_diagonal(matrix), matrix.sum(axis=0))


def f1(matrix: Floats) -> Floats:
    """F1 of each class ``(C, ...)``, ``2 TP / (2 TP + FP + FN)``; NaN for a class without images."""
    truth = matrix.sum(axis=1)
    value = ratio(2 * _diagonal(matrix), truth + matrix.sum(axis=0))
    return np.where(truth > 0, value, np.nan)


def balanced_accuracy(matrix: Floats) -> Floats:
    """Mean recall over the classes present in the truth.

    Agrees with ``sklearn.metrics.balanced_accuracy_score``.
    """
    return mean_of_defined(recall(matrix))


def macro_f1(matrix: Floats) -> Floats:
    """Mean F1 over the classes present in the truth.

    A class that is only predicted gets no term of its own; its images are missing from the recall of their
    true classes. Agrees with ``sklearn.metrics.f1_score(labels=present, average="macro", zero_division=0)``.
    """
    return mean_of_defined(f1(matrix))


def accuracy(matrix: Floats) -> Floats:
    """Share of images whose most probable class is the true one."""
    return ratio(_diagonal(matrix).sum(axis=0), matrix.sum(axis=(0, 1)))


def class_auroc(labels: Labels, scores: NDArray[np.floating], weights: Floats | None = None) -> Floats:
    """Area under the ROC curve of each class against the rest, ``(C, ...)``; ties count one half.

    ``scores`` ``(N, C)`` rank each class's images: probabilities, or log-odds, which do not tie where those round to
    0 or 1 (:attr:`morphfed.evaluation.predictions.Predictions.ranking`).

    NaN for a class without images, or without images of any other class.
    """
    w = _weights(weights, len(labels))
    result = np.full((scores.shape[1], *w.shape[1:]), np.nan)
    for c in np.unique(labels):
        positive, negative = np.flatnonzero(labels == c), np.flatnonzero(labels != c)
        negative = negative[np.argsort(scores[negative, c], kind="stable")]
        below = np.zeros((len(negative) + 1, *w.shape[1:]))
        np.cumsum(w[negative], axis=0, out=below[1:])
        sure = below[np.searchsorted(scores[negative, c], scores[positive, c], side="left")]
        tied = below[np.searchsorted(scores[negative, c], scores[positive, c], side="right")]
        wins = np.einsum("n...,n...->...", w[positive], sure + tied)
        result[c] = ratio(wins, 2 * w[positive].sum(axis=0) * below[-1])
    return result


def auroc(labels: Labels, scores: NDArray[np.floating], weights: Floats | None = None) -> Floats:
    """Mean over the classes present of the one-vs-rest AUROC; NaN with fewer than two classes present."""
    return mean_of_defined(class_auroc(labels, scores, weights))


def confidence_bins(confidence: NDArray[np.floating]) -> Labels:
    """Bin of each confidence among 15 of equal width, ``((m-1)/15, m/15]``."""
    scaled = np.asarray(confidence, dtype=np.float64) * CALIBRATION_BINS
    return np.clip(np.ceil(scaled).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)


def ece(labels: Labels, probabilities: NDArray[np.floating], weights: Floats | None = None) -> Floats:
    """Expected calibration error of the most probable class, 15 bins of equal width (Guo et al. 2017, eq. 3).

    ``sum over bins of |mean confidence − accuracy| × share of images in the bin``, in [0, 1].
    """
    w = _weights(weights, len(labels))
    if not len(labels):
        return np.full(w.shape[1:], np.nan)
    confidence = probabilities.max(axis=1).astype(np.float64)
    excess = confidence - (probabilities.argmax(axis=1) == labels)
    rows = np.zeros((CALIBRATION_BINS, len(labels)))
    rows[confidence_bins(confidence), np.arange(len(labels))] = excess
    return ratio(np.abs(rows @ w).sum(axis=0), w.sum(axis=0))


def risk_coverage(
    labels: Labels, probabilities: NDArray[np.floating], weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """Error rate among the images a model is surest of, for each threshold on its confidence.

    Returns:
        coverage and risk, each ``(G, ...)`` for the G distinct confidences, highest first. Images of equal
        confidence are accepted together. Where a weighting has accepted nothing yet, risk is NaN.
    """
    w = _weights(weights, len(labels))
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))[: len(labels)]
    sorted_w = w[order]
    wrong = (probabilities.argmax(axis=1) != labels)[order].astype(np.float64)
    accepted = np.cumsum(sorted_w, axis=0)[last]
    mistakes = np.cumsum(sorted_w * wrong.reshape(-1, *[1] * (w.ndim - 1)), axis=0)[last]
    return ratio(accepted, w.sum(axis=0)), ratio(mistakes, accepted)


def aurc(labels: Labels, probabilities: NDArray[np.floating], weights: Floats | None = None) -> Floats:
    """Area under the risk–coverage curve (Geifman et al. 2019): mean risk over all coverages."""
    if not len(labels):
        return np.full(_weights(weights, 0).shape[1:], np.nan)
    coverage, risk = risk_coverage(labels, probabilities, weights)
    steps = np.diff(coverage, axis=0, prepend=0.0)
    area = np.einsum("g...,g...->...", steps, np.nan_to_num(risk))
    return np.where(np.isnan(coverage[-1]), np.nan, area)


def measure(
    labels: Labels,
    probabilities: NDArray[np.floating],
    weights: Floats | None = None,
    metrics: tuple[str, ...] = METRICS,
    *,
    ranking: NDArray[np.floating] | None = None,
) -> dict[str, Floats]:
    """All of ``metrics`` by name, each of shape ``weights.shape[1:]``.

    AUROC ranks by ``ranking`` ``(N, C)``, by default the probabilities.

    Raises:
        KeyError: a name that is not in :data:`METRICS`.
    """
    matrix = confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1], weights)
    from_matrix = {"balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1, "accuracy": accuracy}
    from_scores = {"auroc": auroc, "ece": ece, "aurc": aurc}
    ranking = probabilities if ranking is None else ranking
    result = {}
    for name in metrics:
        if name in from_matrix:
            result[name] = from_matrix[name](matrix)
        else:
            result[name] = from_scores[name](labels, ranking if name == "auroc" else probabilities, weights)
    return result
