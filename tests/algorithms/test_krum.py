"""Krum against distances written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tests.algorithms.common import coordinator, model, one_round

from morphfed.algorithms.krum import krum_scores, squared_distances
from morphfed.core.errors import FederationError


def test_distances_against_numpy_far_from_the_origin() -> None:
    rng = np.random.default_rng(0)
    flat = 100.0 + 1e-2 * rng.standard_normal((5, 300))
    models = [{"a": torch.tensor(r[:100], dtype=torch.float32), "b": torch.tensor(r[100:]).float()} for r in flat]
    exact = [np.concatenate([m["a"].numpy(), m["b"].numpy()]).astype(np.float64) for m in models]
    found = squared_distances(models).numpy()
    for i, j in itertools.product(range(5), repeat=2):
        assert found[i, j] == pytest.approx(((exact[i] - exact[j]) ** 2).sum(), rel=1e-4, abs=1e-9)


def test_scores_by_hand() -> None:
    # Points 0, 1, 3, 10 on a line, f = 0: the sum over the two nearest.
    points = torch.tensor([0.0, 1.0, 3.0, 10.0], dtype=torch.float64)
    distances = (points[:, None] - points[None, :]).square()
    assert krum_scores(distances, 0).tolist() == [1 + 9, 1 + 4, 4 + 9, 49 + 81]


def test_krum_takes_the_upload_nearest_to_the_others_whole() -> None:
    uploads = [model([v], mean=v * 2) for v in (0.0, 1.0, 3.0, 10.0)]
    found = one_round(coordinator("krum", model([9.0])), uploads, [1, 50, 1, 1])
    assert found["w"].tolist() == [1.0]
    assert found["mean"].tolist() == [2.0]


def test_multikrum_leaves_the_outlier_out() -> None:
    uploads = [model([v]) for v in (0.0, 1.0, 2.0, 3.0, 1e6)]
    found = one_round(coordinator("multikrum", model([0.0]), f=1), uploads, [1] * 5)
    assert found["w"].tolist() == [1.5]  # m = K - f = 4


def test_statistics_do_not_count_in_the_distance() -> None:
    uploads = [model([0.0], mean=1e6), model([1.0]), model([3.0]), model([10.0])]
    assert one_round(coordinator("krum", model([0.0])), uploads, [1] * 4)["w"].tolist() == [1.0]


def test_statistics_may_be_averaged_over_all() -> None:
    uploads = [model([v], mean=v) for v in (0.0, 1.0, 3.0, 10.0)]
    found = one_round(coordinator("krum", model([0.0]), statistics="mean"), uploads, [1, 1, 1, 1])
    assert found["mean"].tolist() == [3.5]


@pytest.mark.parametrize(
    ("name", "keys", "sites"), [("krum", {}, 2), ("krum", {"f": 1}, 4), ("multikrum", {"m": 4}, 3)]
)
def test_too_few_uploads(name: str, keys: dict[str, int], sites: int) -> None:
    half = coordinator(name, model([0.0]), **keys)
    with pytest.raises(FederationError, match=r"s0, s1.*expected at least"):
        one_round(half, [model([float(i)]) for i in range(sites)], [1] * sites)
