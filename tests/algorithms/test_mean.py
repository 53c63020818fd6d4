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


def test_sums_take_memory_that_fits_and_no_other() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    fits, other_order, other_dtype = torch.full((4, 6), torch.nan), torch.ones(6, 4).T, torch.ones(4, 6).double()
    for old, taken in ((fits, True), (other_order, False), (other_dtype, False), (torch.ones(24), False)):
        mean = RunningMean({"w": old, "gone": torch.ones(1)})
        mean.add({"w": x}, 1.0)
        mean.add({"w": 3 * x}, 1.0)
        found = mean.result()
        assert list(found) == ["w"]
        torch.testing.assert_close(found["w"], 2 * x)
        assert (found["w"].data_ptr() == old.data_ptr()) == taken


def test_half_precision_sums_do_not_take_the_old_model() -> None:
    old = torch.zeros(3, dtype=torch.bfloat16)
    mean = RunningMean({"w": old})
    mean.add({"w": torch.ones(3, dtype=torch.bfloat16)}, 1.0)
    assert mean.result(wide=True)["w"].dtype == torch.float32
    assert not old.any()


def test_rounds_in_used_memory_give_the_bits_of_new_memory_and_downloads_hold_for_their_round() -> None:
    generator = torch.Generator().manual_seed(0)
    models = [
        {"w": torch.randn(5, 7, generator=generator), "b": torch.randn((), generator=generator)} for _ in range(12)
    ]
    coordinator = Averaging({"w": torch.zeros(5, 7), "b": torch.zeros(())}, weighting="images")
    seen: set[int] = set()
    for number in range(1, 5):
        fresh = RunningMean()
        coordinator.begin_round(number, ["a", "b", "c"])
        download = coordinator.download("a")
        lent = {name: tensor.clone() for name, tensor in download.items()}
        for weight, model in enumerate(models[3 * number - 3 : 3 * number], 1):
            coordinator.fold(Upload("a", number, model, weight))
            fresh.add(model, weight)
        coordinator.end_round()
        assert all(torch.equal(download[name], lent[name]) for name in lent)
        assert all(torch.equal(coordinator.model()[name], mean) for name, mean in fresh.result().items())
        seen.add(coordinator.model()["w"].data_ptr())
    assert len(seen) == 2  # two models take turns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    models = [{"w": torch.randn(3 * 2**15 + 11, generator=generator, dtype=dtype)} for _ in range(3)]
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            mean = RunningMean()
            for weight, model in enumerate(models, 1):
                mean.add(model, weight)
            found.append(mean.result()["w"])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


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
