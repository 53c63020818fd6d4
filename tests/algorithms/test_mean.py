"""FedAvg's mean against hand-worked numbers and a plain NumPy sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphfed.algorithms.mean import Averaging, RunningMean
from morphfed.core.types import Upload


def test_two_sites_by_hand() -> None:
    mean = RunningMean()
    mean.add({"w": torch.tensor([1.0, 2.0])}, 1.0)
    mean.add({"w": torch.tensor([5.0, -2.0])}, 3.0)
    # (1·1 + 3·5) / 4 = 4 and (1·2 - 3·2) / 4 = -1
    assert torch.equal(mean.result()["w"], torch.tensor([4.0, -1.0]))


def test_mean_of_one_model_is_that_model_to_the_bit() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e-3
    mean = RunningMean()
    mean.add({"w": x}, 317.0)
    assert torch.equal(mean.result()["w"], x)


def test_uploads_are_not_kept_by_reference() -> None:
    x = torch.ones(3)
    mean = RunningMean()
    mean.add({"w": x}, 1.0)
    x.zero_()
    assert torch.equal(mean.result()["w"], torch.ones(3))


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.floats(0.5, 5000), min_size=1, max_size=12),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_against_a_plain_numpy_sum(weights: list[float], seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    models = [torch.randn(7, 3, generator=generator).to(dtype) for _ in weights]
    mean = RunningMean()
    for model, weight in zip(models, weights, strict=True):
        mean.add({"w": model}, weight)
    stacked = np.stack([m.to(torch.float64).numpy() for m in models])
    expected = (np.array(weights)[:, None, None] * stacked).sum(0) / sum(weights)
    found = mean.result()["w"]
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    np.testing.assert_allclose(found.to(torch.float64).numpy(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("weighting", ["images", "uniform"])
def test_weighting(weighting: str) -> None:
    coordinator = Averaging({"w": torch.zeros(1)}, weighting=weighting)  # type: ignore[arg-type]
    coordinator.begin_round(1, ["a", "b"])
    coordinator.fold(Upload("a", 1, {"w": torch.tensor([0.0])}, weight=30))
    coordinator.fold(Upload("b", 1, {"w": torch.tensor([1.0])}, weight=10))
    coordinator.end_round()
    assert coordinator.model()["w"].item() == pytest.approx(0.25 if weighting == "images" else 0.5)


def test_a_round_without_uploads_keeps_the_model() -> None:
    coordinator = Averaging({"w": torch.tensor([2.0])}, weighting="images")
    coordinator.begin_round(1, ["a"])
    coordinator.end_round()
    assert coordinator.model()["w"].item() == 2.0


def test_state_round_trip() -> None:
    one = Averaging({"w": torch.tensor([2.0])}, weighting="images")
    two = Averaging({"w": torch.tensor([0.0])}, weighting="images")
    two.load_state(one.state())
    assert torch.equal(two.download("x")["w"], one.download("x")["w"])
