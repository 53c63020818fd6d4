"""Noise in a federation: under every algorithm, before the code, in the ledger and the history, and after a restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from morphfed.algorithms.base import ALGORITHMS
from morphfed.core.progress import Event
from morphfed.privacy.accounting import epsilon

Make = Callable[..., Any]
FEDERATED = [name for name in ALGORITHMS.names() if ALGORITHMS[name].kind == "federated"]
KEYS: dict[str, dict[str, object]] = {"qfedavg": {"lipschitz": 10.0}}
REFUSED = ("prr",)
"""Their uploads hold more than changes of weights: no calibrated noise (tests/experiment/test_noised_run.py)."""
PUBLISHED = {"kind": "as_published", "alpha": 0.1}
CALIBRATED = {"kind": "calibrated", "clip": 0.1, "multiplier": 0.5}


@pytest.mark.parametrize(
    ("name", "noise"),
    [
        *(pytest.param(name, PUBLISHED, id=f"as_published-{name}") for name in FEDERATED),
        *(pytest.param(name, CALIBRATED, id=f"calibrated-{name}") for name in FEDERATED if name not in REFUSED),
    ],
)
def test_under_every_algorithm(name: str, noise: dict[str, object], federation: Make) -> None:
    keys = {"algorithm": name, "keys": KEYS.get(name), "rounds": 1, "norm": "none"}
    made = federation(None, noise=noise, **keys)
    plain, noisy = federation(None, **keys).loop.run(), made.loop.run()
    assert not noisy.progress.rejected
    assert all(torch.isfinite(t).all() for t in noisy.last.values())
    assert any(not torch.equal(plain.last[n], noisy.last[n]) for n in plain.last)


def test_the_mean_of_noised_uploads_is_noised(federation: Make) -> None:
    """FedAvg after one round: the clean mean, and Σ p_k ξ_k of each tensor's own spread (12, 8, 6 images)."""
    plain, noisy = (
        federation(None, rounds=1, noise=n).loop.run() for n in (None, {"kind": "as_published", "alpha": 1})
    )
    assert torch.equal(plain.last["1.running_mean"], noisy.last["1.running_mean"])
    assert torch.equal(plain.last["6.bias"], noisy.last["6.bias"])
    drawn = noisy.last["0.weight"] - plain.last["0.weight"]
    share = (12**2 + 8**2 + 6**2) ** 0.5 / 26
    expected = share * plain.last["0.weight"].std(correction=0).item()
    assert drawn.square().mean().sqrt().item() == pytest.approx(expected, rel=0.25)  # 108 draws


def test_noise_comes_before_the_code_and_its_feedback(federation: Make) -> None:
    """What a code leaves out is of the noised change: sent + left = noised change + what was left before."""
    made = federation(None, noise=CALIBRATED, upload={"code": "int8"}, norm="none", rounds=2)
    site, download = made.sites[0], made.coordinator.download("kampala")
    total = {name: torch.zeros_like(t) for name, t in download.items()}
    sent = {name: torch.zeros_like(t) for name, t in download.items()}
    inner = made.noise.add

    def watched(*args: Any, **where: Any) -> Any:
        found = inner(*args, **where)
        for name, tensor in found.items():
            total[name] += tensor - download[name]
        return found

    made.noise.add = watched
    for number in (1, 2):
        upload = site.train(number, 2, download)
        for name, tensor in made.coding.decode(upload.tensors, download).items():
            sent[name] += tensor - download[name]
    left = site.state()
    for name in download:
        carried = left.get(f"residual/{name}", torch.zeros_like(total[name]))
        torch.testing.assert_close(sent[name] + carried, total[name], rtol=1e-4, atol=1e-5)
    assert any(t.abs().max() > 0 for n, t in left.items() if n.startswith("residual/"))


def test_ledger_history_and_progress_tell_what_is_spent(federation: Make, tmp_path: Path) -> None:
    made = federation(tmp_path, noise=CALIBRATED, norm="none", rounds=3)
    said: list[Event] = []
    made.loop._report = said.append
    outcome = made.loop.run()
    spent = [epsilon(0.25, n, 1e-5) for n in (1, 2, 3)]
    assert [entry["epsilon"] for entry in outcome.progress.history] == spent
    lines = [json.loads(line) for line in (tmp_path / "kampala.jsonl").read_text().splitlines()]
    uploads = [line for line in lines if "noise" in line]
    assert [line["noise"]["epsilon"] for line in uploads] == spent
    assert {line["noise"]["kind"] for line in uploads} == {"calibrated"}
    assert all(line["tensors"] == 0 for line in lines if line not in uploads)  # validation scores
    assert any("round 2/3 · ε" in event.text and "δ 1e-05" in event.text for event in said)


def test_published_noise_is_in_the_ledger_without_epsilon(federation: Make, tmp_path: Path) -> None:
    outcome = federation(tmp_path, noise=PUBLISHED, rounds=1).loop.run()
    assert "epsilon" not in outcome.progress.history[0]
    first = json.loads((tmp_path / "lagos.jsonl").read_text().splitlines()[0])
    assert first["noise"] == {"kind": "as_published", "alpha": 0.1, "biases": False, "epsilon": None, "draw": "study"}


def test_no_noise_no_word_of_it(federation: Make, tmp_path: Path) -> None:
    outcome = federation(tmp_path, rounds=1).loop.run()
    assert "noise" not in (tmp_path / "lagos.jsonl").read_text()
    assert set(outcome.progress.history[0]) == {"round", "seconds", "sites"}


@pytest.mark.parametrize("noise", [PUBLISHED, CALIBRATED], ids=["as_published", "calibrated"])
def test_resumed_after_a_round_gives_the_same_bytes(noise: dict[str, object], federation: Make, tmp_path: Path) -> None:
    keys = {"noise": noise, "norm": "none", "upload": {"code": "int8"}, "algorithm": "hypernetwork"}
    straight = federation(None, **keys).loop.run()
    stopped = federation(tmp_path, **keys)
    stopped.loop._begin()
    stopped.loop._round(1)
    resumed = federation(tmp_path, **keys).loop.run()
    assert all(torch.equal(straight.last[name], resumed.last[name]) for name in straight.last)


def test_the_trained_network_is_judged_without_noise(federation: Make) -> None:
    plain, noisy = (federation(None, rounds=1, retrogress=True, noise=n).loop.run() for n in (None, PUBLISHED))
    before = [o.progress.history[0]["sites"]["kampala"]["before"] for o in (plain, noisy)]
    assert before[0] == before[1]
