"""What holds for every registered algorithm: order of sites, scale of weights, same bytes, resume, refusals."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from morphfed.algorithms.base import ALGORITHMS
from morphfed.core.config import validate
from morphfed.core.errors import ConfigError
from morphfed.core.types import Tensors
from morphfed.federation.checkpoint import CheckpointStore

Make = Callable[..., Any]
NAMES = sorted(ALGORITHMS.names())
FEDERATED = [name for name in NAMES if ALGORITHMS[name].kind == "federated"]
SIZES = {"kampala": 12, "lagos": 8, "quito": 6}
KEYS: dict[str, dict[str, object]] = {"qfedavg": {"lipschitz": 10.0}}
"""Keys without a default."""


def _same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_there(name: str) -> None:
    algorithm = ALGORITHMS[name]
    assert all(vars(algorithm.facts).values())
    assert algorithm.title
    assert algorithm.paper
    assert algorithm.equation
    for key, field in algorithm.config.model_fields.items():
        assert field.description, f"{name}.{key} has no description"
    assert inspect.getmodule(algorithm.config).__doc__  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_key_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown key 'momentun'"):
        validate(ALGORITHMS[name].config, {"momentun": 1}, where=f"study.toml: arms.{name}")


@pytest.mark.parametrize("name", FEDERATED)
def test_same_seed_same_bytes_and_the_model_moves(name: str, federation: Make) -> None:
    one = federation(None, algorithm=name, keys=KEYS.get(name), rounds=2)
    before = {k: t.clone() for k, t in one.coordinator.model().items()}
    first = one.loop.run()
    assert _same(first.last, federation(None, algorithm=name, keys=KEYS.get(name), rounds=2).loop.run().last)
    assert any(not torch.equal(first.last[k], before[k]) for k in first.last)
    assert all(torch.isfinite(t).all() for t in first.last.values())
    assert not first.progress.rejected


@pytest.mark.parametrize("name", FEDERATED)
def test_stopped_after_a_round_and_resumed_gives_the_same_bytes(name: str, federation: Make, tmp_path: Path) -> None:
    straight = federation(tmp_path / "a", algorithm=name, keys=KEYS.get(name), rounds=3, keep_optimizer=True).loop.run()
    stopped = federation(tmp_path / "b", algorithm=name, keys=KEYS.get(name), rounds=3, keep_optimizer=True)
    stopped.loop._begin()
    stopped.loop._round(1)
    assert isinstance(stopped.store, CheckpointStore)
    resumed = federation(tmp_path / "b", algorithm=name, keys=KEYS.get(name), rounds=3, keep_optimizer=True).loop.run()
    assert _same(straight.last, resumed.last)
    assert straight.last_sites.keys() == resumed.last_sites.keys()
    assert all(_same(straight.last_sites[k], resumed.last_sites[k]) for k in straight.last_sites)


@pytest.mark.parametrize("name", FEDERATED)
def test_the_order_of_the_sites_does_not_matter(name: str, federation: Make) -> None:
    """Up to rounding: sums run in the order in which uploads come."""
    one = federation(None, algorithm=name, keys=KEYS.get(name), rounds=1).loop
    two = federation(None, algorithm=name, keys=KEYS.get(name), rounds=1).loop
    transport = two._transport
    transport._sites = dict(reversed(transport._sites.items()))
    a, b = one.run().last, two.run().last
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FEDERATED)
def test_nothing_undeclared_is_kept_in_the_coordinators_model(name: str, federation: Make) -> None:
    made = federation(None, algorithm=name, keys=KEYS.get(name), rounds=1)
    outcome = made.loop.run()
    assert tuple(outcome.last) == made.workspace.travels
    state = made.model.state_dict()
    assert all(outcome.last[k].dtype == state[k].dtype for k in outcome.last)


@pytest.mark.parametrize("name", FEDERATED)
def test_a_round_without_uploads_keeps_the_model(name: str, federation: Make) -> None:
    half = federation(None, algorithm=name, keys=KEYS.get(name)).coordinator
    before = {k: t.clone() for k, t in half.model().items()}
    half.begin_round(1, list(SIZES))
    half.end_round()
    assert _same(before, half.model())
