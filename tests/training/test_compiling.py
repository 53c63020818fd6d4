"""Compiled steps: when they pay, that sites share them, and that the network stays the plain one."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from tests.federated import Federation, make_set
from torch import nn
from torch._dynamo.testing import CompileCounter

from morphfed.core.errors import ConfigError
from morphfed.training import compiling
from morphfed.training.compiling import Compiled, pays, refuse_without_compiler, worth_trying
from morphfed.training.config import TrainConfig
from morphfed.training.optimise import make_optimizer
from morphfed.training.trainer import Trainer

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, 2))


def trainer(*, compiled: bool, **keys: Any) -> Trainer:
    config = TrainConfig(precision="fp32", batch_size=4, lr=0.01, **keys)
    return Trainer(config, mean=(0.5,) * 3, std=(0.25,) * 3, device=CPU, seed=0, compiled=compiled)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """torch.compile that traces as always, counts what it traces, and generates no code."""
    found = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=found))
    return found


def test_it_pays_when_the_steps_win_more_than_the_units_spend() -> None:
    seconds = {"plain": 0.020, "compiled": 0.015, "compiling": 30.0}
    assert pays(steps=6001, units=1, **seconds)  # 6001 × 5 ms > 30 s
    assert not pays(steps=5999, units=1, **seconds)
    assert not pays(steps=6001, units=2, **seconds)
    assert not pays(steps=10**9, units=1, plain=0.01, compiled=0.011, compiling=1.0)
    assert worth_trying(steps=6001, plain=0.01)
    assert not worth_trying(steps=5999, plain=0.01)


def test_sites_and_batches_of_any_size_share_one_compilation(counter: CompileCounter) -> None:
    t, model = trainer(compiled=True), network()
    keys = list(model.state_dict())
    for number, images in enumerate((18, 9, 14, 7), 1):  # batches of 4 and 3; 3; 4 and 3; 4 and 3
        t.fit(model, make_optimizer(t.config, model), make_set(images, number), site="a", round_number=1, rounds=1)
    assert counter.frame_count == 1
    assert list(model.state_dict()) == keys


def test_a_compiled_fit_is_the_plain_one(counter: CompileCounter) -> None:
    def fit(compiled: bool) -> nn.Module:
        t, model = trainer(compiled=compiled), network()
        t.fit(model, make_optimizer(t.config, model), make_set(10, 0), site="a", round_number=1, rounds=1)
        return model

    plain, compiled = fit(False).state_dict(), fit(True).state_dict()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name])
    assert counter.frame_count == 1


def test_an_algorithm_that_looks_into_the_network_gets_the_plain_one(counter: CompileCounter) -> None:
    made = Federation(None, algorithm="moon", keys={"mu": 0.5}, rounds=2)
    for site in made.sites:
        site._trainer._compiled = Compiled()
    made.loop.run()  # MOON's hook on the classifier would not be called within compiled code
    # Round 1 has no contrast and is compiled; the sites of round 2 are not.
    assert counter.frame_count == 1


def test_a_batch_of_one_is_taken_too(counter: CompileCounter) -> None:
    model = network().eval()
    forward = Compiled().of(model)
    one, five = torch.rand(1, 3, 8, 8), torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(forward(one), model(one))
    torch.testing.assert_close(forward(five), model(five))


def test_measuring_times_the_compiled_network(counter: CompileCounter) -> None:
    how = {"precision": "fp32", "image_size": 8, "batch_size": 3, "device": CPU}
    step, seconds = compiling.measure(network(), plain=0.0, **how)
    assert counter.frame_count == 1
    assert 0 < step < seconds


def test_without_a_compiler_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("\nno C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    torch.compiler.reset()
    with pytest.raises(ConfigError, match="compile for cpu here: .*") as raised:
        refuse_without_compiler(CPU)
    assert "compute.compile = 'off'" in raised.value.fix


@pytest.mark.slow
def test_with_torchs_own_compiler() -> None:
    refuse_without_compiler(CPU)
    # Not AdamW: it makes full steps of the rounding in gradients that are 0, as those of a bias before a norm.
    t, p = (trainer(compiled=compiled, optimizer="sgd") for compiled in (True, False))
    data, model, plain = make_set(10, 0), network(), network()
    t.fit(model, make_optimizer(t.config, model), data, site="a", round_number=1, rounds=1)
    p.fit(plain, make_optimizer(p.config, plain), data, site="a", round_number=1, rounds=1)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(t.predict(model, data), p.predict(plain, data), atol=1e-3)
