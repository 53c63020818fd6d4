"""FedProx's gradient against autograd of the written-out objective."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from morphfed.algorithms.base import ALGORITHMS
from morphfed.algorithms.fedprox import FedProxConfig, ProximalSite, proximal_gradient
from morphfed.core.config import validate
from morphfed.core.errors import ConfigError


def _network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.mark.parametrize("mu", [0.01, 1.0, 10.0])
def test_gradient_equals_autograd_of_the_objective(mu: float) -> None:
    model = _network()
    anchor = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    x, y = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])

    written_out = F.cross_entropy(model(x), y) + mu / 2 * sum(
        (p - anchor[name]).pow(2).sum() for name, p in model.named_parameters()
    )
    expected = torch.autograd.grad(written_out, list(model.parameters()))

    F.cross_entropy(model(x), y).backward()
    proximal_gradient(model, anchor, mu)(model)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_parameters_that_stay_at_the_site_are_left_alone() -> None:
    model = _network()
    anchor = {"0.weight": torch.zeros_like(model[0].weight)}
    model(torch.ones(2, 4).double()).sum().backward()
    before = model[2].weight.grad.clone()
    proximal_gradient(model, anchor, 5.0)(model)
    assert torch.equal(model[2].weight.grad, before)


def test_config_refuses_a_misspelt_key_and_a_negative_mu() -> None:
    with pytest.raises(ConfigError, match="unknown key 'mue'.*Did you mean 'mu'"):
        validate(FedProxConfig, {"mue": 0.1}, where="study.toml: arms.fedprox")
    with pytest.raises(ConfigError, match="'mu' = -1"):
        validate(FedProxConfig, {"mu": -1}, where="study.toml: arms.fedprox")


def test_registered() -> None:
    assert {"fedavg", "fedprox", "local", "centralised"} <= set(ALGORITHMS.names())
    assert isinstance(ALGORITHMS["fedprox"].site(FedProxConfig(mu=0.1)), ProximalSite)
    with pytest.raises(ConfigError, match="no algorithm 'fedpox'.*Did you mean 'fedprox'"):
        ALGORITHMS["fedpox"]
