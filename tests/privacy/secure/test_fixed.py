"""Fixed point: exact sums, no wrap-around, and the bound that the documentation states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphfed.privacy.secure import fixed
from morphfed.privacy.secure.config import MOST_SITES


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(1.0, 0), (1.0000001, 1), (0.75, 0), (0.5, -1), (65536.0, 16), (0.0, fixed.LEAST), (1e-40, fixed.LEAST)],
)
def test_exponent_is_the_smallest_power_of_two_that_holds(largest: float, expected: int) -> None:
    assert fixed.exponent(largest) == expected
    assert largest <= 2.0 ** fixed.exponent(largest)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([16, 32]), st.integers(1, 40), st.integers(-20, 16))
def test_the_sum_of_any_number_of_sites_is_within_the_bound_and_never_wraps(
    seed: int, bits: int, sites: int, exponent: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 1, (sites, 50)) * 2.0**exponent
    values[:, 0], values[:, 1] = 2.0**exponent, -(2.0**exponent)  # the extremes, at every site
    weights = rng.integers(1, 10_000, sites).astype(float)
    step, total = fixed.step(exponent, bits), weights.sum()
    added = np.zeros(50, dtype=f"u{bits // 8}")
    for row, weight in zip(values, weights, strict=True):
        words = np.empty_like(added)
        fixed.write(row, words, weight / total / step)
        added += words
    mean = fixed.read(added, step)
    expected = (weights / total) @ values
    assert np.abs(mean - expected).max() <= sites * step / 2 * (1 + 1e-6)


def test_numbers_survive_and_what_does_not_fit_is_named() -> None:
    values = np.array([12.0, 0.1234567, -3.5, 2.0**31])
    words = fixed.write_numbers(values) + fixed.write_numbers(values)
    assert np.abs(fixed.read_numbers(words) - 2 * values).max() <= 2 * fixed.NUMBER_STEP / 2
    most = fixed.write_numbers(np.array([-fixed.NUMBER_LIMIT + 1]))
    assert fixed.read_numbers(most * np.uint64(MOST_SITES))[0] == -MOST_SITES * (fixed.NUMBER_LIMIT - 1)
    for wrong in (fixed.NUMBER_LIMIT, np.inf, np.nan):
        with pytest.raises(ValueError, match="^1$"):
            fixed.write_numbers(np.array([1.0, wrong]))
