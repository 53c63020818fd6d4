"""Whole federations with coded uploads: right means, true bytes, private residuals, resume, order, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from morphfed.core.types import Failure, Spec, Tensors, Upload
from morphfed.federation.transports.inprocess import InProcess

Make = Callable[..., Any]
INT8 = {"code": "int8"}
RANDOM = {"code": "int8", "scale": "tensor", "rounding": "stochastic"}
TOPK = {"code": "topk", "share": 0.2}
WAYS: list[dict[str, Any]] = [
    {"upload": {"code": "bf16"}, "download": "bf16"},
    {"upload": {"code": "fp16"}},
    {"upload": INT8},
    {"upload": RANDOM, "download": "bf16"},
    {"upload": TOPK},
    {"download": "bf16"},
]
ALGORITHMS = ["fedavg", "fedadam", "fedmedian", "krum", "fedprox", "fedbn", "fedper", "ditto", "moon", "scaffold"]
WEIGHTS = ("0.weight", "0.bias", "1.weight", "1.bias", "6.weight", "6.bias")
STATISTICS = ("1.running_mean", "1.running_var")


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def same_outcome(one: Any, two: Any) -> bool:
    return same(one.last, two.last) and all(same(one.last_sites[s], two.last_sites[s]) for s in one.last_sites)


class Listening(InProcess):
    """Keeps copies of what went down and what came up."""

    def __init__(self, sites: Any) -> None:
        super().__init__(sites)
        self.down: list[dict[str, Tensors]] = []
        self.up: list[Upload] = []

    def train(self, number: int, rounds: int, downloads: Any) -> Iterator[Upload | Failure]:
        self.down.append({s: {k: t.clone() for k, t in tensors.items()} for s, tensors in downloads.items()})
        for upload in super().train(number, rounds, downloads):
            assert isinstance(upload, Upload)
            self.up.append(replace(upload, tensors={k: t.clone() for k, t in upload.tensors.items()}))
            yield upload


def listen(made: Any) -> Listening:
    made.loop._transport = Listening(made.sites)
    return made.loop._transport


CASES = [("fedavg", way) for way in WAYS] + [(name, way) for name in ALGORITHMS[1:] for way in WAYS[3:5]]


@pytest.mark.parametrize(("name", "way"), CASES, ids=str)
def test_stopped_and_resumed_gives_the_same_bytes(
    name: str, way: dict[str, Any], federation: Make, tmp_path: Path
) -> None:
    def make(folder: str) -> Any:
        return federation(tmp_path / folder, algorithm=name, rounds=3, keep_optimizer=True, **way)

    straight = make("a").loop.run()
    assert not straight.progress.rejected
    stopped = make("b")
    stopped.loop._round(1)
    resumed = make("b").loop.run()
    assert same_outcome(straight, resumed)
    assert resumed.progress.bytes_up == straight.progress.bytes_up
    state = stopped.model.state_dict()
    assert {k: Spec.of(t) for k, t in straight.last.items()} == {k: Spec.of(state[k]) for k in straight.last}
    assert tuple(straight.last) == stopped.workspace.travels
    assert all(bool(t.isfinite().all()) for t in straight.last.values())


def test_killed_between_two_sites_of_a_round_residuals_go_back_too(federation: Make, tmp_path: Path) -> None:
    class PowerCutError(Exception):
        pass

    class Cut(InProcess):
        def train(self, number: int, *args: Any) -> Iterator[Upload | Failure]:
            for i, answer in enumerate(super().train(number, *args)):
                if number == 3 and i == 1:
                    raise PowerCutError
                yield answer

    whole = federation(None, upload=TOPK).loop.run()
    cut = federation(tmp_path, upload=TOPK)
    cut.loop._transport = Cut(cut.sites)
    with pytest.raises(PowerCutError):
        cut.loop.run()
    assert same_outcome(whole, federation(tmp_path, upload=TOPK).loop.run())


@pytest.mark.parametrize("name", ["fedavg", "fedmedian", "scaffold"])
@pytest.mark.parametrize("upload", [RANDOM, TOPK], ids=str)
def test_the_order_of_the_sites_does_not_matter(name: str, upload: dict[str, Any], federation: Make) -> None:
    """Each site sends the same bytes; sums run in the order in which uploads come."""
    one, two = (federation(None, algorithm=name, rounds=1, upload=upload) for _ in range(2))
    first, second = listen(one), listen(two)
    second._sites = dict(reversed(second._sites.items()))
    a, b = one.loop.run().last, two.loop.run().last
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
    sent = {upload.site: upload.tensors for upload in first.up}
    assert all(same(sent[upload.site], upload.tensors) for upload in second.up)


def test_topk_of_everything_is_fp32_bit_for_bit(federation: Make) -> None:
    plain = federation(None).loop.run()
    assert same_outcome(plain, federation(None, upload={"code": "topk", "share": 1.0}).loop.run())
    assert same_outcome(plain, federation(None, upload={"code": "fp32"}).loop.run())


def test_one_round_is_the_mean_of_rounded_changes_written_out(federation: Make) -> None:
    plain = federation(None, rounds=1)
    heard = listen(plain)
    before = {k: t.clone() for k, t in plain.coordinator.model().items()}
    mean = plain.loop.run().last
    trained = {upload.site: (upload.weight, upload.tensors) for upload in heard.up}
    coded = federation(None, rounds=1, upload={"code": "bf16"}).loop.run().last
    for name in WEIGHTS:
        expected = sum(
            w / 26 * (before[name].double() + (t[name] - before[name]).to(torch.bfloat16).double())
            for w, t in trained.values()
        )
        torch.testing.assert_close(coded[name].double(), expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(coded[name], mean[name])
    assert all(torch.equal(coded[name], mean[name]) for name in STATISTICS)


def test_rounded_downloads_one_round_written_out(federation: Make) -> None:
    made = federation(None, sizes={"kampala": 12}, rounds=1, download="bf16")
    heard = listen(made)
    held = {k: t.clone() for k, t in made.coordinator.model().items()}
    result = made.loop.run().last
    (down,), (up,) = heard.down, heard.up
    for name in WEIGHTS:
        assert torch.equal(down["kampala"][name], held[name].to(torch.bfloat16))
        assert torch.equal(result[name], held[name] + up.tensors[name])
    assert all(down["kampala"][name].dtype == torch.float32 for name in STATISTICS)
    # The site trained from the rounded weights: the same as a federation that starts there.
    other = federation(None, sizes={"kampala": 12}, rounds=1)
    start = {k: t.float() for k, t in down["kampala"].items()}
    other.coordinator.load_state(start)
    trained = other.loop.run().last
    assert all(torch.equal(trained[name] - start[name], up.tensors[name]) for name in WEIGHTS)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_bytes_are_those_of_the_coded_tensors(way: dict[str, Any], federation: Make, tmp_path: Path) -> None:
    made = federation(tmp_path, **way)
    heard = listen(made)
    progress = made.loop.run().progress

    def size(tensors: Tensors) -> int:
        return sum(t.numel() * t.element_size() for t in tensors.values())

    numbers = 8 * 4  # loss, steps, images and the weight
    assert progress.bytes_up == sum(size(upload.tensors) + numbers for upload in heard.up)
    assert progress.bytes_up == 9 * (made.coding.nbytes + numbers)
    assert progress.bytes_down == sum(size(tensors) for round in heard.down for tensors in round.values())
    ledger = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sum(line["bytes"] for line in ledger if line["tensors"]) == progress.bytes_up
    uncoded = federation(None).loop.run().progress
    assert progress.bytes_up + progress.bytes_down < uncoded.bytes_up + uncoded.bytes_down


def test_running_statistics_travel_exactly_and_counters_not_at_all(federation: Make) -> None:
    plain, coded = federation(None, rounds=1), federation(None, rounds=1, upload=TOPK)
    one, two = listen(plain), listen(coded)
    plain.loop.run()
    coded.loop.run()
    for a, b in zip(one.up, two.up, strict=True):
        assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in STATISTICS)
        assert {name.partition("#")[0] for name in b.tensors} == {*WEIGHTS, *STATISTICS}


def test_only_the_body_of_fedper_is_coded_and_scaffolds_control_variates_are_too(federation: Make) -> None:
    body = federation(None, algorithm="fedper", upload=INT8)
    assert not any(name.startswith("6.") for name in body.coding.specs)
    assert "0.weight#codes" in body.coding.specs
    control = federation(None, algorithm="scaffold", upload=INT8)
    assert control.coding.specs["control/0.weight#codes"].dtype == "int8"
    assert control.coding.specs["1.running_mean"].dtype == "float32"


def test_residuals_are_private_and_in_no_model(federation: Make, tmp_path: Path) -> None:
    made = federation(tmp_path, upload=TOPK)
    heard = listen(made)
    outcome = made.loop.run()
    assert not outcome.last_sites
    kept = {k: t for k, t in made.sites[0].state().items() if k.startswith("residual/")}
    assert {k.removeprefix("residual/") for k in kept} == set(WEIGHTS)
    assert any(bool(t.any()) for t in kept.values())
    (newest, *_) = sorted((tmp_path / "sites" / "kampala").glob("private-*.safetensors"), reverse=True)
    assert same({k: t for k, t in load_file(newest).items() if k.startswith("residual/")}, kept)
    assert not any("residual" in name for upload in heard.up for name in upload.tensors)
    off = federation(None, upload={**TOPK, "error_feedback": False})
    off.loop.run()
    assert not any(k.startswith("residual/") for k in off.sites[0].state())


class Spoiling(InProcess):
    """Replaces a tensor of what Lagos sends."""

    def __init__(self, sites: Any, name: str, value: torch.Tensor) -> None:
        super().__init__(sites)
        self._name, self._value = name, value

    def train(self, *args: Any) -> Iterator[Upload | Failure]:
        for answer in super().train(*args):
            if isinstance(answer, Upload) and answer.site == "lagos":
                answer = replace(answer, tensors={**answer.tensors, self._name: self._value})
            yield answer


@pytest.mark.parametrize(
    ("upload", "name", "value", "said"),
    [
        (INT8, "0.bias#scale", torch.tensor(math.nan), "'0.bias#scale' holds NaN or infinity"),
        (INT8, "0.bias#scale", torch.tensor(-1.0), "'0.bias': a scale is not"),
        (INT8, "0.bias#scale", torch.tensor(3e38), "'0.bias' with its change added holds NaN or infinity"),
        (INT8, "0.bias#codes", torch.full((4,), -128, dtype=torch.int8), "'0.bias': a code lies outside"),
        (INT8, "0.bias#codes", torch.zeros(5, dtype=torch.int8), r"'0.bias#codes' has int8 \(5,\), expected"),
        (INT8, "0.bias#codes", torch.zeros(4), "'0.bias#codes' has float32 .*, expected int8"),
        (INT8, "0.bias", torch.zeros(4), "not asked for: 1 .0.bias."),
        (TOPK, "0.bias#index", torch.tensor([4], dtype=torch.int16), r"'0.bias': a position lies outside 0 … 3"),
        (TOPK, "0.bias#index", torch.tensor([-1], dtype=torch.int16), r"'0.bias': a position lies outside"),
        (TOPK, "0.bias#index", torch.tensor([0, 1], dtype=torch.int16), r"'0.bias#index' has int16 \(2,\)"),
        (TOPK, "0.bias#values", torch.tensor([math.inf]), "'0.bias#values' holds NaN or infinity"),
        ({"code": "bf16"}, "0.bias#values", torch.zeros(4), "'0.bias#values' has float32"),
    ],
)
def test_a_bad_coded_upload_is_refused_by_the_sites_name_and_the_round_goes_on(
    upload: dict[str, Any], name: str, value: torch.Tensor, said: str, federation: Make
) -> None:
    import re

    made = federation(None, upload=upload, rounds=1, train={"lr": 0.5})
    made.loop._transport = Spoiling(made.sites, name, value)
    outcome = made.loop.run()
    (refused,) = outcome.progress.rejected
    assert re.search(f"Site 'lagos': upload rejected: .*{said}", refused["reason"])
    assert all(bool(t.isfinite().all()) for t in outcome.last.values())
    assert outcome.progress.bytes_up == 2 * (made.coding.nbytes + 8 * 4)


def test_sites_judge_the_model_that_they_got(federation: Make) -> None:
    """With rounded downloads also the validation after a round is that of the rounded weights."""
    made = federation(None, rounds=1, download="bf16")
    seen: list[Tensors] = []
    site = made.sites[0]
    answers = site._trainer.answers

    def watching(model: Any, *args: Any, **keys: Any) -> Any:
        seen.append({name: model.state_dict()[name].clone() for name in WEIGHTS})
        return answers(model, *args, **keys)

    site._trainer.answers = watching
    last = made.loop.run().last
    assert all(torch.equal(seen[0][name], last[name].to(torch.bfloat16).float()) for name in WEIGHTS)
