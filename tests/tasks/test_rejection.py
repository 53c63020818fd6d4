"""The threshold of rejection against sorted confidences."""

from __future__ import annotations

import numpy as np
import pytest

from morphfed.tasks.rejection import THRESHOLDS, choose, counts_below

RNG = np.random.default_rng(0)
PROBABILITIES = RNG.dirichlet(np.full(5, 0.3), 400)
LABELS = np.zeros(400, dtype=np.int64)


def test_counts_by_comparison() -> None:
    expected = [(PROBABILITIES.max(axis=1) < t).sum() for t in THRESHOLDS]
    assert counts_below(LABELS, PROBABILITIES, THRESHOLDS).tolist() == expected


def test_the_histograms_of_two_sites_choose_the_quantile_of_their_pooled_images() -> None:
    parts = [
        counts_below(LABELS[:n], p, THRESHOLDS) for n, p in ((150, PROBABILITIES[:150]), (250, PROBABILITIES[150:]))
    ]
    threshold, accepted = choose(np.sum(parts, axis=0), 400)
    sure = PROBABILITIES.max(axis=1)
    assert accepted == pytest.approx((sure >= threshold).mean())
    assert accepted >= 0.95
    next_one = THRESHOLDS[np.flatnonzero(threshold == THRESHOLDS)[0] + 1]
    assert (sure >= next_one).mean() < 0.95
    assert threshold <= np.quantile(sure, 0.05, method="higher") <= next_one


def test_all_sure_and_all_unsure() -> None:
    assert choose(np.zeros(len(THRESHOLDS)), 10) == (THRESHOLDS[-1], 1.0)
    assert choose(np.full(len(THRESHOLDS), 10.0), 10) == (0.0, 1.0)
