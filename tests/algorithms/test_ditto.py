"""Ditto: a global model that is FedAvg's, and personal ones against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from morphfed.algorithms.base import ALGORITHMS, SiteWork
from morphfed.algorithms.ditto import DittoConfig, DittoSite
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout
from morphfed.training.optimise import make_optimizer
from morphfed.training.trainer import FitReport

Make = Callable[..., Any]
RATE, STEPS, TARGET = 0.1, 7, 5.0


def quadratic_work(model: nn.Linear, state: Tensors) -> SiteWork:
    """A site whose loss is ½ (v - 5)² and whose fit makes 7 steps of gradient descent at rate 0.1."""

    def fit(*, after_backward: Any = None, **_: Any) -> FitReport:
        for _step in range(STEPS):
            model.weight.grad = model.weight.detach() - TARGET
            if after_backward is not None:
                after_backward(model)
            with torch.no_grad():
                model.weight -= RATE * model.weight.grad
        return FitReport(loss=1.0, steps=STEPS, images=STEPS)

    def load(tensors: Tensors) -> None:
        model.load_state_dict(tensors, strict=False)

    layout = Layout.of(model)
    return SiteWork("kampala", 1, model, layout, layout.order, 1, fit, lambda: 0.0, load, state)


@pytest.mark.parametrize("lam", [0.0, 0.5, 3.0])
def test_quadratic_against_its_closed_form(lam: float) -> None:
    """v* = (5 + λ w) / (1 + λ), and each step shrinks the distance to it by 1 - 0.1 (1 + λ)."""
    model = nn.Linear(1, 1, bias=False).double()
    state: Tensors = {}
    half, v = DittoSite(lam, None), 2.0  # v_k starts as the first download
    for w in (2.0, -1.0, 0.5):
        download = {"weight": torch.full((1, 1), w, dtype=torch.float64)}
        model.load_state_dict(download)
        answer = half.train(quadratic_work(model, state), download)
        best, shrink = (TARGET + lam * w) / (1 + lam), (1 - RATE * (1 + lam)) ** STEPS
        v = best + shrink * (v - best)
        assert state["weight"].item() == pytest.approx(v, rel=1e-12)
        assert half.personal(state)["weight"].item() == pytest.approx(v, rel=1e-12)
        # What is uploaded knows nothing of λ or v: plain descent from w to 5.
        assert answer.tensors["weight"].item() == pytest.approx(TARGET + (1 - RATE) ** STEPS * (w - TARGET), rel=1e-12)
        assert answer.report.steps == 2 * STEPS
        assert download["weight"].item() == w


def test_a_strong_pull_ends_at_the_download() -> None:
    model, state = nn.Linear(1, 1, bias=False).double(), {"weight": torch.zeros(1, 1).double()}
    download = {"weight": torch.full((1, 1), -1.0, dtype=torch.float64)}
    DittoSite(9.0, None).train(quadratic_work(model, state), download)
    # 1 - 0.1 · 10 = 0: one step reaches (5 - 9) / 10.
    assert state["weight"].item() == pytest.approx(-0.4, rel=1e-12)


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("norm", ["batch", "local"])
def test_the_global_model_is_fedavg_to_the_bit(federation: Make, lam: float, norm: str) -> None:
    """Also with site-local norms: those of the global model are not mixed up with the personal model's."""
    plain = federation(None, algorithm="fedavg", norm=norm).loop.run()
    found = federation(None, algorithm="ditto", keys={"lam": lam}, norm=norm).loop.run()
    assert all(torch.equal(found.last[k], plain.last[k]) for k in plain.last)
    for site, kept in plain.last_sites.items():
        assert all(torch.equal(found.last_sites[site][k], t) for k, t in kept.items())


def test_with_lambda_zero_a_personal_model_is_local_training(federation: Make) -> None:
    """λ = 0 and kept moments: three rounds equal one uninterrupted training that never hears of the others."""
    keys = {"lam": 0.0, "personal_epochs": 2}
    outcome = federation(None, algorithm="ditto", keys=keys, keep_optimizer=True).loop.run()
    bare = federation(None)
    site = bare.sites[1]
    optimizer = make_optimizer(site._trainer.config, bare.model)
    for number in (1, 2, 3):
        where = {"site": "lagos", "round_number": number, "rounds": 3, "epochs": 2, "slot": "personal"}
        site._trainer.fit(bare.model, optimizer, site._train, **where)
    state = bare.model.state_dict()
    for name in bare.layout.order:
        assert torch.equal(outcome.last_sites["lagos"][f"algorithm/{name}"], state[name]), name


def test_a_site_is_judged_by_its_personal_model(federation: Make) -> None:
    made = federation(None, algorithm="ditto", rounds=2)
    outcome = made.loop.run()
    models = {}
    for site in made.sites:
        site.load_model(outcome.last)
        models[site.name] = {k: made.model.state_dict()[k].clone() for k in made.layout.order}
        kept = outcome.last_sites[site.name]
        assert all(torch.equal(t, kept[f"algorithm/{k}"]) for k, t in models[site.name].items())
    assert not torch.equal(models["kampala"]["1.running_mean"], models["lagos"]["1.running_mean"])
    assert not torch.equal(models["kampala"]["0.weight"], outcome.last["0.weight"])


def test_the_nearer_the_stronger_the_pull(federation: Make) -> None:
    """Distance of the personal models to the global one falls as λ rises."""

    def distance(lam: float) -> float:
        outcome = federation(None, algorithm="ditto", keys={"lam": lam}, train={"optimizer": "sgd"}).loop.run()
        kept = outcome.last_sites.values()
        return sum(float((s["algorithm/0.weight"] - outcome.last["0.weight"]).norm()) for s in kept)

    assert distance(0.0) > distance(1.0) > distance(10.0)


def test_steps_of_both_trainings_are_counted(federation: Make) -> None:
    keys = {"personal_epochs": 3}
    progress = federation(None, algorithm="ditto", keys=keys, rounds=1, sizes={"quito": 6}).loop.run().progress
    assert progress.images_seen == 6 * (1 + 3)


@pytest.mark.parametrize("norm", ["batch", "local"])
def test_steady(steady: Callable[..., Any], norm: str) -> None:
    steady("ditto", norm=norm, keep_optimizer=norm == "local")


def test_free_of_order(order_free: Callable[..., None]) -> None:
    order_free("ditto")


def test_keys(refuses: Callable[..., None]) -> None:
    refuses(DittoConfig, "lamb", "lam")
    assert ALGORITHMS["ditto"].newcomer(DittoConfig()) == "the global model"
