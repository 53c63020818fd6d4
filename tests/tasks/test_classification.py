"""Losses against their written-out formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from morphfed.tasks.classification import (
    LossConfig,
    class_balanced_weights,
    focal_loss,
    logit_shift,
    make_loss,
)

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 2])


def test_focal_by_hand() -> None:
    total = 0.0
    for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        p = math.exp(row[label]) / sum(math.exp(v) for v in row)
        total += -((1 - p) ** 2) * math.log(p)
    assert focal_loss(LOGITS, LABELS, gamma=2.0).item() == pytest.approx(total / 2, rel=1e-6)


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    torch.testing.assert_close(focal_loss(LOGITS, LABELS, gamma=0.0), F.cross_entropy(LOGITS, LABELS))


def test_class_balanced_weights_by_hand() -> None:
    counts = torch.tensor([1.0, 100.0, 0.0])
    raw = [(1 - 0.9) / (1 - 0.9**1), (1 - 0.9) / (1 - 0.9**100)]
    scale = 2 / sum(raw)
    expected = torch.tensor([raw[0] * scale, raw[1] * scale, 1.0])
    torch.testing.assert_close(class_balanced_weights(counts, beta=0.9), expected)


def test_beta_zero_weighs_all_present_classes_alike() -> None:
    assert class_balanced_weights(torch.tensor([3.0, 50.0, 7.0]), beta=0.0).tolist() == [1.0, 1.0, 1.0]


def test_logit_shift_by_hand() -> None:
    shift = logit_shift(torch.tensor([3.0, 1.0, 0.0]), tau=1.0)
    expected = [math.log(3 / 4.5), math.log(1 / 4.5), math.log(0.5 / 4.5)]
    assert shift.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "class_balanced", "logit_adjusted", "seesaw"])
def test_every_loss_is_finite_with_a_missing_class(kind: str) -> None:
    loss = make_loss(LossConfig(kind=kind), torch.tensor([5, 0, 2]))
    logits = LOGITS.clone().requires_grad_()
    loss(logits, LABELS).backward()
    assert torch.isfinite(logits.grad).all()


def test_counts_leave_only_for_a_loss_that_uses_them() -> None:
    assert LossConfig(kind="logit_adjusted", prior="federation").prior == "federation"
    with pytest.raises(ValidationError, match="focal uses no counts"):
        LossConfig(kind="focal", prior="federation")
