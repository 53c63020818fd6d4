from __future__ import annotations

import numpy as np
import pytest

from morphfed.evaluation.calibration import calibration_bins, risk_coverage_points
from morphfed.evaluation.metrics import ece, risk_coverage
from morphfed.evaluation.predictions import Predictions


def make(n: int, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    ids = np.char.mod("%05d", np.arange(n))
    raw = rng.dirichlet(np.ones(3) * 0.5, n)
    labels = np.array([rng.choice(3, p=row) for row in raw], dtype=np.int64)
    return Predictions(("a", "b", "c"), ids, labels, raw, ids, "image")


def test_bins_hold_every_image_once_and_give_the_calibration_error() -> None:
    p = make(400)
    bins = calibration_bins(p)
    assert sum(b["n"] for b in bins) == 400
    assert [b["confidence"] for b in bins] == sorted(b["confidence"] for b in bins)
    gaps = sum(b["n"] / 400 * abs(b["accuracy"] - b["confidence"]) for b in bins)
    assert gaps == pytest.approx(float(ece(p.labels, p.probabilities)), abs=1e-6)


def test_bins_by_hand() -> None:
    probabilities = np.array([[0.5, 0.5], [0.52, 0.48], [1.0, 0.0], [0.99, 0.01]])
    p = Predictions(("a", "b"), list("wxyz"), np.array([0, 1, 0, 0]), probabilities, list("wxyz"), "image")
    low, high = calibration_bins(p)
    assert low == {"confidence": pytest.approx(0.51), "accuracy": 0.5, "n": 2}
    assert high == {"confidence": pytest.approx(0.995), "accuracy": 1.0, "n": 2}


def test_few_points_are_all_kept() -> None:
    p = make(20)
    coverage, risk = risk_coverage(p.labels, p.probabilities)
    points = risk_coverage_points(p)
    assert [q["coverage"] for q in points] == pytest.approx(coverage.tolist())
    assert [q["risk"] for q in points] == pytest.approx(risk.tolist())


@pytest.mark.parametrize("n", [51, 200, 1777])
def test_many_points_are_thinned_evenly_and_keep_both_ends(n: int) -> None:
    p = make(n)
    coverage, risk = risk_coverage(p.labels, p.probabilities)
    exact = {float(c): float(r) for c, r in zip(coverage, risk, strict=True)}
    points = risk_coverage_points(p)
    assert 40 <= len(points) <= 50
    assert points[0]["coverage"] == coverage[0]
    assert points[-1] == {"coverage": 1.0, "risk": pytest.approx((p.predicted != p.labels).mean())}
    assert all(exact[q["coverage"]] == q["risk"] for q in points)
    assert np.diff([q["coverage"] for q in points]).max() < 0.05


def test_no_images_no_points() -> None:
    empty = Predictions(("a", "b"), [], [], np.zeros((0, 2)), [], "image")
    assert calibration_bins(empty) == []
    assert risk_coverage_points(empty) == []
