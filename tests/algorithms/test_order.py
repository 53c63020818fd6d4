"""Median and trimmed mean against NumPy, SciPy, a sort written out, and the 0-1 principle."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import trim_mean
from torch import Tensor

from morphfed.algorithms import order
from morphfed.algorithms.order import Network, coordinate_median, over_names, pairwise_sorter, trimmed_mean
from morphfed.core.errors import FederationError

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def columns(k: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(k)]


def stacked(values: list[Tensor]) -> NDArray[np.float64]:
    return np.stack([v.to(torch.float64).numpy() for v in values])


def sorted_out(values: list[Tensor], trim: int) -> NDArray[np.float64]:
    """The definition written out: sort, cut both ends, average in float64."""
    return np.sort(stacked(values), axis=0)[trim : len(values) - trim].mean(axis=0)


def test_median_by_hand() -> None:
    odd = [torch.tensor([3.0, -1.0]), torch.tensor([1.0, 5.0]), torch.tensor([2.0, 5.0])]
    assert torch.equal(coordinate_median(odd), torch.tensor([2.0, 5.0]))
    # the two middle values of 0 1 3 9 are 1 and 3
    even = [torch.tensor([v]) for v in (9.0, 0.0, 3.0, 1.0)]
    assert torch.equal(coordinate_median(even), torch.tensor([2.0]))


def test_trimmed_mean_by_hand() -> None:
    values = [torch.tensor([v]) for v in (100.0, 1.0, 2.0, 6.0, -50.0)]
    assert torch.equal(trimmed_mean(values, 1), torch.tensor([3.0]))  # (1 + 2 + 6) / 3


@pytest.mark.parametrize("k", [*range(1, 21), 33, 64])
def test_median_is_numpys_to_the_bit(k: int) -> None:
    values = columns(k, 5000, seed=k)
    assert np.array_equal(coordinate_median(values).numpy(), np.median(np.stack([v.numpy() for v in values]), axis=0))


@pytest.mark.parametrize(("k", "trim"), [(k, t) for k in (3, 5, 8, 10, 13, 24) for t in range((k + 1) // 2)])
def test_trimmed_mean_is_scipys(k: int, trim: int) -> None:
    values = columns(k, 700, seed=k)
    # SciPy is told a share and rounds down: half a value more keeps it from falling one short.
    expected = trim_mean(stacked(values), (trim + 0.5) / k if trim else 0.0, axis=0)
    np.testing.assert_allclose(trimmed_mean(values, trim).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("k", range(1, 12))
def test_zero_one_principle(k: int) -> None:
    """A network that is right for all inputs of zeros and ones is right for all inputs (Knuth, vol. 3, 5.3.4)."""
    every = list(torch.tensor(list(itertools.product([0.0, 1.0], repeat=k))).T.contiguous())
    for trim in range((k + 1) // 2):
        np.testing.assert_allclose(trimmed_mean(every, trim).numpy(), sorted_out(every, trim), atol=1e-6)
    wires = [list(column) for column in torch.stack(every).tolist()]
    for a, b in pairwise_sorter(k):
        pairs = [sorted(pair) for pair in zip(wires[a], wires[b], strict=True)]
        wires[a], wires[b] = [low for low, _ in pairs], [high for _, high in pairs]
    assert all(list(column) == sorted(column) for column in zip(*wires, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4),
        min_size=1,
        max_size=17,
    ),
    data=st.data(),
)
def test_any_values_in_any_order(rows: list[list[float]], data: st.DataObject) -> None:
    """Ties, ±0, the smallest and the largest numbers; what comes out does not depend on the order of the sites."""
    values = [torch.tensor(row) for row in rows]
    shuffled = data.draw(st.permutations(values))
    trim = data.draw(st.integers(0, (len(values) - 1) // 2))
    median = coordinate_median(values)
    assert torch.equal(median, coordinate_median(shuffled))
    wide = stacked(values)
    np.testing.assert_allclose(median.numpy(), np.median(wide, axis=0).astype(np.float32), rtol=2e-7, atol=3e-45)
    found = trimmed_mean(values, trim).numpy()
    # float32 sums: the error is a share of the largest value, not of a sum that may cancel out
    bound = 1e-6 * np.abs(np.sort(wide, axis=0)[trim : len(values) - trim]).max(axis=0) + 1e-43
    assert np.all(np.abs(found.astype(np.float64) - sorted_out(values, trim)) <= bound)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_equal_models_give_that_model(k: int) -> None:
    (value,) = columns(1, 100)
    assert torch.equal(coordinate_median([value] * k), value)
    assert torch.allclose(trimmed_mean([value] * k, 0), value, rtol=2e-7)


@pytest.mark.parametrize("k", [2, 4, 6])
def test_largest_numbers_do_not_overflow(k: int) -> None:
    top = torch.finfo(torch.float32).max
    assert coordinate_median([torch.tensor([top])] * k).item() == top
    assert trimmed_mean([torch.tensor([top])] * k, 0).isfinite().all()
    assert coordinate_median([torch.tensor([-top]), torch.tensor([top])]).item() == 0.0


def test_outliers_and_infinities_are_dropped() -> None:
    values = [torch.tensor([v]) for v in (1.0, 2.0, 3.0, float("inf"), -float("inf"))]
    assert coordinate_median(values).item() == 2.0
    assert trimmed_mean(values, 1).item() == 2.0


@pytest.mark.parametrize("k", [3, 4, 9, 10])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_shows_at_its_coordinate_only(k: int, where: int) -> None:
    values = columns(k, 3)
    values[where][1] = float("nan")
    for found in (coordinate_median(values), trimmed_mean(values, 1)):
        assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_dtypes(dtype: torch.dtype, k: int) -> None:
    values = columns(k, 6, 5, dtype=dtype)
    found = coordinate_median(values)
    assert found.dtype == dtype
    # averaged in float32 at least, then rounded once
    assert torch.equal(found, torch.from_numpy(np.median(stacked(values), axis=0)).to(dtype))
    if k > 2:
        trimmed = trimmed_mean(values, 1)
        assert trimmed.dtype == dtype
        expected = torch.from_numpy(sorted_out(values, 1)).to(dtype)
        assert torch.allclose(
            trimmed, expected, rtol=torch.finfo(dtype).eps, atol=1e-7 if dtype != torch.float64 else 0
        )


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(FederationError, match=f"{dtype} tensors.*floating-point"):
        coordinate_median([torch.zeros(2, dtype=dtype)] * 3)


@pytest.mark.parametrize("trim", [-1, 2, 3])
def test_a_trim_that_leaves_nothing_is_refused(trim: int) -> None:
    with pytest.raises(FederationError, match=f"trim = {trim} of 4 uploads.*trim < 2"):
        trimmed_mean([torch.zeros(2)] * 4, trim)


def test_columns_must_agree() -> None:
    with pytest.raises(ValueError, match="at least one"):
        coordinate_median([])
    with pytest.raises(ValueError, match="agree"):
        coordinate_median([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(ValueError, match="agree"):
        coordinate_median([torch.zeros(2), torch.zeros(2, dtype=torch.float64)])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3), (4, 3, 5, 2)])
def test_shapes(shape: tuple[int, ...]) -> None:
    values = columns(5, *shape)
    found = coordinate_median(values)
    assert found.shape == shape
    np.testing.assert_array_equal(found.numpy(), np.median(stacked(values), axis=0).astype(np.float32))


def layouts(value: Tensor) -> dict[str, Tensor]:
    wide = torch.empty(*value.shape[:-1], 2 * value.shape[-1])
    wide[..., ::2] = value
    return {
        "contiguous": value,
        "channels_last": value.contiguous(memory_format=torch.channels_last),
        "transposed": value.transpose(0, 3).contiguous().transpose(0, 3),
        "strided": wide[..., ::2],
    }


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "strided"])
def test_memory_layouts(layout: str) -> None:
    values = columns(6, 3, 4, 5, 2)
    laid = [layouts(value)[layout] for value in values]
    assert torch.equal(coordinate_median(laid), coordinate_median(values))
    if layout in ("channels_last", "transposed"):
        assert coordinate_median(laid).stride() == laid[0].stride()


def test_columns_of_different_layouts_and_expanded_ones() -> None:
    values = columns(4, 3, 4, 5, 2)
    mixed = [layout for layout, value in zip(layouts(values[0]), values, strict=True)]
    laid = [layouts(value)[name] for name, value in zip(mixed, values, strict=True)]
    assert torch.equal(coordinate_median(laid), coordinate_median(values))
    flat = [torch.tensor([float(i)]).expand(7) for i in range(3)]
    assert torch.equal(trimmed_mean(flat, 1), torch.ones(7))


def test_inputs_are_left_alone_and_gradients_are_not_tracked() -> None:
    values = [value.requires_grad_() for value in columns(5, 40)]
    before = [value.detach().clone() for value in values]
    found = coordinate_median(values)
    assert not found.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(values, before, strict=True))
    one = values[0].detach()
    coordinate_median([one]).zero_()
    assert torch.equal(one, before[0])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_chunks_on_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "CHUNK", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    values = [value.requires_grad_() for value in columns(10, 1000)]
    np.testing.assert_array_equal(
        coordinate_median(values).numpy(), np.median(np.stack([v.detach().numpy() for v in values]), axis=0)
    )


def test_scratch_is_bounded_with_many_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    empty = torch.empty

    def spy(*size: int, **kwargs: object) -> Tensor:
        asked.append(size[0] * size[1])
        return empty(*size, **kwargs)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(order, "SCRATCH", 2**15)
    values = columns(300, 2000)
    monkeypatch.setattr(torch, "empty", spy)
    found = coordinate_median(values)
    assert 0 < max(asked) <= 2**15
    np.testing.assert_allclose(found.numpy(), np.median(stacked(values), axis=0), rtol=1e-6)


def test_the_median_of_ten_is_pruned() -> None:
    network = Network.parting(10, 4)
    # A full sort of ten by Batcher's network has 31 comparators, 62 steps.
    assert len(network.steps) == 48
    assert network.slots <= 11
    assert len(network.kept) == 2
    assert Network.parting(10, 0).steps == ()


def model(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (4, 3, 3, 3), "bn.weight": (4,), "scale": (), "fc.weight": (9, 20), "none": (0, 4)}
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found["conv.weight"] = found["conv.weight"].contiguous(memory_format=torch.channels_last)
    return found | {"half": torch.randn(6, generator=generator).half(), "bn.bias": torch.randn(4, generator=generator)}


@pytest.mark.parametrize(("chunk", "joint"), [(order.CHUNK, order.JOINT), (64, 128), (64, 64), (1, 4)])
def test_over_names(chunk: int, joint: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "CHUNK", chunk)
    monkeypatch.setattr(order, "JOINT", joint)
    models = [model(seed) for seed in range(6)]
    for rule, trim in ((coordinate_median, 2), (partial(trimmed_mean, trim=1), 1)):
        found = over_names(rule, models)
        assert list(found) == list(models[0])
        for name, tensor in found.items():
            values = [m[name] for m in models]
            assert (tensor.shape, tensor.dtype) == (values[0].shape, values[0].dtype)
            assert torch.equal(tensor, trimmed_mean(values, trim)), name
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_over_names_joins_small_tensors() -> None:
    calls: list[int] = []

    def rule(values: order.Columns) -> Tensor:
        calls.append(values[0].numel())
        return coordinate_median(values)

    over_names(rule, [{f"{i}": torch.zeros(10) for i in range(100)} | {"big": torch.zeros(order.CHUNK)}] * 3)
    assert sorted(calls) == [1000, order.CHUNK]


def test_over_names_refuses_shapes_that_differ() -> None:
    one = {"a": torch.zeros(2), "b": torch.zeros(3)}
    other = {"a": torch.zeros(3), "b": torch.zeros(2)}  # joined they would fit
    with pytest.raises(ValueError, match="agree in shape"):
        over_names(coordinate_median, [one, other])
