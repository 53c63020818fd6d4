"""IDA's weights by hand."""

from __future__ import annotations

from typing import cast

import pytest
from tests.algorithms.common import coordinator, model, one_round

from morphfed.algorithms.base import ALGORITHMS
from morphfed.algorithms.ida import InverseDistance


def test_three_sites_by_hand() -> None:
    # Mean of 0, 3, 9 is 4; distances 4, 1, 5; inverse 1/4, 1, 1/5, sum 1.45.
    half = cast("InverseDistance", coordinator("ida", model([0.0])))
    uploads = [model([v], mean=v) for v in (0.0, 3.0, 9.0)]
    assert half.shares(uploads) == pytest.approx([0.25 / 1.45, 1 / 1.45, 0.2 / 1.45])
    found = one_round(half, uploads, [1, 1, 2])
    assert found["w"].item() == pytest.approx((3.0 + 0.2 * 9.0) / 1.45)
    assert found["mean"].item() == pytest.approx((0 + 3 + 2 * 9) / 4)  # statistics as in FedAvg


@pytest.mark.parametrize(("p", "expected"), [(1, 7.0), (2, 5.0)])
def test_norms(p: int, expected: float) -> None:
    half = cast("InverseDistance", coordinator("ida", model([0.0, 0.0]), p=p))
    assert half._distance(model([3.0, 4.0]), {"w": model([0.0, 0.0])["w"]}) == expected


def test_equal_models_and_a_model_in_the_middle() -> None:
    half = cast("InverseDistance", coordinator("ida", model([0.0])))
    assert half.shares([model([2.0])] * 3) == pytest.approx([1 / 3] * 3)
    shares = half.shares([model([v]) for v in (0.0, 1.0, 2.0)])  # the second is the mean itself
    assert shares[1] > 0.999
    assert shares[0] == shares[2] > 0


def test_two_sites_weigh_the_same() -> None:
    half = cast("InverseDistance", coordinator("ida", model([0.0])))
    assert half.shares([model([1.0]), model([5.0])]) == pytest.approx([0.5, 0.5])
    named = ALGORITHMS["ida"]
    assert "two sites" in named.note(named.config(), 2)
