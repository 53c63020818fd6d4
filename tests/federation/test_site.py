"""A site's work: parts trained in turn, optimisers by slot, personal values over the download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from morphfed.algorithms.base import Answer, SiteHalf, SiteWork
from morphfed.core.types import Tensors
from morphfed.federation.site import training_only

Make = Callable[..., Any]
HEAD = ("6.weight", "6.bias")


class _HeadOnly(SiteHalf):
    def train(self, work: SiteWork, download: Tensors) -> Answer:
        report = work.fit(only=HEAD, epochs=2, slot="head")
        return Answer(work.current(), report)


def test_only_the_named_part_is_trained_and_norms_stand_still(federation: Make) -> None:
    made = federation(None, sizes={"kampala": 12}, rounds=1)
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    made.sites[0]._half = _HeadOnly()
    outcome = made.loop.run()
    for name, tensor in outcome.last.items():
        assert torch.equal(tensor, before[name]) == (name not in HEAD), name
    assert outcome.progress.steps == 2 * 3  # two passes of three batches
    assert all(p.requires_grad and p.grad is None for p in made.model.parameters())


def test_a_name_that_is_not_trained_is_refused(federation: Make) -> None:
    made = federation(None)
    with pytest.raises(ValueError, match=r"7\.weight"), training_only(made.model, ["7.weight"]):
        pass


class _TwoSlots(SiteHalf):
    def train(self, work: SiteWork, download: Tensors) -> Answer:
        report = work.fit()
        uploaded = {name: t.clone() for name, t in work.current().items()}
        work.load(download)
        work.fit(slot="personal")
        work.state.update({name: t.clone() for name, t in work.current().items()})
        return Answer(uploaded, report)

    def personal(self, state: Tensors) -> Tensors:
        return state


def test_each_slot_keeps_its_own_moments_and_they_survive_a_restart(federation: Make) -> None:
    made = federation(None, sizes={"kampala": 12}, rounds=1, keep_optimizer=True)
    made.sites[0]._half = _TwoSlots()
    made.loop.run()
    state = made.sites[0].state()
    slots = {name.split("/")[1] for name in state if name.startswith("optimizer/")}
    assert slots == {"model", "personal"}
    moments = [k for k in state if k.endswith("exp_avg")]
    assert any(not torch.equal(state[k], state[k.replace("/model/", "/personal/")]) for k in moments)
    other = federation(None, sizes={"kampala": 12}).sites[0]
    other.load_state({k: v.clone() for k, v in state.items()})
    again = other.state()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], state[k]) for k in state)


def test_a_site_judges_its_personal_model(federation: Make) -> None:
    made = federation(None, sizes={"kampala": 12}, rounds=1)
    site = made.sites[0]
    site._half = _TwoSlots()
    outcome = made.loop.run()
    site.load_model(outcome.last)
    personal = {k.removeprefix("algorithm/"): v for k, v in site.state().items() if k.startswith("algorithm/")}
    now = made.model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in personal.items())
    assert any(not torch.equal(outcome.last[name], tensor) for name, tensor in personal.items())


class _Talkative(SiteHalf):
    def train(self, work: SiteWork, download: Tensors) -> Answer:
        report = work.fit()
        return Answer({**work.current(), "secret": torch.zeros(3)}, report)


def test_what_is_not_declared_does_not_leave(federation: Make) -> None:
    from morphfed.core.errors import PrivacyError

    made = federation(None, sizes={"kampala": 12})
    made.sites[0]._half = _Talkative()
    with pytest.raises(PrivacyError, match="'secret'"):
        made.loop.run()


def test_loss_of_the_model_as_it_stands(federation: Make) -> None:
    import torch.nn.functional as F

    made = federation(None, sizes={"kampala": 12})
    site = made.sites[0]
    images, labels = site._train.batch(site._train.rows)
    made.model.eval()
    with torch.no_grad():
        expected = F.cross_entropy(made.model((images.float() / 255 - 0.5) / 0.25), labels).item()
    assert site._work(1, 1).loss() == pytest.approx(expected, rel=1e-5)


class _Remembering(SiteHalf):
    """Keeps the last download by reference, as its own tensor and as a view."""

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        report = work.fit()
        work.state.update({"whole": download["0.weight"], "part": download["0.weight"][0]})
        return Answer(work.current(), report)


def test_what_a_site_keeps_of_a_download_outlives_the_round(federation: Make) -> None:
    made = federation(None, sizes={"kampala": 12}, rounds=4)
    made.sites[0]._half = _Remembering()
    downloads = []
    for number in (1, 2, 3, 4):
        downloads.append(made.coordinator.model()["0.weight"].clone())
        kept = dict(made.sites[0]._private)
        made.loop._round(number)
        if number > 1:  # its memory has been written over since
            assert torch.equal(kept["whole"], downloads[-2])
            assert torch.equal(kept["part"], downloads[-2][0])


def test_a_site_without_validation_images_judges_nothing_and_fills_no_network(
    federation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = federation(None).sites[0]
    site._validation = {}
    monkeypatch.setattr(site, "load_model", lambda download: pytest.fail("the network was filled for nothing"))
    assert site.evaluate(1, {}) == {}
