"""scikit-learn is the oracle, on random problems with ties, absent classes and weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from morphfed.evaluation import metrics as m


class Problem:
    def __init__(self, seed: int, n: int, classes: int, grid: int, absent: bool) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, classes - 1 if absent else classes, n)
        # A coarse grid makes ties within and between classes the rule.
        raw = rng.integers(1, grid + 1, (n, classes)).astype(float)
        raw[np.arange(n), self.labels] += rng.integers(0, 2, n)
        self.probabilities = raw / raw.sum(axis=1, keepdims=True)
        self.predicted = self.probabilities.argmax(axis=1)
        self.weights = rng.integers(0, 4, n).astype(float)
        self.weights[rng.integers(0, n)] = 2.0
        self.kept = self.weights > 0
        self.present = np.unique(self.labels[self.kept])
        self.classes = classes


problems = st.builds(
    Problem,
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 60),
    classes=st.integers(2, 6),
    grid=st.sampled_from([1, 2, 5, 1000]),
    absent=st.booleans(),
)


@given(problems)
@settings(max_examples=80, deadline=None)
def test_label_metrics_agree_with_scikit_learn(p: Problem) -> None:
    matrix = m.confusion(p.labels, p.predicted, p.classes, p.weights)
    truth, guess, w = p.labels[p.kept], p.predicted[p.kept], p.weights[p.kept]
    every = np.arange(p.classes)
    expected = sk.confusion_matrix(truth, guess, labels=every, sample_weight=w)
    np.testing.assert_array_equal(matrix, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes that are only predicted
        balanced = sk.balanced_accuracy_score(truth, guess, sample_weight=w)
        f1 = sk.f1_score(truth, guess, labels=p.present, average="macro", zero_division=0, sample_weight=w)
        recall, precision, each_f1 = (
            score(truth, guess, labels=every, average=None, zero_division=np.nan, sample_weight=w)
            for score in (sk.recall_score, sk.precision_score, sk.f1_score)
        )
    assert m.balanced_accuracy(matrix) == pytest.approx(balanced)
    assert m.macro_f1(matrix) == pytest.approx(f1)
    assert m.accuracy(matrix) == pytest.approx(sk.accuracy_score(truth, guess, sample_weight=w))
    np.testing.assert_allclose(m.recall(matrix), recall)
    np.testing.assert_allclose(m.precision(matrix), precision)
    np.testing.assert_allclose(m.f1(matrix)[p.present], each_f1[p.present])
    assert np.isnan(np.delete(m.f1(matrix), p.present)).all()


@given(problems)
@settings(max_examples=80, deadline=None)
def test_auroc_agrees_with_scikit_learn(p: Problem) -> None:
    got = m.class_auroc(p.labels, p.probabilities, p.weights)
    expected = np.full(p.classes, np.nan)
    if len(p.present) > 1:
        for c in p.present:
            expected[c] = sk.roc_auc_score(
                (p.labels == c)[p.kept], p.probabilities[p.kept, c], sample_weight=p.weights[p.kept]
            )
    np.testing.assert_allclose(got, expected, atol=1e-12)
    macro = m.auroc(p.labels, p.probabilities, p.weights)
    if len(p.present) > 1:
        assert macro == pytest.approx(np.nanmean(expected))
    else:
        assert np.isnan(macro)


def test_auroc_agrees_with_the_multiclass_score_of_scikit_learn() -> None:
    p = Problem(3, 400, 5, 1000, absent=False)
    expected = sk.roc_auc_score(p.labels, p.probabilities, multi_class="ovr", average="macro")
    assert m.auroc(p.labels, p.probabilities) == pytest.approx(expected)


@given(problems)
@settings(max_examples=60, deadline=None)
def test_a_whole_weight_is_that_many_copies(p: Problem) -> None:
    rows = np.repeat(np.arange(len(p.labels)), p.weights.astype(int))
    copied = m.measure(p.labels[rows], p.probabilities[rows])
    both = np.stack([np.ones(len(p.labels)), p.weights], axis=1)
    weighted = m.measure(p.labels, p.probabilities, both)
    plain = m.measure(p.labels, p.probabilities)
    assert tuple(weighted) == m.METRICS
    for name in m.METRICS:
        assert weighted[name].shape == (2,)
        np.testing.assert_allclose(weighted[name], [plain[name], copied[name]], atol=1e-12, err_msg=name)


def written_out_ece(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, one image and one bin at a time."""
    total = 0.0
    for number in range(1, 16):
        inside = [i for i, row in enumerate(probabilities) if (number - 1) / 15 < row.max() <= number / 15]
        if inside:
            right = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            total += len(inside) / len(labels) * abs(right - np.mean([probabilities[i].max() for i in inside]))
    return total


def written_out_aurc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """For each image, the error rate among all images at least as sure; then the mean of these."""
    sure = probabilities.max(axis=1)
    wrong = probabilities.argmax(axis=1) != labels
    return float(np.mean([wrong[sure >= s].mean() for s in sure]))


@given(problems)
@settings(max_examples=60, deadline=None)
def test_calibration_and_risk_agree_with_their_definitions(p: Problem) -> None:
    # A slight tilt moves confidences such as 1/3 off the bins' edges, where rounding would decide.
    tilt = np.arange(1, p.classes + 1) / np.arange(1, p.classes + 1).sum()
    probabilities = 0.99863 * p.probabilities + 0.00137 * tilt
    assert m.ece(p.labels, probabilities) == pytest.approx(written_out_ece(p.labels, probabilities))
    assert m.aurc(p.labels, probabilities) == pytest.approx(written_out_aurc(p.labels, probabilities))


def test_hand_worked_case() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0.4, 0.6, 0], [0.2, 0.3, 0.5]])
    got = {k: float(v) for k, v in m.measure(labels, probabilities).items()}
    assert got["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Class 0: TP 2, FN 1, FP 0 → 4/5. Class 1: TP 1, FN 1, FP 1 → 1/2. Class 2 is only predicted: no term.
    assert got["macro_f1"] == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert got["accuracy"] == pytest.approx(3 / 5)
    # Class 0: .9 .8 .3 against .4 .2 → 5 of 6 pairs; class 1: .6 .3 against .1 .2 .7 → 4 of 6.
    assert got["auroc"] == pytest.approx((5 / 6 + 4 / 6) / 2)
    # Risks at 1/5 … 5/5: .9 right, .8 right, .7 wrong, .6 right, .5 wrong.
    assert got["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert got["ece"] == pytest.approx((0.1 + 0.2 + 0.7 + 0.4 + 0.5) / 5)


def test_nothing_to_measure_is_nan_not_zero() -> None:
    none = m.measure(np.zeros(0, dtype=np.int64), np.zeros((0, 3)))
    assert all(np.isnan(v) for v in none.values())
    one = np.zeros((2, 3))  # B = 3 resamples without any image
    assert all(np.isnan(v).all() for v in m.measure(np.array([0, 1]), np.full((2, 2), 0.5), one).values())


def test_every_metric_has_a_direction() -> None:
    assert {n for n, up in m.HIGHER_IS_BETTER.items() if not up} == {"ece", "aurc"}
    assert tuple(m.HIGHER_IS_BETTER) == m.METRICS
