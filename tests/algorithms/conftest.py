"""What an algorithm must do in the tiny federation, also killed, resumed, and asked in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from morphfed.core.config import validate
from morphfed.core.errors import ConfigError
from morphfed.core.types import Failure, Tensors, Upload
from morphfed.federation.loop import Outcome
from morphfed.federation.transports.inprocess import InProcess

Make = Callable[..., Any]
SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0, "clip": 0.0}
"""Plain gradient descent at a constant rate."""


@pytest.fixture
def sgd() -> dict[str, object]:
    return dict(SGD)


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def same_outcome(one: Outcome, two: Outcome) -> bool:
    """Bit for bit: global models, and what the sites keep."""
    assert one.last_sites.keys() == two.last_sites.keys()
    assert one.best_sites.keys() == two.best_sites.keys()
    pairs = [(one.last, two.last), (one.best, two.best)]
    pairs += [(one.last_sites[s], two.last_sites[s]) for s in one.last_sites]
    pairs += [(one.best_sites[s], two.best_sites[s]) for s in one.best_sites]
    return all(same(a, b) for a, b in pairs)


class _PowerCutError(Exception):
    pass


class _Cut(InProcess):
    """Dies in round 2, when the first site has trained."""

    def train(self, number: int, *args: Any) -> Iterator[Upload | Failure]:
        for answer in super().train(number, *args):
            yield answer
            if number == 2:
                raise _PowerCutError


@pytest.fixture
def steady(federation: Make, tmp_path: Path) -> Callable[..., Outcome]:
    """Three rounds: the same twice, and killed in round 2 and resumed; returns the outcome."""

    def run(algorithm: str, keys: dict[str, object] | None = None, **options: Any) -> Outcome:
        make = partial(federation, algorithm=algorithm, keys=keys, **options)
        whole: Outcome = make(None).loop.run()
        assert same_outcome(whole, make(None).loop.run())
        assert not same(whole.last, make(None, seed=1).loop.run().last)
        cut = make(tmp_path)
        cut.loop._transport = _Cut(cut.sites)
        with pytest.raises(_PowerCutError):
            cut.loop.run()
        resumed = make(tmp_path).loop.run()
        assert same_outcome(whole, resumed)
        assert [h["round"] for h in resumed.progress.history] == [1, 2, 3]
        assert resumed.progress.steps == whole.progress.steps
        return whole

    return run


@pytest.fixture
def order_free(federation: Make) -> Callable[..., None]:
    """The order in which sites answer changes no more than the last bits."""

    def check(algorithm: str, keys: dict[str, object] | None = None) -> None:
        outcomes = []
        for turn in (1, -1):
            made = federation(None, algorithm=algorithm, keys=keys, rounds=2, train=SGD)
            made.loop._transport = InProcess(made.sites[::turn])
            outcomes.append(made.loop.run())
        one, two = outcomes
        for name in one.last:
            torch.testing.assert_close(one.last[name], two.last[name], rtol=1e-4, atol=1e-6)
        for site in one.last_sites:
            for name, tensor in one.last_sites[site].items():
                torch.testing.assert_close(tensor, two.last_sites[site][name], rtol=1e-4, atol=1e-6)

    return check


@pytest.fixture
def refuses() -> Callable[..., None]:
    """A misspelt key is refused with the right one."""

    def check(config: Any, misspelt: str, meant: str) -> None:
        with pytest.raises(ConfigError, match=f"unknown key '{misspelt}'.*Did you mean '{meant}'"):
            validate(config, {misspelt: 1}, where="study.toml: arms.x")

    return check
