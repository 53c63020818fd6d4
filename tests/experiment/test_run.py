"""A whole study on drawn films: what it leaves, and what may not matter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from morphfed.cli import call
from morphfed.core.files import sha256_file
from morphfed.experiment.runner import Options, run_study
from morphfed.models import weights

ALL = [
    "arms={local={}, centralised={}, fedavg={}, prox={algorithm='fedprox', mu=0.0}}",
    "federation.rounds=2",
    "evaluation.resamples=200",
]


def _run(study: Path, *overrides: str, name: str = "runs") -> tuple[dict[str, Any], Path]:
    done = run_study(study, Options(study.parent / name, overrides=overrides))
    assert not done.failed
    return json.loads(done.results.read_text()), done.run


def _model(run: Path, unit: str = "fedavg/all/seed-0", which: str = "last") -> str:
    return sha256_file(run / "units" / unit / f"{which}.safetensors")


@pytest.fixture(scope="module")
def whole(drawn: Path, tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """All arms, once, in two processes."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(drawn, folder / "films")
    (folder / "study.toml").write_text(tiny_text)
    return _run(folder / "study.toml", *ALL, "compute.jobs=2", "compute.threads=1")


def test_every_arm_is_judged_at_every_site(whole: tuple[dict[str, Any], Path]) -> None:
    results, _ = whole
    assert results["schema"] == 1
    assert [a["model"] for a in results["arms"]] == ["local/alder", "local/birch", "centralised", "fedavg", "prox"]
    for arm in results["arms"]:
        assert set(arm["sites"]) == {"alder", "birch", "cedar"}
        assert arm["sites"]["cedar"]["role"] == "held_out"
        assert arm["sites"]["cedar"]["n"] == 28
    assert results["data"]["sites"]["alder"]["cluster_unit"] == "patient"
    assert {c["scope"] for c in results["comparisons"]} >= {"alder", "cedar", "mean_training"}


def test_equal_budget(whole: tuple[dict[str, Any], Path]) -> None:
    arms = {a["model"]: a for a in whole[0]["arms"]}
    assert arms["fedavg"]["images_seen"] == arms["centralised"]["images_seen"]
    assert arms["fedavg"]["images_seen"] == arms["local/alder"]["images_seen"] + arms["local/birch"]["images_seen"]
    assert arms["fedavg"]["bytes_up"] > 0
    assert arms["centralised"]["bytes_up"] == arms["local/alder"]["bytes_up"] == 0


def test_fedprox_with_mu_zero_gave_the_same_bytes_in_another_process(whole: tuple[dict[str, Any], Path]) -> None:
    one, two = (weights.load(whole[1] / f"units/{u}/all/seed-0/last.safetensors") for u in ("fedavg", "prox"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_the_ledger_accounts_for_every_byte(whole: tuple[dict[str, Any], Path]) -> None:
    results, run = whole
    lines = [json.loads(t) for t in (run / "units/fedavg/all/seed-0/ledger.jsonl").read_text().splitlines()]
    uploads = [line for line in lines if line["tensors"]]
    arm = next(a for a in results["arms"] if a["model"] == "fedavg")
    assert sum(line["bytes"] for line in uploads) == arm["bytes_up"]
    assert {(line["round"], line["site"]) for line in uploads} == {(r, s) for r in (1, 2) for s in ("alder", "birch")}
    assert not (run / "units/local/alder/seed-0/ledger.jsonl").exists()


def test_results_and_report_hold_no_path_of_this_machine(whole: tuple[dict[str, Any], Path]) -> None:
    _, run = whole
    for name in ("results.json", "report.html"):
        assert str(run.parent.parent) not in (run / name).read_text()


def test_one_process_gives_the_same_bytes_as_two(whole: tuple[dict[str, Any], Path], tiny: Path) -> None:
    _, run = _run(tiny, *ALL[1:])
    assert _model(run) == _model(whole[1])
    assert _model(run, which="best") == _model(whole[1], which="best")


def test_held_out_means_held_out(whole: tuple[dict[str, Any], Path], tiny: Path) -> None:
    """Whatever the held-out site holds, the trained bytes are the same."""
    for path in (tiny.parent / "films" / "cedar").rglob("*.jpg"):
        shutil.copy(tiny.parent / "films" / "alder" / path.relative_to(tiny.parent / "films" / "cedar"), path)
    _, run = _run(tiny, *ALL[1:])
    assert _model(run) == _model(whole[1])
    assert _model(run, which="best") == _model(whole[1], which="best")


def test_seeds_and_arms_may_be_added_and_only_they_are_trained(tiny: Path) -> None:
    first, run = _run(tiny, "federation.rounds=1")
    before = (run / "units/fedavg/all/seed-0/unit.json").stat().st_mtime_ns
    more, run = _run(tiny, "federation.rounds=1", "seeds=[0,1]", "arms.fedprox={mu=0.5}", "evaluation.images=false")
    assert (run / "units/fedavg/all/seed-0/unit.json").stat().st_mtime_ns == before
    assert [(a["model"], a["seed"]) for a in more["arms"]] == [
        ("fedavg", 0), ("fedprox", 0), ("fedavg", 1), ("fedprox", 1),
    ]  # fmt: skip
    assert first["data"]["sites"]["alder"]["samples"]
    assert not more["data"]["sites"]["alder"]["samples"]
    assert "data:image/jpeg" not in (run / "report.html").read_text()


@pytest.mark.parametrize("norm", ["group", "local"])
def test_norms(tiny: Path, norm: str) -> None:
    results, run = _run(tiny, "federation.rounds=1", f"model.norm='{norm}'")
    arm = results["arms"][0]
    assert (run / "units/fedavg/all/seed-0/sites/alder/best.safetensors").exists() == (norm == "local")
    assert any("adaptation" in w for w in arm["warnings"]) == (norm == "local")


def test_plan_trains_and_writes_nothing(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p for p in tiny.parent.rglob("*") if "films" not in p.parts)
    assert call(["run", str(tiny), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["units"][0]["steps"] == 3 * sum(-(-plan["sites"][s]["train"] // 8) for s in ("alder", "birch"))
    assert sorted(p for p in tiny.parent.rglob("*") if "films" not in p.parts) == before


def test_plan_knows_what_an_algorithm_sends_and_trains(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = "arms={fedavg={}, scaffold={}, ditto={}, fedrep={}, fedper={}}"
    assert call(["run", str(tiny), arms, "--dry-run", "--json"]) == 0
    units = {u["arm"]: u for u in json.loads(capsys.readouterr().out)["units"]}
    steps, sent = units["fedavg"]["steps"], units["fedavg"]["megabytes_per_round"]
    assert units["ditto"]["steps"] == units["fedrep"]["steps"] == 2 * steps
    assert units["scaffold"]["steps"] == units["fedper"]["steps"] == steps
    # A control variate for each weight, none for running statistics.
    assert 1.9 * sent < units["scaffold"]["megabytes_per_round"] < 2 * sent
    assert units["fedper"]["megabytes_per_round"] < sent == units["ditto"]["megabytes_per_round"]


def test_command_line_outcome(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(tiny.parent / "runs")
    assert call(["run", str(tiny), "federation.rounds=1", "--runs", runs]) == 0
    out = capsys.readouterr().out
    assert "report.html" in out
    assert "next:" in out
    assert call(["run", str(tiny), "federation.rounds=1", "--runs", runs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == {}
    assert call(["report", f"{runs}/tiny"]) == 0
