"""FedAvgM, FedAdagrad, FedAdam and FedYogi against their recursions written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.algorithms.common import coordinator, model, one_round

from morphfed.core.types import Tensors

NAMES = ("fedavgm", "fedadagrad", "fedadam", "fedyogi")
ETA, BETA1, BETA2, TAU = 0.1, 0.8, 0.95, 1e-2


def _uploads(number: int, size: int = 6) -> tuple[list[Tensors], list[float]]:
    generator = torch.Generator().manual_seed(number)
    drawn = [torch.randn(size, generator=generator) for _ in range(3)]
    return [{**model([0.0]), "w": w, "mean": w[:1] + 5} for w in drawn], [3.0, 1.0, 2.0]


def _written_out(name: str, rounds: int) -> np.ndarray:
    w = np.full(6, 0.5)
    m, v = np.zeros(6), np.full(6, TAU**2)
    for number in range(1, rounds + 1):
        uploads, weights = _uploads(number)
        mean = sum(p * u["w"].double().numpy() for u, p in zip(uploads, weights, strict=True)) / sum(weights)
        delta = mean - w
        if name == "fedavgm":
            m = BETA1 * m + delta
            w = w + ETA * m
            continue
        m = BETA1 * m + (1 - BETA1) * delta
        if name == "fedadagrad":
            v = v + delta**2
        elif name == "fedadam":
            v = BETA2 * v + (1 - BETA2) * delta**2
        else:
            v = v - (1 - BETA2) * delta**2 * np.sign(v - delta**2)
        w = w + ETA * m / (np.sqrt(v) + TAU)
    return w


def _keys(name: str) -> dict[str, object]:
    if name == "fedavgm":
        return {"eta": ETA, "beta": BETA1}
    keys: dict[str, object] = {"eta": ETA, "beta1": BETA1, "tau": TAU}
    return keys if name == "fedadagrad" else keys | {"beta2": BETA2}


@pytest.mark.parametrize("name", NAMES)
def test_four_rounds_against_the_recursion(name: str) -> None:
    half = coordinator(name, {**model([0.0]), "w": torch.full((6,), 0.5)}, **_keys(name))
    for number in range(1, 5):
        found = one_round(half, *_uploads(number), number=number)
    np.testing.assert_allclose(found["w"].numpy(), _written_out(name, 4), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_take_the_mean_and_have_no_moments(name: str) -> None:
    half = coordinator(name, {**model([0.0]), "w": torch.zeros(6)}, **_keys(name))
    uploads, weights = _uploads(1)
    expected = sum(p * u["mean"] for u, p in zip(uploads, weights, strict=True)) / 6.0
    torch.testing.assert_close(one_round(half, uploads, weights)["mean"], expected)
    assert not [key for key in half.state() if key.endswith("/mean")]


@pytest.mark.parametrize("name", NAMES)
def test_a_restart_between_rounds_changes_nothing(name: str) -> None:
    start = {**model([0.0]), "w": torch.full((6,), 0.5)}
    straight = coordinator(name, start, **_keys(name))
    one_round(straight, *_uploads(1))
    resumed = coordinator(name, {k: torch.zeros_like(t) for k, t in start.items()}, **_keys(name))
    resumed.load_state({k: t.clone() for k, t in straight.state().items()})
    a, b = one_round(straight, *_uploads(2), number=2), one_round(resumed, *_uploads(2), number=2)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_that_came_in_goes_out(name: str, dtype: torch.dtype) -> None:
    half = coordinator(name, model([1.0, 2.0], dtype=dtype))
    found = one_round(half, [model([1.5, 2.5], dtype=dtype), model([0.5, 3.5], dtype=dtype)], [1, 1])
    assert {t.dtype for t in found.values()} == {dtype}
    assert all(torch.isfinite(t).all() for t in found.values())


def test_server_momentum_of_zero_is_fedavg() -> None:
    uploads, weights = _uploads(1)
    start = {**model([0.0]), "w": torch.full((6,), 0.5)}
    one = one_round(coordinator("fedavgm", start, beta=0.0), uploads, weights)
    two = one_round(coordinator("fedavg", start), uploads, weights)
    torch.testing.assert_close(one["w"], two["w"])


def test_no_change_at_the_sites_moves_nothing() -> None:
    for name in NAMES:
        half = coordinator(name, model([1.0, -2.0]))
        assert one_round(half, [model([1.0, -2.0])] * 2, [1, 1])["w"].tolist() == [1.0, -2.0]
