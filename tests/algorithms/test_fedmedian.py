"""The coordinate-wise median against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.algorithms.common import coordinator, model, one_round

from morphfed.algorithms.base import ALGORITHMS


def test_three_sites_by_hand() -> None:
    half = coordinator("fedmedian", model([0.0, 0.0]))
    uploads = [model([1.0, -9.0], b=3.0, mean=2.0), model([5.0, 4.0], b=-1.0, mean=4.0), model([2.0, 1e6], mean=12.0)]
    found = one_round(half, uploads, [2, 1, 1])
    assert found["w"].tolist() == [2.0, 4.0]
    assert found["b"].tolist() == [0.0]
    assert found["mean"].tolist() == [5.0]  # statistics: (2·2 + 4 + 12) / 4


def test_statistics_by_the_same_rule() -> None:
    half = coordinator("fedmedian", model([0.0]), statistics="same")
    uploads = [model([0.0], mean=2.0), model([0.0], mean=4.0), model([0.0], mean=1e9)]
    assert one_round(half, uploads, [1, 1, 1])["mean"].tolist() == [4.0]


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 7, 10])
def test_against_numpy(sites: int) -> None:
    generator = torch.Generator().manual_seed(sites)
    uploads = [{**model([0.0]), "w": torch.randn(50, 3, generator=generator)} for _ in range(sites)]
    half = coordinator("fedmedian", {**model([0.0]), "w": torch.zeros(50, 3)})
    found = one_round(half, uploads, [1.0] * sites)["w"].numpy()
    np.testing.assert_allclose(found, np.median([u["w"].numpy() for u in uploads], axis=0), rtol=1e-6)


def test_two_sites_are_their_unweighted_mean_and_the_report_says_so() -> None:
    half = coordinator("fedmedian", model([0.0]))
    assert one_round(half, [model([1.0]), model([4.0])], [100, 1])["w"].tolist() == [2.5]
    named = ALGORITHMS["fedmedian"]
    assert "unweighted mean" in named.note(named.config(), 2)
    assert named.note(named.config(), 3) == ""


def test_uploads_are_copied() -> None:
    from morphfed.core.types import Upload

    half = coordinator("fedmedian", model([0.0]))
    half.begin_round(1, ["a"])
    shared = model([3.0])
    half.fold(Upload("a", 1, shared, 1.0))
    shared["w"].zero_()
    half.end_round()
    assert half.model()["w"].tolist() == [3.0]
