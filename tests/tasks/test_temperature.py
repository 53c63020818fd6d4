"""Temperature scaling against softmax of scaled logits and scipy's optimum."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from morphfed.tasks.temperature import POINTS, RANGE, bracket, grid, loss_sums, tempered, vertex

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (200, 4))
LABELS = np.where(RNG.random(200) < 0.6, LOGITS.argmax(1), RNG.integers(0, 4, 200))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_probabilities_suffice_in_place_of_logits(temperature: float) -> None:
    found = tempered(softmax(LOGITS, axis=1), temperature)
    np.testing.assert_allclose(found, softmax(LOGITS / temperature, axis=1), rtol=1e-9)
    assert (found.argmax(1) == LOGITS.argmax(1)).all()


def test_by_hand() -> None:
    # T = 1/2 squares: (.8, .2) → (.64, .04) / .68
    np.testing.assert_allclose(tempered(np.array([[0.8, 0.2]]), 0.5), [[0.64 / 0.68, 0.04 / 0.68]])


def test_a_probability_of_zero_gives_a_finite_loss() -> None:
    assert np.isfinite(loss_sums(np.array([1]), np.array([[1.0, 0.0]], dtype=np.float32), np.array([0.1, 1.0]))).all()


def test_losses_are_those_of_scaled_logits() -> None:
    temperatures = np.array([0.5, 1.0, 3.0])
    expected = [-log_softmax(LOGITS / t, axis=1)[np.arange(200), LABELS].sum() for t in temperatures]
    np.testing.assert_allclose(loss_sums(LABELS, softmax(LOGITS, axis=1), temperatures), expected, rtol=1e-9)


def test_two_grids_and_a_parabola_find_scipy_s_optimum() -> None:
    probabilities = softmax(LOGITS, axis=1)
    coarse = grid(*RANGE)
    assert coarse[POINTS // 2] == pytest.approx(1.0, abs=1e-12)
    between = bracket(coarse, loss_sums(LABELS, probabilities, coarse))
    assert between is not None
    fine = grid(*between)
    found = vertex(fine, loss_sums(LABELS, probabilities, fine))
    rows = np.arange(200)
    best = minimize_scalar(
        lambda t: -log_softmax(LOGITS / t, axis=1)[rows, LABELS].sum(),
        bounds=RANGE,
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert found == pytest.approx(best.x, rel=1e-5)
    assert best.x > 1.5  # these labels are less sure than the logits


def test_no_minimum_inside_the_grid() -> None:
    coarse = grid(*RANGE)
    always_right = loss_sums(LOGITS.argmax(1), softmax(LOGITS, axis=1), coarse)
    assert bracket(coarse, always_right) is None


def test_vertex_of_a_parabola_is_exact() -> None:
    temperatures = np.geomspace(1.0, 2.0, POINTS)
    assert vertex(temperatures, (np.log(temperatures) - np.log(1.2345)) ** 2) == pytest.approx(1.2345, rel=1e-12)
