from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from morphfed.evaluation.bootstrap import (
    cluster_codes,
    in_order,
    interval,
    proportion_interval,
    replicate,
    replicate_metrics,
    resampled_weights,
)
from morphfed.evaluation.metrics import METRICS, measure
from morphfed.evaluation.predictions import Predictions

NAMES = ("a", "b", "c", "d", "e")


def predictions(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], patients: NDArray[np.int64] | None = None
) -> Predictions:
    ids = np.char.mod("%05d", np.arange(len(labels)))
    clusters = ids if patients is None else np.char.mod("p%03d", patients)
    unit = "image" if patients is None else "patient"
    return Predictions(NAMES[: probabilities.shape[1]], ids, labels, probabilities, clusters, unit)


def random_predictions(n: int, classes: int = 5, patients: int | None = None, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    raw = rng.dirichlet(np.ones(classes), n)
    raw[np.arange(n), labels] += 0.3
    who = None if patients is None else rng.integers(0, patients, n)
    return predictions(labels, raw / raw.sum(axis=1, keepdims=True), who)


def test_clusters_are_drawn_whole_as_many_as_there_are() -> None:
    codes, count = cluster_codes(np.array(["q", "p", "q", "r", "p", "q"]))
    assert codes.tolist() == [1, 0, 1, 2, 0, 1]
    pieces = list(resampled_weights(codes, count, 500, np.random.default_rng(0)))
    weights = np.concatenate(pieces, axis=1)
    assert weights.shape == (6, 500)
    np.testing.assert_array_equal(weights[0], weights[2])
    np.testing.assert_array_equal(weights[1], weights[4])
    np.testing.assert_array_equal(weights[[0, 1, 3]].sum(axis=0), 3)
    # Multinomial(3; 1/3 each): mean 1, variance 3 · 1/3 · 2/3; 500 draws, four standard errors.
    assert weights[3].mean() == pytest.approx(1, abs=4 * np.sqrt(2 / 3 / 500))
    assert weights[3].var() == pytest.approx(2 / 3, abs=0.2)


def test_a_replicate_is_the_metric_of_the_drawn_images() -> None:
    p = in_order(random_predictions(40, patients=9))
    codes, count = cluster_codes(p.clusters)
    (weights,) = resampled_weights(codes, count, 5, np.random.default_rng(7))
    got = measure(p.labels, p.probabilities, weights)
    for b in range(5):
        rows = np.repeat(np.arange(40), weights[:, b].astype(int))
        expected = measure(p.labels[rows], p.probabilities[rows])
        for name in METRICS:
            assert got[name][b] == pytest.approx(float(expected[name])), name


def drawn_weights(p: Predictions, seed: int) -> NDArray[np.float64]:
    return replicate(p, lambda _, weights: {"weights": weights}, resamples=50, seed=seed)["weights"]


def test_same_images_same_resamples_whatever_the_order_and_the_model() -> None:
    p, q = random_predictions(60), random_predictions(60, seed=1)
    other_model = Predictions(p.classes, p.ids, p.labels, q.probabilities, p.clusters, "image")
    back = np.arange(60)[::-1]
    turned = Predictions(p.classes, p.ids[back], p.labels[back], p.probabilities[back], p.clusters[back], "image")
    np.testing.assert_array_equal(drawn_weights(other_model, 3), drawn_weights(p, 3))
    for name, values in replicate_metrics(turned, METRICS, resamples=50, seed=3).items():
        np.testing.assert_array_equal(values, replicate_metrics(p, METRICS, resamples=50, seed=3)[name])
    assert not np.array_equal(drawn_weights(p, 4), drawn_weights(p, 3))
    elsewhere = Predictions(
        p.classes, np.char.add("x", p.ids), p.labels, p.probabilities, np.char.add("x", p.clusters), "image"
    )
    assert not np.array_equal(drawn_weights(elsewhere, 3), drawn_weights(p, 3))


def test_long_test_sets_are_resampled_in_pieces() -> None:
    p = random_predictions(3000, classes=3)
    values = replicate_metrics(p, ("accuracy",), resamples=400)["accuracy"]
    share = float(measure(p.labels, p.probabilities)["accuracy"])
    assert values.shape == (400,)
    # Standard error of a proportion; the standard deviation of 400 draws is known to about 4 %.
    assert values.std() == pytest.approx(np.sqrt(share * (1 - share) / 3000), rel=0.15)
    assert len(np.unique(values)) > 50


def test_a_rare_class_that_a_resample_misses_is_left_out_of_its_mean() -> None:
    labels = np.array([0] * 20 + [1])
    probabilities = np.eye(2)[np.array([0] * 20 + [0])] * 0.8 + 0.1  # the one image of class 1 is missed
    drawn = replicate_metrics(predictions(labels, probabilities), ("balanced_accuracy",), resamples=2000)
    values, counts = np.unique(drawn["balanced_accuracy"], return_counts=True)
    assert values.tolist() == [0.5, 1.0]
    assert counts[1] / 2000 == pytest.approx((20 / 21) ** 21, abs=0.04)


def test_interval_by_hand_and_when_there_is_none() -> None:
    values = np.arange(1001) / 1000
    low, high = interval(values, clusters=10**9)
    assert (low, high) == (pytest.approx(0.025, abs=1e-6), pytest.approx(0.975, abs=1e-6))
    # K = 10: t(.975; 9) = 2.26216, × sqrt(10/9) = 2.38453, Φ(−2.38453) = 0.00855.
    assert interval(values, clusters=10)[0] == pytest.approx(0.00855, abs=2e-5)
    with_nan = np.where(np.arange(1001) < 400, np.nan, values)
    assert interval(with_nan, 10**9)[0] == pytest.approx(0.415, abs=1e-3)
    assert interval(np.where(np.arange(1001) < 600, np.nan, values), 100) == (None, None)
    assert interval(values, clusters=1) == (None, None)
    assert interval(np.empty(0), clusters=100) == (None, None)


def test_an_inflated_statistic_is_shifted_back_inside_its_range() -> None:
    values = 0.2 + np.arange(1001) / 5000  # mean .3, 95 %: .205 to .395
    low, high = interval(values, 10**9, inflated=0.27)
    assert (low, high) == (pytest.approx(0.145), pytest.approx(0.335))
    low, high = interval(values, 10**9, inflated=0.1)  # shift .4: nothing left above 0 but the estimate
    assert (low, high) == (0.0, pytest.approx(0.1))


def test_a_distance_has_no_largest_value() -> None:
    values = np.linspace(5.0, 15.0, 10_001)
    low, high = interval(values, 10**9, inflated=9.0, most=math.inf)  # mean 10, so shifted back by 2
    assert (low, high) == (pytest.approx(3.25, abs=1e-3), pytest.approx(12.75, abs=1e-3))


def test_wilson_interval_against_published_values() -> None:
    # Newcombe 1998, table I: 81/263 and 0/20, method 3.
    assert proportion_interval(81 / 263, 263) == (
        pytest.approx(0.2553, abs=1e-4),
        pytest.approx(0.3662, abs=1e-4),
    )
    assert proportion_interval(0.0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))


def coverage(truth: float, intervals: list[tuple[float | None, float | None]]) -> float:
    return float(np.mean([low is not None and low <= truth <= high for low, high in intervals]))  # type: ignore[operator]


def test_nominal_95_percent_covers_95_percent_of_simulated_test_sets() -> None:
    """500 test sets of 200 images with known recalls: standard error of the coverage 1 %."""
    rng = np.random.default_rng(11)
    recalls, labels = np.array([0.9, 0.75, 0.6]), np.repeat(np.arange(3), [100, 60, 40])
    truth = {"balanced_accuracy": 0.75, "accuracy": (0.9 * 100 + 0.75 * 60 + 0.6 * 40) / 200}
    found: dict[str, list[tuple[float | None, float | None]]] = {name: [] for name in truth}
    for _ in range(500):
        right = rng.random(200) < recalls[labels]
        predicted = np.where(right, labels, (labels + rng.integers(1, 3, 200)) % 3)
        p = predictions(labels, np.eye(3)[predicted])
        drawn = replicate_metrics(p, tuple(truth), resamples=500)
        for name, values in drawn.items():
            found[name].append(interval(values, 200))
    for name, expected in truth.items():
        assert 0.92 <= coverage(expected, found[name]) <= 0.98, name


def test_auroc_interval_covers_the_binormal_area() -> None:
    rng = np.random.default_rng(12)
    truth, labels, found = norm.cdf(1.2 / np.sqrt(2)), np.repeat([0, 1], 75), []
    for _ in range(500):
        chance = norm.cdf(rng.normal(size=150) + 1.2 * labels - 0.6)
        p = predictions(labels, np.stack([1 - chance, chance], axis=1))
        found.append(interval(replicate_metrics(p, ("auroc",), resamples=500)["auroc"], 150))
    assert 0.92 <= coverage(truth, found) <= 0.98


def test_images_of_one_patient_are_no_independent_images() -> None:
    """25 patients of 12 images, recall of a patient Beta(3, 1): the image bootstrap is far too sure."""
    rng = np.random.default_rng(13)
    patients = np.repeat(np.arange(25), 12)
    labels = np.tile([0, 1], 150)
    by_patient, by_image = [], []
    for _ in range(500):
        right = rng.random(300) < rng.beta(3, 1, 25)[patients]
        probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
        for found, who, count in ((by_patient, patients, 25), (by_image, None, 300)):
            p = predictions(labels, probabilities, who)
            values = replicate_metrics(p, ("balanced_accuracy",), resamples=500)["balanced_accuracy"]
            found.append(interval(values, count))
    assert 0.92 <= coverage(0.75, by_patient) <= 0.98
    assert coverage(0.75, by_image) < 0.85


def test_two_thousand_resamples_of_five_hundred_images_take_half_a_second_at_most() -> None:
    p = random_predictions(500)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        replicate_metrics(p, METRICS, resamples=2000)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5
