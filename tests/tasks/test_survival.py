"""The likelihood of discrete hazards, against the formula written out and a case worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from morphfed.tasks.survival import Survival, SurvivalLossConfig, hazard_nll
from morphfed.training.config import TrainConfig


def published(logits: np.ndarray, bins: np.ndarray, censored: np.ndarray, alpha: float) -> float:
    """As the formula is published: padded survival, ``(1 − α) (u + c) + α u``, one bag after the other."""
    total = 0.0
    for z, y, c in zip(logits, bins, censored, strict=True):
        hazard = [1 / (1 + math.exp(-v)) for v in z]
        survival = [1.0]
        for h in hazard:
            survival.append(survival[-1] * (1 - h))
        u = -(1 - c) * (math.log(survival[y]) + math.log(hazard[y]))
        k = -c * math.log(survival[y + 1])
        total += (1 - alpha) * (u + k) + alpha * u
    return total / len(bins)


def test_two_bags_by_hand() -> None:
    """h = ½ in every bin: an event in bin 1 has ½ · ½, a censored bag of bin 1 outlives with ½ · ½."""
    logits = torch.zeros(2, 4, dtype=torch.float64)
    event, censored = (hazard_nll(logits[:1], torch.tensor([y]), alpha=0.25) for y in (1, 4 + 1))
    assert float(event) == pytest.approx(math.log(4))
    assert float(censored) == pytest.approx(0.75 * math.log(4))
    assert float(hazard_nll(logits, torch.tensor([1, 5]), alpha=0.25)) == pytest.approx(1.75 / 2 * math.log(4))


@pytest.mark.parametrize("alpha", [0.0, 0.15, 1.0])
def test_it_is_the_published_formula(alpha: float) -> None:
    draw = np.random.default_rng(3)
    logits, bins, censored = draw.normal(size=(50, 8)), draw.integers(0, 8, 50), draw.integers(0, 2, 50)
    found = hazard_nll(torch.from_numpy(logits), torch.from_numpy(bins + 8 * censored), alpha=alpha)
    assert float(found) == pytest.approx(published(logits, bins, censored, alpha), rel=1e-12)


def test_sure_hazards_have_finite_gradients() -> None:
    logits = torch.tensor([[60.0, -200.0, 90.0]], requires_grad=True)
    for label in range(6):
        loss = hazard_nll(logits, torch.tensor([label]), alpha=0.15)
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_the_mean_loss_of_hazards_is_that_of_their_logits() -> None:
    task, draw = Survival(), torch.Generator().manual_seed(1)
    logits, labels = torch.randn(20, 4, generator=draw) * 3, torch.randint(0, 8, (20,), generator=draw)
    config = TrainConfig(survival_loss=SurvivalLossConfig(alpha=0.4))
    criterion = task.criterion(config, torch.zeros(4))
    logs = task.probabilities(logits).clamp(min=1e-12).log()  # as the trainer hands them over
    found = task.mean_loss(criterion, [(logs[:12], labels[:12]), (logs[12:], labels[12:])])
    assert found == pytest.approx(float(hazard_nll(logits, labels, alpha=0.4)), rel=1e-4)
