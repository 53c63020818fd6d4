"""The trimmed mean against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from tests.algorithms.common import coordinator, model, one_round

from morphfed.algorithms.base import ALGORITHMS
from morphfed.algorithms.fedtrimmed import dropped


def test_five_sites_by_hand() -> None:
    half = coordinator("fedtrimmed", model([0.0]), beta=0.2)
    uploads = [model([v]) for v in (1.0, 2.0, 3.0, 7.0, 1e9)]
    assert one_round(half, uploads, [1] * 5)["w"].tolist() == [4.0]  # (2 + 3 + 7) / 3


@pytest.mark.parametrize(("sites", "beta"), [(5, 0.2), (10, 0.3), (7, 0.45), (4, 0.1)])
def test_against_scipy(sites: int, beta: float) -> None:
    generator = torch.Generator().manual_seed(sites)
    uploads = [{**model([0.0]), "w": torch.randn(200, generator=generator)} for _ in range(sites)]
    half = coordinator("fedtrimmed", {**model([0.0]), "w": torch.zeros(200)}, beta=beta)
    expected = stats.trim_mean(np.stack([u["w"].double().numpy() for u in uploads]), beta, axis=0)
    np.testing.assert_allclose(one_round(half, uploads, [1.0] * sites)["w"].numpy(), expected, rtol=2e-5, atol=1e-6)


def test_zero_is_the_mean() -> None:
    uploads = [model([1.0, 5.0], b=2.0), model([3.0, -5.0], b=-2.0), model([8.0, 3.0], b=9.0)]
    trimmed = one_round(coordinator("fedtrimmed", model([0.0, 0.0]), beta=0.0), uploads, [1, 1, 1])
    plain = one_round(coordinator("fedavg", model([0.0, 0.0]), weighting="uniform"), uploads, [1, 1, 1])
    for name in plain:
        torch.testing.assert_close(trimmed[name], plain[name])


def test_rounding_of_the_share() -> None:
    assert [dropped(0.2, n) for n in (2, 4, 5, 10)] == [0, 0, 1, 2]
    assert dropped(0.3, 10) == 3  # 0.3 · 10 falls just short of 3 in binary
    named = ALGORITHMS["fedtrimmed"]
    assert "drops none" in named.note(named.config(), 3)
    assert named.note(named.config(), 5) == ""
