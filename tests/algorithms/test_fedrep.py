"""FedRep: head first with the body still, then the body with the head still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from morphfed.algorithms.base import ALGORITHMS, SiteWork
from morphfed.algorithms.fedrep import FedRepConfig, HeadThenBody
from morphfed.federation.site import training_only
from morphfed.training.optimise import make_optimizer

Make = Callable[..., Any]
HEAD = ("6.weight", "6.bias")


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}


def test_each_phase_moves_its_part_only(federation: Make) -> None:
    made = federation(None, algorithm="fedrep", sizes={"kampala": 12}, train={"local_epochs": 3})
    seen = [_state(made.model)]
    work: SiteWork = made.sites[0]._work(1, 3)
    calls = []
    fit = work.fit

    def listening(**keys: Any) -> Any:
        report = fit(**keys)
        seen.append(_state(made.model))
        calls.append((keys["slot"], keys["epochs"]))
        return report

    work.fit = listening  # type: ignore[assignment]
    answer = HeadThenBody(1).train(work, {})
    assert calls == [("head", 1), ("body", 2)]
    before, after_head, after_body = seen
    for name in before:  # the body's running statistics stand still while the head is trained
        assert torch.equal(before[name], after_head[name]) == (name not in HEAD), name
        assert torch.equal(after_head[name], after_body[name]) == (name in HEAD), name
    assert (answer.report.steps, answer.report.images) == (3 * 3, 3 * 12)
    assert set(answer.tensors) == set(before) - set(HEAD)


def test_one_round_equals_two_bare_trainings(federation: Make) -> None:
    """The trainer called by hand: head, then body, each with its own optimiser and streams."""
    outcome = federation(None, algorithm="fedrep", sizes={"kampala": 12}, rounds=1).loop.run()
    bare = federation(None, algorithm="fedrep", sizes={"kampala": 12}, rounds=1)
    site = bare.sites[0]
    for slot, part in (("head", HEAD), ("body", set(bare.layout.parameters) - set(HEAD))):
        with training_only(bare.model, part):
            optimizer = make_optimizer(site._trainer.config, bare.model)
            keys = {"site": "kampala", "round_number": 1, "rounds": 1, "epochs": 1, "slot": slot}
            site._trainer.fit(bare.model, optimizer, site._train, **keys)
    state = bare.model.state_dict()
    assert all(torch.equal(outcome.last[k], state[k]) for k in outcome.last)
    assert all(torch.equal(outcome.last_sites["kampala"][f"local/{k}"], state[k]) for k in HEAD)


@pytest.mark.parametrize(("local", "head", "passes"), [(1, 1, 2), (5, 2, 5), (2, 10, 11)])
def test_passes_of_a_round(federation: Make, local: int, head: int, passes: int) -> None:
    made = federation(
        None,
        algorithm="fedrep",
        keys={"head_epochs": head},
        rounds=1,
        sizes={"quito": 6},
        train={"local_epochs": local},
    )
    assert made.loop.run().progress.images_seen == 6 * passes


def test_steady_and_free_of_order(steady: Callable[..., Any], order_free: Callable[..., None]) -> None:
    outcome = steady("fedrep")
    assert not set(HEAD) & set(outcome.last)
    order_free("fedrep")


def test_steady_with_kept_moments_and_local_norms(steady: Callable[..., Any]) -> None:
    outcome = steady("fedrep", norm="local", keep_optimizer=True)
    slots = {k.split("/")[1] for k in outcome.last_sites["kampala"] if k.startswith("local/")}
    assert slots == {*HEAD, "1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_keys(refuses: Callable[..., None]) -> None:
    refuses(FedRepConfig, "head_epoch", "head_epochs")
    assert ALGORITHMS["fedrep"].newcomer(FedRepConfig()) == ""
