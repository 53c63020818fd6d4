"""CPA's two factors: mitigation and refinement, against worked numbers and the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from morphfed.tasks.classification import LossConfig, make_loss
from morphfed.tasks.seesaw import conjoint, log_mitigation, refinement, seesaw

SKIN = torch.tensor([5408, 941, 994])


def test_factors_of_the_published_counts() -> None:
    found = log_mitigation(SKIN, power=0.8).exp()
    expected = torch.tensor([[1, 0.2469, 0.2579], [1, 1, 1], [1, 0.9571, 1]])
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)
    pixels = log_mitigation(torch.tensor([386166134, 7688842]), power=0.8).exp()
    assert pixels[0, 1].item() == pytest.approx(0.04358, abs=5e-6)


@pytest.mark.parametrize(
    ("logits", "label", "p", "loss"),
    [
        ([1.0, 0.5, -0.2], 0, 0.814725, 0.204905),
        ([0.1, 1.2, 0.3], 1, 0.574897, 0.553564),  # no class is rarer: plain cross-entropy
        ([0.0, 0.0, 0.0], 2, 0.338168, 1.084213),
    ],
)
def test_worked_losses(logits: list[float], label: int, p: float, loss: float) -> None:
    found = seesaw(torch.tensor([logits]), torch.tensor([label]), log_mitigation(SKIN, power=0.8)).item()
    assert math.exp(-found) == pytest.approx(p, abs=1e-6)
    assert found == pytest.approx(loss, abs=2e-6)


def test_against_the_formula_as_it_stands() -> None:
    rng = np.random.default_rng(0)
    z, y, n = rng.normal(size=(20, 4)), rng.integers(0, 4, 20), np.array([50.0, 3.0, 700.0, 3.0])
    expected = []
    for row, i in zip(z, y, strict=True):
        below = sum((1.0 if n[i] <= n[j] else (n[j] / n[i]) ** 0.8) * math.exp(row[j]) for j in range(4) if j != i)
        expected.append(-math.log(math.exp(row[i]) / (math.exp(row[i]) + below)))
    log_s = log_mitigation(torch.from_numpy(n), power=0.8)
    found = seesaw(torch.from_numpy(z), torch.from_numpy(y), log_s.double())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    loss = make_loss(LossConfig(kind="seesaw"), torch.from_numpy(n))
    assert loss(torch.from_numpy(z), torch.from_numpy(y)).item() == pytest.approx(np.mean(expected), rel=1e-6)


def test_the_loss_of_masks_pixel_by_pixel() -> None:
    """½ CPA + ½ cross-entropy + soft Dice, written out; no pixel shows class 2."""
    rng = np.random.default_rng(1)
    z, masks = rng.normal(size=(2, 3, 4, 5)), rng.integers(0, 2, (2, 4, 5))
    n, gamma = np.array([900.0, 40.0, 7.0]), np.array([1.2, 1.5, 3.0])
    aligned, plain, p = 0.0, 0.0, np.zeros_like(z)
    for b, i, j in np.ndindex(masks.shape):
        row, y = np.exp(z[b, :, i, j]), masks[b, i, j]
        p[b, :, i, j] = row / row.sum()
        plain -= math.log(p[b, y, i, j]) / masks.size
        held = [1.0 if k == y else min(1.0, n[k] / n[y]) ** 0.8 for k in range(3)]
        aligned -= gamma[y] * math.log(row[y] / np.dot(held, row)) / masks.size
    dice = [(2 * p[:, k][masks == k].sum() + 1) / (p[:, k].sum() + (masks == k).sum() + 1) for k in (1, 2)]
    log_s = log_mitigation(torch.from_numpy(n), power=0.8).double()
    found = conjoint(torch.from_numpy(z), torch.from_numpy(masks).to(torch.uint8), log_s, torch.from_numpy(gamma))
    assert found.item() == pytest.approx(0.5 * aligned + 0.5 * plain + 1 - np.mean(dice), rel=1e-6)


def test_equal_counts_and_power_zero_are_cross_entropy() -> None:
    z, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    for counts, power in ((torch.tensor([4, 4, 4]), 0.8), (SKIN, 0.0)):
        found = seesaw(z, y, log_mitigation(counts, power=power))
        torch.testing.assert_close(found, F.cross_entropy(z, y, reduction="none"))


def test_a_class_that_nobody_has_counts_as_one_image() -> None:
    found = log_mitigation(torch.tensor([16, 0, 0]), power=0.5).exp()
    torch.testing.assert_close(found, torch.tensor([[1, 0.25, 0.25], [1, 1, 1], [1, 1, 1.0]]))


@pytest.mark.parametrize(
    ("cosine", "tau", "gamma"),
    [(1.0, 3.0, 1.0), (0.9, 3.0, 1.0256), (0.5, 3.0, 1.1429), (0.0, 3.0, 1.3333), (0.9, 1.0, 1.0526), (0.0, 1.0, 2.0)],
)
def test_refinement_by_hand(cosine: float, tau: float, gamma: float) -> None:
    local = torch.tensor([[2.0, 0.0]])
    common = torch.tensor([[cosine, math.sqrt(1 - cosine**2)]]) * 7
    assert refinement(local, common, torch.tensor([True]), tau=tau).item() == pytest.approx(gamma, abs=5e-5)


def test_opposite_features_do_not_divide_by_zero_and_missing_ones_weigh_one() -> None:
    one = torch.ones(2, 3)
    assert refinement(one, -one, torch.tensor([True, False]), tau=1.0).tolist() == [pytest.approx(2 / 0.05), 1.0]
    assert refinement(torch.zeros(1, 3), one[:1], torch.tensor([False]), tau=3.0).item() == 1.0
