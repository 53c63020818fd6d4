"""Points of the reliability diagram and of the risk–coverage curve, small enough to print and to store."""

from __future__ import annotations

import numpy as np

from morphfed.evaluation.metrics import CALIBRATION_BINS, confidence_bins, risk_coverage
from morphfed.evaluation.predictions import Predictions

RISK_POINTS = 50


def calibration_bins(predictions: Predictions) -> list[dict[str, float | int]]:
    """Mean confidence, accuracy and count in each bin that holds images, lowest confidence first.

    The bins are those of :func:`morphfed.evaluation.metrics.ece`, so the diagram's gaps weighted by ``n``
    give that number.
    """
    if not len(predictions):
        return []
    confidence = predictions.probabilities.max(axis=1).astype(np.float64)
    right = predictions.predicted == predictions.labels
    where = confidence_bins(confidence)
    points: list[dict[str, float | int]] = []
    for number in range(CALIBRATION_BINS):
        inside = where == number
        if inside.any():
            points.append(
                {
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                    "n": int(inside.sum()),
                }
            )
    return points


def risk_coverage_points(predictions: Predictions, most: int = RISK_POINTS) -> list[dict[str, float]]:
    """Risk at rising coverage, at most ``most`` points; the first and the last (coverage 1) are always kept.

    Thinned at even steps of coverage, so a long run of equally sure images costs no points elsewhere.
    """
    if not len(predictions):
        return []
    coverage, risk = risk_coverage(predictions.labels, predictions.probabilities)
    if len(coverage) > most:
        targets = np.linspace(coverage[0], 1.0, most)
        kept = np.unique(np.clip(np.searchsorted(coverage, targets - 1e-12), 0, len(coverage) - 1))
        coverage, risk = coverage[kept], risk[kept]
    return [{"coverage": float(c), "risk": float(r)} for c, r in zip(coverage, risk, strict=True)]
