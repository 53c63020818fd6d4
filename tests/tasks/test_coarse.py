"""The loss of a coarser label against its written-out formula, its limits, and torch's own losses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from morphfed.tasks.classification import LossConfig, class_balanced_weights, logit_shift, make_loss
from morphfed.tasks.coarse import parent_weights, with_parents

C = 4
PARENTS = ((0, 2), (0, 1, 3))
COUNTS = torch.tensor([30, 4, 0, 11])
KINDS = ("cross_entropy", "focal", "class_balanced", "logit_adjusted")


def _logits(n: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, C, generator=torch.Generator().manual_seed(seed)) * 2


def _value_and_gradient(loss: object, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    asked = logits.clone().requires_grad_()
    value = loss(asked, labels)  # type: ignore[operator]
    value.backward()
    return value.detach(), asked.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_labels_give_the_ordinary_loss_to_the_bit(kind: str, smoothing: float) -> None:
    config = LossConfig(kind=kind, label_smoothing=smoothing)
    labels = torch.tensor([0, 1, 3, 3, 0, 2, 1, 0])
    plain = _value_and_gradient(make_loss(config, COUNTS), _logits(), labels)
    wider = _value_and_gradient(make_loss(config, COUNTS, PARENTS), _logits(), labels)
    if smoothing and kind != "focal":  # torch sums the smoothed part in another order
        torch.testing.assert_close(wider, plain, rtol=1e-6, atol=1e-7)
    else:
        assert torch.equal(wider[0], plain[0])
        assert torch.equal(wider[1], plain[1])


def test_two_classes_by_hand() -> None:
    # p = (.5, .3, .2); "first or second" has .8, its gradient is p − (.625, .375, 0).
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    loss = make_loss(LossConfig(), torch.tensor([1, 1, 1]), ((0, 1),))
    value, gradient = _value_and_gradient(loss, logits, torch.tensor([3]))
    assert value.item() == pytest.approx(-math.log(0.8), rel=1e-6)
    assert gradient[0].tolist() == pytest.approx([0.5 - 0.625, 0.3 - 0.375, 0.2], rel=1e-5)


def test_an_image_of_any_class_teaches_nothing() -> None:
    for kind in KINDS:
        loss = make_loss(LossConfig(kind=kind), COUNTS, (tuple(range(C)),))
        value, gradient = _value_and_gradient(loss, _logits(), torch.full((8,), C))
        assert abs(value.item()) < 1e-6
        assert gradient.abs().max().item() < 1e-6


def test_a_label_of_one_class_is_that_class() -> None:
    labels = torch.tensor([0, 1, 3, 3, 0, 2, 1, 0])
    for kind in KINDS:
        loss = make_loss(LossConfig(kind=kind, label_smoothing=0.1), COUNTS, ((0,), (1,), (2,), (3,)))
        torch.testing.assert_close(
            _value_and_gradient(loss, _logits(), labels + C), _value_and_gradient(loss, _logits(), labels)
        )


def _softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def _written_out(config: LossConfig, logits: list[list[float]], labels: list[int]) -> float:
    """Every loss once more, in plain Python, one image after the other."""
    counts = COUNTS.tolist()
    weights = class_balanced_weights(COUNTS.float(), beta=config.beta).tolist()
    shift = logit_shift(COUNTS.float(), tau=config.tau).tolist()
    sets = [(c,) for c in range(C)] + list(PARENTS)
    top, bottom = 0.0, 0.0
    for row, label in zip(logits, labels, strict=True):
        adjusted = [z + s for z, s in zip(row, shift, strict=True)] if config.kind == "logit_adjusted" else row
        p = _softmax(adjusted)
        inside = sum(p[c] for c in sets[label])
        weight, each = 1.0, [1.0] * C
        if config.kind == "class_balanced":
            each = weights
            seen = sum(counts[c] for c in sets[label])
            shares = [counts[c] / seen if seen else 1 / len(sets[label]) for c in sets[label]]
            weight = sum(share * weights[c] for share, c in zip(shares, sets[label], strict=True))
        if config.kind == "focal":
            top += -((1 - inside) ** config.gamma) * math.log(inside)
        else:
            e = config.label_smoothing
            spread = -sum(w * math.log(q) for w, q in zip(each, p, strict=True)) / C
            top += (1 - e) * weight * -math.log(inside) + e * spread
        bottom += weight
    return top / bottom


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_and_its_gradient_as_written_out(kind: str, smoothing: float) -> None:
    config = LossConfig(kind=kind, label_smoothing=smoothing, gamma=1.5)
    labels = [0, 4, 5, 3, 4, 5, 1, 2]
    logits = _logits().double()
    loss = make_loss(config, COUNTS, PARENTS)
    value, gradient = _value_and_gradient(loss, logits, torch.tensor(labels))
    rows = logits.tolist()
    assert value.item() == pytest.approx(_written_out(config, rows, labels), rel=1e-6)
    step = 1e-4
    for i in range(len(rows)):
        for c in range(C):
            values = []
            for sign in (1, -1):
                moved = [list(row) for row in rows]
                moved[i][c] += sign * step
                values.append(_written_out(config, moved, labels))
            assert gradient[i, c].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3, abs=1e-6)


def test_weights_of_coarser_labels_are_expected_weights() -> None:
    weights, counts = torch.tensor([1.0, 4.0, 2.0, 6.0]), torch.tensor([9.0, 1.0, 0.0, 0.0])
    found = parent_weights(weights, counts, ((0, 1), (2, 3), (1, 3)))
    assert found.tolist() == pytest.approx([1, 4, 2, 6, (9 * 1 + 1 * 4) / 10, (2 + 6) / 2, 4.0])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_the_focal_loss_of_a_sure_model_stays_a_number(gamma: float) -> None:
    logits = torch.tensor([[200.0, 199.0, -90.0, 0.0], [3.0, 3.0, 3.0, -40.0]])
    for labels in ([4, 4], [0, 4], [2, 2]):
        loss = make_loss(LossConfig(kind="focal", gamma=gamma), COUNTS, ((0, 1, 2),))
        value, gradient = _value_and_gradient(loss, logits, torch.tensor(labels))
        assert torch.isfinite(value)
        assert value >= 0
        assert torch.isfinite(gradient).all()


def test_no_probability_exceeds_one() -> None:
    log_p = F.log_softmax(_logits(5000, seed=1) * 5, dim=1)
    assert with_parents(log_p, ((0, 1, 2), (0, 1, 2, 3))).max().item() <= 0
    assert with_parents(log_p, ()) is log_p
