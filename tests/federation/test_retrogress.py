"""Before and after each communication: hand-worked drops, weights that do not care, what leaves, resume."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.federated import SIZE, Pictures
from torch import nn

from morphfed.algorithms.base import ALGORITHMS, Answer, SiteHalf, SiteWork
from morphfed.core.errors import PrivacyError
from morphfed.core.types import Failure, Tensors, Upload
from morphfed.evaluation.retrogress import summarise_retrogress
from morphfed.experiment.tasks.classification import validation_metrics
from morphfed.federation.site import UPLOAD_METRICS
from morphfed.federation.transports.inprocess import InProcess
from morphfed.training.dataset import ImageSet
from morphfed.training.trainer import FitReport

Make = Callable[..., Any]
HEAD = ("2.weight", "2.bias")


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ── worked by hand ──────────────────────────────────────────────────────────────────────────────────────────────
def _colour_net() -> nn.Module:
    """Logits are linear in the picture's mean colour."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


def _coloured(labels: list[int], *, flipped: bool) -> ImageSet:
    """Class 0 is white and class 1 black; flipped: the other way round. Normalised, a picture is all +2 or all -2."""
    truth = np.array(labels, dtype=np.int64)
    pixels = np.zeros((len(truth), SIZE, SIZE, 3), dtype=np.uint8)
    pixels[(truth == 0) != flipped] = 255
    ids = np.array([str(i) for i in range(len(truth))], dtype=object)
    return ImageSet(Pictures(pixels), np.arange(len(truth)), truth, 2, ids, ids)


class _Set(SiteHalf):
    """Local training that ends at a known head: logit of class 0 less that of class 1 is ±2 a on white or black."""

    def __init__(self, slope: float) -> None:
        self._slope = slope

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        with torch.no_grad():
            for name, value in work.model.state_dict().items():
                value.zero_()
                if name == "2.weight":
                    value[0] = self._slope / 3  # three colours
        return Answer(work.current(), FitReport(0.5, 1, 4))


def _pair(federation: Make, slopes: tuple[float, float], *, flipped: bool) -> Any:
    made = federation(None, sizes={"east": 4, "west": 4}, rounds=2, retrogress=True, model=_colour_net(), head=HEAD)
    for site, slope, turned in zip(made.sites, slopes, (False, flipped), strict=True):
        site._half, site._measure = _Set(slope), validation_metrics
        site._validation = {site.name: _coloured([0, 0, 0, 1], flipped=turned)}
    return made


def test_averaging_two_sites_with_opposite_labels_costs_what_can_be_worked_out_by_hand(federation: Make) -> None:
    """Each site is perfect alone (logits ±2·1.5); the mean of both heads is 0, so every picture is called class 0."""
    made = _pair(federation, (1.5, -1.5), flipped=True)
    history = made.loop.run().progress.history
    # 3 of class 0 are right and 1 of class 1 is wrong: recalls 1 and 0; F1 of class 0 is 6/7, of class 1 is 0.
    for entry in history:
        for block in entry["sites"].values():
            assert block["before"]["balanced_accuracy"] == 1.0
            assert block["before"]["macro_f1"] == 1.0
            # logit difference +3 on class 0 (loss ln(1 + e^-3)), -3 on class 1: the same
            assert block["before"]["loss"] == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-5)
            assert block["validation"]["balanced_accuracy"] == 0.5
            assert block["validation"]["macro_f1"] == pytest.approx(3 / 7)
            assert block["validation"]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    unit = {"arm": "fedavg", "model": "fedavg", "seed": 0, "rounds": 2, "history": history}
    found = summarise_retrogress([unit], ["east", "west"], {"east": 4, "west": 4})
    rows = {(e["scope"], e["metric"]): e for e in found}
    for scope in ("east", "west", "mean_training"):
        assert rows[scope, "balanced_accuracy"]["mean"] == 0.5
        assert rows[scope, "balanced_accuracy"]["hurt"] == 1.0
        assert rows[scope, "loss"]["mean"] == pytest.approx(math.log(2) - math.log(1 + math.exp(-3)), rel=1e-5)


def test_identical_sites_lose_nothing(federation: Make) -> None:
    made = _pair(federation, (1.5, 1.5), flipped=False)
    unit = {
        "arm": "fedavg",
        "model": "fedavg",
        "seed": 0,
        "rounds": 2,
        "history": made.loop.run().progress.history,
    }
    for entry in summarise_retrogress([unit], ["east", "west"], {"east": 4, "west": 4}):
        assert entry["mean"] == 0.0
        assert entry["hurt"] == entry["helped"] == 0.0
        assert entry["communications"] == (4 if entry["scope"] == "mean_training" else 2)


def test_trained_sites_with_opposite_labels_lose_by_averaging(federation: Make) -> None:
    """The same with real training: what one site calls red the other calls blue."""
    how: dict[str, Any] = {"lr": 0.05, "batch_size": 16, "local_epochs": 30, "schedule": "constant", "clip": 0}
    made = federation(None, sizes={"east": 16, "west": 16}, rounds=2, retrogress=True, train=how, norm="none")
    east, west = made.sites
    data = east._train
    west._train = replace(data, labels=1 - data.labels)
    for site, part in ((east, data), (west, west._train)):
        site._validation, site._measure = {site.name: part}, validation_metrics
    history = made.loop.run().progress.history
    unit = {"arm": "fedavg", "model": "fedavg", "seed": 0, "rounds": 2, "history": history}
    rows = {
        (e["scope"], e["metric"]): e["mean"]
        for e in summarise_retrogress([unit], ["east", "west"], {"east": 16, "west": 16})
    }
    assert rows["mean_training", "balanced_accuracy"] > 0.2
    assert rows["east", "loss"] > 0
    assert rows["west", "loss"] > 0


# ── what it must not change, and what it must be ────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn", "fedper", "fedrep", "ditto", "scaffold", "moon", "fedadam"])
def test_judging_the_own_model_changes_no_weight(federation: Make, algorithm: str) -> None:
    plain = federation(None, algorithm=algorithm, rounds=2).loop.run()
    outcome = federation(None, algorithm=algorithm, rounds=2, retrogress=True).loop.run()
    assert same(plain.last, outcome.last)
    assert same(plain.best, outcome.best)
    assert all(same(state, outcome.last_sites[site]) for site, state in plain.last_sites.items())
    for a, b in zip(plain.progress.history, outcome.progress.history, strict=True):
        told = {site: {k: v for k, v in block.items() if k != "before"} for site, block in b["sites"].items()}
        assert a["sites"] == told
        assert all("before" not in block for block in a["sites"].values())
        assert all(block["before"].keys() == block["validation"].keys() for block in b["sites"].values())


def test_judging_draws_nothing_and_leaves_the_network_as_it_was(federation: Make) -> None:
    made = federation(None, algorithm="ditto", rounds=1, retrogress=True)
    made.loop.run()
    site, model = made.sites[0], made.model
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert site._judge_own()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert str(np.random.get_state()) == str(numpy_state)
    assert same(kept, model.state_dict())


class _Watching(InProcess):
    """Scores the shared network on each site's validation part just after the site has trained."""

    def __init__(self, sites: Any, personal: bool) -> None:
        super().__init__(sites)
        self.seen: dict[tuple[int, str], float] = {}
        self._personal = personal

    def train(self, number: int, *args: Any) -> Iterator[Upload | Failure]:
        for answer in super().train(number, *args):
            site = self._sites[answer.site]
            model = site._workspace.model
            kept = {k: v.clone() for k, v in model.state_dict().items()}
            if self._personal:
                model.load_state_dict({**kept, **site._private})
            data = site._validation[site.name]
            self.seen[number, site.name] = float((site._trainer.predict(model, data).argmax(1) == data.labels).mean())
            model.load_state_dict(kept)
            yield answer


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn", "fedper", "ditto"])
def test_before_is_the_model_that_the_site_has_just_trained(federation: Make, algorithm: str) -> None:
    made = federation(None, algorithm=algorithm, retrogress=True, train={"lr": 0.05})
    watching = _Watching(made.sites, personal=algorithm == "ditto")
    made.loop._transport = watching
    history = made.loop.run().progress.history
    told = {(h["round"], s): b["before"]["balanced_accuracy"] for h in history for s, b in h["sites"].items()}
    assert told == watching.seen
    assert len(set(told.values())) > 1


def test_a_personal_model_that_no_download_replaces_loses_nothing(federation: Make) -> None:
    made = federation(None, algorithm="ditto", retrogress=True, train={"lr": 0.05})
    for entry in made.loop.run().progress.history:
        assert all(block["before"] == block["validation"] for block in entry["sites"].values())


def test_one_site_alone_loses_nothing(federation: Make) -> None:
    made = federation(None, sizes={"kampala": 12}, retrogress=True, train={"lr": 0.05})
    for entry in made.loop.run().progress.history:
        assert entry["sites"]["kampala"]["before"] == entry["sites"]["kampala"]["validation"]


def test_only_declared_numbers_leave_and_each_is_in_the_ledger(federation: Make, tmp_path: Path) -> None:
    made = federation(tmp_path, retrogress=True, rounds=2)
    progress = made.loop.run().progress
    lines = [json.loads(line) for line in (tmp_path / "lagos.jsonl").read_text().splitlines()]
    sent = [line["metrics"]["before_balanced_accuracy"] for line in lines if line["tensors"]]
    assert sent == [h["sites"]["lagos"]["before"]["balanced_accuracy"] for h in progress.history]
    tensors = sum(4 * made.model.state_dict()[k].numel() for k in made.workspace.travels)
    assert progress.bytes_up == 2 * 3 * (tensors + 8 * 6)  # loss, steps, images, two scores, and the weight
    undeclared = federation(None, retrogress=True)
    declaration = undeclared.sites[0]._gate._declaration
    undeclared.sites[0]._gate._declaration = replace(declaration, metrics=UPLOAD_METRICS)
    with pytest.raises(PrivacyError, match="before_balanced_accuracy"):
        undeclared.loop.run()


def test_a_number_that_is_not_finite_stays_and_the_upload_is_accepted(federation: Make) -> None:
    made = federation(None, retrogress=True, rounds=1)
    made.sites[1]._measure = lambda labels, p: {"balanced_accuracy": 0.5, "loss": math.nan}
    progress = made.loop.run().progress
    assert not progress.rejected
    assert progress.history[0]["sites"]["lagos"]["before"] == {"balanced_accuracy": 0.5}


def test_a_site_without_validation_images_sends_none(federation: Make) -> None:
    made = federation(None, retrogress=True, rounds=1)
    whole = made.sites[2]._validation["quito"]
    nothing = {key: getattr(whole, key)[:0] for key in ("rows", "labels", "ids", "clusters")}
    made.sites[2]._validation = {"quito": replace(whole, **nothing)}
    sites = made.loop.run().progress.history[0]["sites"]
    assert "before" not in sites["quito"]
    assert "before" in sites["lagos"]


def test_a_rejected_upload_has_no_before(federation: Make) -> None:
    class Spoiling(InProcess):
        def train(self, *args: Any) -> Iterator[Upload | Failure]:
            for answer in super().train(*args):
                bad = isinstance(answer, Upload) and answer.site == "lagos"
                yield replace(answer, weight=-1.0) if bad else answer

    made = federation(None, retrogress=True, rounds=1)
    made.loop._transport = Spoiling(made.sites)
    sites = made.loop.run().progress.history[0]["sites"]
    assert "before" not in sites["lagos"]
    assert "validation" in sites["lagos"]


@pytest.mark.parametrize("algorithm", ["fedavg", "ditto"])
def test_a_resumed_run_has_the_same_record(federation: Make, tmp_path: Path, algorithm: str) -> None:
    whole = federation(None, algorithm=algorithm, retrogress=True).loop.run().progress.history

    class PowerCutError(Exception):
        pass

    class Cut(InProcess):
        def train(self, number: int, *args: Any) -> Iterator[Upload | Failure]:
            for i, answer in enumerate(super().train(number, *args)):
                if number == 2 and i == 1:
                    raise PowerCutError
                yield answer

    cut = federation(tmp_path, algorithm=algorithm, retrogress=True)
    cut.loop._transport = Cut(cut.sites)
    with pytest.raises(PowerCutError):
        cut.loop.run()
    resumed = federation(tmp_path, algorithm=algorithm, retrogress=True).loop.run().progress.history
    assert [h["sites"] for h in resumed] == [h["sites"] for h in whole]


def test_every_registered_algorithm_leaves_the_trained_model_in_the_network(federation: Make) -> None:
    """What ``before`` rests on: after ``train`` the network is no frozen copy and not the download."""
    for name, algorithm in ALGORITHMS.items():
        if algorithm.kind != "federated":
            continue
        keys = {"lipschitz": 10.0} if name == "qfedavg" else {}
        sizes = dict.fromkeys(("a", "b", "c", "d", "e"), 6)
        made = federation(None, algorithm=name, keys=keys, sizes=sizes, rounds=1, retrogress=True, train={"lr": 0.05})
        site = made.sites[0]
        made.loop._begin()  # what some algorithms exchange before round 1
        download = {k: v.clone() for k, v in made.coordinator.download("a").items()}
        made.coordinator.begin_round(1, ("a",))
        site.train(1, 1, download)
        now = made.workspace.model.state_dict()
        assert any(not torch.equal(now[k], download[k]) for k in made.workspace.travels), name
