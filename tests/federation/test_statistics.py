"""Class counts summed over the sites before round 1: who sends what, what the loss does with it, and a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from morphfed.core.errors import FederationError
from morphfed.core.types import Tensors
from morphfed.federation.statistics import summed_counts

Make = Callable[..., Any]
SHARED = {"loss": {"kind": "logit_adjusted", "prior": "federation"}}
OWN = {"loss": {"kind": "logit_adjusted"}}
COUNTS = {"kampala": [9, 3], "lagos": [6, 2], "quito": [1, 5]}
SUM = [16, 10]


def _unequal(make: Make, folder: Path | None = None, **settings: Any) -> Any:
    """Sites of 12, 8 and 6 images with the class counts above."""
    made = make(folder, **settings)
    for site in made.sites:
        labels = np.repeat([0, 1], COUNTS[site.name])
        site._train = replace(site._train, labels=labels)
    return made


def _same(one: Tensors, other: Tensors) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_sum_by_hand() -> None:
    total = summed_counts({site: np.array(counts) for site, counts in COUNTS.items()})
    assert total.tolist() == SUM
    assert total.dtype == np.int64


@pytest.mark.parametrize("counts", [[1, 2, 3], [-1, 4], [0, 0], [0.5, 1.0]])
def test_counts_that_cannot_be_are_refused_by_the_site_s_name(counts: list[float]) -> None:
    with pytest.raises(FederationError, match="'quito'"):
        summed_counts({"lagos": np.array([1, 2]), "quito": np.array(counts)})


def test_every_site_s_loss_uses_the_sum(federation: Make) -> None:
    made = _unequal(federation, train=SHARED, rounds=1)
    made.loop.run()
    site = made.sites[0]
    images, labels = site._train.batch(np.arange(len(site._train)))
    made.model.eval()
    with torch.no_grad():
        logits = made.model((images.float() / 255 - 0.5) / 0.25)
        prior = torch.tensor(SUM, dtype=torch.float32) / sum(SUM)
        # p̃_c ∝ π_c exp z_c, written out
        weighed = prior * logits.exp()
        expected = -(weighed.gather(1, labels[:, None]).squeeze(1) / weighed.sum(1)).log().mean().item()
        own = F.cross_entropy(logits + torch.tensor([0.75, 0.25]).log(), labels).item()
    assert site._work(1, 1).loss() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(own, rel=1e-3)


def test_where_every_site_has_the_same_shares_the_model_is_the_one_of_the_sites_own_counts(federation: Make) -> None:
    assert _same(federation(None, train=SHARED).loop.run().last, federation(None, train=OWN).loop.run().last)
    unequal = [_unequal(federation, train=train).loop.run().last for train in (SHARED, OWN)]
    assert not _same(*unequal)


def test_counts_leave_once_through_the_gate_and_their_bytes_are_counted(federation: Make, tmp_path: Path) -> None:
    outcome = _unequal(federation, tmp_path, train=SHARED, rounds=2).loop.run()
    for site, counts in COUNTS.items():
        lines = [json.loads(line) for line in (tmp_path / f"{site}.jsonl").read_text().splitlines()]
        sent = [line for line in lines if line.get("statistic")]
        assert [(line["round"], line["values"], line["bytes"]) for line in sent] == [(0, counts, 16)]
        assert lines[0] == sent[0]  # before anything else
    plain = _unequal(federation, train=OWN, rounds=2).loop.run().progress
    assert outcome.progress.bytes_up - plain.bytes_up == 3 * 16
    assert outcome.progress.bytes_down - plain.bytes_down == 3 * 16
    assert outcome.progress.class_counts == SUM
    assert plain.class_counts is None


def test_a_resumed_run_asks_nobody_again_and_ends_in_the_same_bytes(
    federation: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _unequal(federation, train=SHARED).loop.run()
    cut = _unequal(federation, tmp_path, train=SHARED)
    monkeypatch.setattr(cut.sites[1], "train", _power_cut(cut.sites[1].train, 2))
    with pytest.raises(KeyboardInterrupt):
        cut.loop.run()
    again = _unequal(federation, tmp_path, train=SHARED)
    monkeypatch.setattr(again.transport, "class_counts", lambda: pytest.fail("asked again"))
    outcome = again.loop.run()
    assert _same(outcome.last, expected.last)
    assert outcome.progress.class_counts == SUM
    assert outcome.progress.bytes_up == expected.progress.bytes_up


def _power_cut(train: Callable[..., Any], at: int) -> Callable[..., Any]:
    def cut(round_number: int, *rest: Any) -> Any:
        if round_number == at:
            raise KeyboardInterrupt
        return train(round_number, *rest)

    return cut
