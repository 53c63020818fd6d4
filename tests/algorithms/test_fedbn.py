"""FedBN: norms stay, the rest is FedAvg."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from morphfed.algorithms.base import ALGORITHMS
from morphfed.algorithms.fedbn import FedBNConfig
from morphfed.models.layout import Layout

Make = Callable[..., Any]
NORM = {"1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_norms_stay_and_all_else_travels() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.GroupNorm(2, 4), torch.nn.Linear(4, 2)
    )
    going = ALGORITHMS["fedbn"].travels(FedBNConfig(), Layout.of(model))
    assert going == ("0.weight", "0.bias", "3.weight", "3.bias")


def test_without_norms_it_is_fedavg_to_the_bit(federation: Make) -> None:
    one = federation(None, algorithm="fedbn", norm="none").loop.run().last
    two = federation(None, algorithm="fedavg", norm="none").loop.run().last
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_it_is_fedavg_with_local_norms_to_the_bit(federation: Make) -> None:
    """Two ways to say the same: the algorithm, and model.norm = "local" under FedAvg."""
    one = federation(None, algorithm="fedbn").loop.run()
    two = federation(None, algorithm="fedavg", norm="local").loop.run()
    assert all(torch.equal(one.last[k], two.last[k]) for k in two.last)
    for site in two.last_sites:
        assert all(torch.equal(one.last_sites[site][k], t) for k, t in two.last_sites[site].items())


def test_every_site_is_judged_with_its_own_norms(federation: Make) -> None:
    made = federation(None, algorithm="fedbn", rounds=2)
    outcome = made.loop.run()
    found = {}
    for site in made.sites:
        site.load_model(outcome.last)
        found[site.name] = {k: made.model.state_dict()[k].clone() for k in NORM}
        assert all(torch.equal(found[site.name][k], outcome.last_sites[site.name][f"local/{k}"]) for k in NORM)
    assert not torch.equal(found["kampala"]["1.running_mean"], found["lagos"]["1.running_mean"])
    assert not torch.equal(found["kampala"]["1.weight"], found["lagos"]["1.weight"])


def test_steady_and_free_of_order(steady: Callable[..., Any], order_free: Callable[..., None]) -> None:
    outcome = steady("fedbn")
    assert not NORM & set(outcome.last)
    order_free("fedbn")


def test_a_newcomer_is_told_of_the_adaptation(refuses: Callable[..., None]) -> None:
    assert "re-estimated" in ALGORITHMS["fedbn"].newcomer(FedBNConfig())
    refuses(FedBNConfig, "weigthing", "weighting")
