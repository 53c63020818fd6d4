"""HistoFL: FedAvg as a limit, the spread of both placements against their formulas, what gets no noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from morphfed.algorithms.base import ALGORITHMS, CoordinatorHalf, Outlook, SiteWork
from morphfed.algorithms.histofl import HistoFLConfig
from morphfed.core.types import Tensors, Upload
from morphfed.federation.loop import Outcome
from morphfed.models.layout import Layout
from morphfed.training.trainer import FitReport

Make = Callable[..., Any]
HISTOFL = ALGORITHMS["histofl"]
SPREADS = (1.0, 2.0, 0.5, 1.5)
WEIGHTS = (10.0, 20.0, 30.0, 40.0)
N = 200


class Net(nn.Module):
    """40,000 weights, as many numbers in a bias, and a statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(N, N, bias=False)
        self.bias = nn.Parameter(torch.zeros(N * N))
        self.register_buffer("mean", torch.zeros(N * N))


def trained(k: int) -> Tensors:
    """Site k's model: spread SPREADS[k] about k."""
    stream = torch.Generator().manual_seed(k)
    return {
        "bias": k + SPREADS[k] * torch.randn(N * N, generator=stream),
        "mean": k + torch.randn(N * N, generator=stream),
        "layer.weight": k + SPREADS[k] * torch.randn(N, N, generator=stream),
    }


def upload_of(config: HistoFLConfig, k: int) -> Tensors:
    """Through the site half; the network must stay as it was trained."""
    net = Net()

    def fit(**_: Any) -> FitReport:
        net.load_state_dict(trained(k))
        return FitReport(loss=0.0, steps=1, images=1)

    layout = Layout.of(net)
    work = SiteWork(f"s{k}", 1, net, layout, layout.order, 1, fit, lambda: 0.0, lambda _: None, seed=5)
    answer = HISTOFL.site(config).train(work, {})
    assert all(torch.equal(net.state_dict()[name], t) for name, t in trained(k).items())
    return {name: t.clone() for name, t in answer.tensors.items()}


def aggregate(config: HistoFLConfig, *, seed: int = 5) -> Tensors:
    layout = Layout.of(Net())
    half: CoordinatorHalf = HISTOFL.coordinator(config, Net().state_dict(), layout)
    half.plan(Outlook(3, ("s0", "s1", "s2", "s3"), seed))
    half.begin_round(1, [])
    for k in range(4):
        half.fold(Upload(f"s{k}", 1, upload_of(config, k), WEIGHTS[k]))
    half.end_round()
    return half.model()


def shares(weighting: str) -> list[float]:
    return [0.25] * 4 if weighting == "uniform" else [w / sum(WEIGHTS) for w in WEIGHTS]


@pytest.mark.parametrize("weighting", ["uniform", "images"])
@pytest.mark.parametrize("placement", ["unweighted", "weighted"])
@pytest.mark.parametrize("biases", [False, True])
def test_measured_spread_is_its_formulas(weighting: Any, placement: Any, biases: bool) -> None:
    alpha = 0.1
    config = HistoFLConfig(alpha=alpha, noise=placement, weighting=weighting, biases=biases)
    found = aggregate(config)
    p = shares(weighting)
    stds = [trained(k)["layer.weight"].std().item() for k in range(4)]
    factors = [1.0] * 4 if placement == "unweighted" else p
    expected = alpha * math.sqrt(sum((f * s) ** 2 for f, s in zip(factors, stds, strict=True)))
    for name in ("layer.weight", "bias", "mean"):
        noise = found[name] - sum(p[k] * trained(k)[name] for k in range(4))
        if name == "mean" or (name == "bias" and not biases):
            assert noise.abs().max() < 1e-5
        else:  # 40,000 draws: the standard deviation is known to 0.35 %, the mean to 0.5 % of it
            assert noise.std().item() == pytest.approx(expected, rel=0.02)
            assert abs(noise.mean().item()) < 4 * expected / N


def test_four_sites_alike() -> None:
    """α = 0.1: 0.20 of the spread as published, 0.05 weighted."""
    for placement, expected in (("unweighted", 0.20), ("weighted", 0.05)):
        half = HISTOFL.coordinator(HistoFLConfig(), Net().state_dict(), Layout.of(Net()))
        config = HistoFLConfig(alpha=0.1, noise=placement, weighting="uniform")  # type: ignore[arg-type]
        half = HISTOFL.coordinator(config, Net().state_dict(), Layout.of(Net()))
        half.begin_round(1, [])
        clean = trained(0)
        for k in range(4):
            net = Net()
            net.load_state_dict(clean)
            layout = Layout.of(net)
            fit = lambda **_: FitReport(loss=0.0, steps=1, images=1)  # noqa: E731
            work = SiteWork(f"s{k}", 1, net, layout, layout.order, 1, fit, lambda: 0.0, lambda _: None)
            half.fold(Upload(f"s{k}", 1, HISTOFL.site(config).train(work, {}).tensors, 1.0))
        half.end_round()
        noise = half.model()["layer.weight"] - clean["layer.weight"]
        assert (noise.std() / clean["layer.weight"].std()).item() == pytest.approx(expected, rel=0.02)


def test_draws_differ_by_site_round_and_seed_and_repeat() -> None:
    config = HistoFLConfig(alpha=0.1, weighting="uniform")
    one, again, other = aggregate(config), aggregate(config), aggregate(config, seed=6)
    assert torch.equal(one["layer.weight"], again["layer.weight"])
    assert not torch.equal(one["layer.weight"], other["layer.weight"])


@pytest.mark.parametrize("placement", ["unweighted", "weighted"])
def test_without_noise_it_is_fedavg_to_the_bit(placement: str, federation: Make) -> None:
    plain = federation(None, algorithm="fedavg").loop.run()
    silent = federation(None, algorithm="histofl", keys={"alpha": 0.0, "noise": placement}).loop.run()
    noisy = federation(None, algorithm="histofl", keys={"alpha": 0.1, "noise": placement}).loop.run()
    assert all(torch.equal(plain.last[name], silent.last[name]) for name in plain.last)
    assert not any(torch.equal(plain.last[name], noisy.last[name]) for name in ("0.weight", "6.weight"))


@pytest.mark.parametrize("placement", ["unweighted", "weighted"])
def test_killed_and_resumed_gives_the_same_bytes(placement: str, steady: Callable[..., Outcome]) -> None:
    steady("histofl", {"alpha": 0.05, "noise": placement})


def test_the_report_says_that_nothing_is_guaranteed(refuses: Callable[..., None]) -> None:
    for placement, said in (("unweighted", "the coordinator itself sees"), ("weighted", "by each site")):
        note = HISTOFL.note(HistoFLConfig(noise=placement), 4)  # type: ignore[arg-type]
        assert "no formal guarantee" in note
        assert said in note
    assert "FedAvg" in HISTOFL.note(HistoFLConfig(alpha=0), 4)
    refuses(HistoFLConfig, "alhpa", "alpha")
