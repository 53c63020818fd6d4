"""Random streams: the same name gives the same numbers anywhere, another name unrelated ones."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from enum import StrEnum

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from morphfed.core.seeding import derive, numpy_stream, torch_stream

paths = st.lists(st.text(max_size=6) | st.integers(-(2**70), 2**70), max_size=4)


def test_the_written_out_rule() -> None:
    """Stable between versions: a seed in a published study must not change its meaning."""
    digest = hashlib.sha256(b"7\x1fstr:order\x1fstr:kampala\x1fint:3").digest()
    assert derive(7, "order", "kampala", 3) == int.from_bytes(digest[:8], "big") // 2


@given(st.integers(), paths, st.integers(), paths)
def test_one_path_one_seed(a: int, first: list[str | int], b: int, second: list[str | int]) -> None:
    same = a == b and first == second and [type(n) for n in first] == [type(n) for n in second]
    assert (derive(a, *first) == derive(b, *second)) == same
    assert 0 <= derive(a, *first) < 2**63


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), ("1",)),
        (("a", "b"), ("ab",)),
        (("a", "b"), ("a\x1fstr:b",)),
        (("a\x1f",), ("a\\x1f",)),
        (("a", "b"), ("b", "a")),
        (("a", ""), ("a",)),
    ],
)
def test_paths_that_look_alike_differ(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert derive(0, *one) != derive(0, *other)


def test_a_name_from_numpy_or_an_enumeration_is_the_same_name() -> None:
    """`np.unique` of a manifest's sites gives NumPy strings; the site's stream must not depend on that."""

    class Purpose(StrEnum):
        order = "order"

    plain = derive(3, "order", "kampala", 5)
    assert derive(3, Purpose.order, np.str_("kampala"), np.int64(5)) == plain
    assert derive(np.int64(3), "order", "kampala", np.uint8(5)) == plain


def test_a_float_is_no_name() -> None:
    with pytest.raises(TypeError):
        derive(0, 0.1)  # type: ignore[arg-type]


def test_the_same_in_another_process() -> None:
    program = (
        "from morphfed.core.seeding import derive, numpy_stream\n"
        "print(derive(1, 'a', 2), numpy_stream(1, 'a').integers(0, 10**9))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(derive(1, "a", 2)), str(numpy_stream(1, "a").integers(0, 10**9))]


def test_streams_repeat_and_do_not_touch_the_global_state() -> None:
    torch.manual_seed(0)
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = torch.rand(5, generator=torch_stream(4, "dropout", "bccd"))
    assert torch.equal(first, torch.rand(5, generator=torch_stream(4, "dropout", "bccd")))
    assert not torch.equal(first, torch.rand(5, generator=torch_stream(4, "dropout", "tecom")))
    assert numpy_stream(4, "x").random() == numpy_stream(4, "x").random()
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])


def test_neighbouring_streams_are_uncorrelated() -> None:
    """Streams of 40 rounds: pairwise correlations as of independent draws (sd 1/√n, 780 pairs, 5 sd)."""
    n = 4000
    draws = np.stack([numpy_stream(0, "order", "kampala", r).standard_normal(n) for r in range(40)])
    correlation = np.corrcoef(draws)[np.triu_indices(40, k=1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(n)
    assert abs(draws.mean()) < 5 / np.sqrt(draws.size)


def test_adding_a_site_changes_nobody_elses_draws() -> None:
    def draws(sites: list[str]) -> dict[str, list[int]]:
        return {s: list(numpy_stream(0, "order", s).permutation(50)) for s in sites}

    before, after = draws(["barcelona", "tecom"]), draws(["tecom", "kampala", "barcelona"])
    assert all(after[site] == before[site] for site in before)
