"""A study whose sites judge what they have just trained: results, report, plan, folds; the same weights as without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from morphfed.evaluation.retrogress import summarise_retrogress
from morphfed.experiment.plan import plan_study, render_plan
from morphfed.experiment.runner import Options, run_study

ON = "evaluation.retrogress=true"
ARMS = "arms={fedavg={}, fedper={}, local={}}"


def _run(study: Path, *overrides: str) -> tuple[dict[str, Any], Path]:
    done = run_study(study, Options(study.parent / "runs", overrides=overrides))
    assert not done.failed
    return json.loads(done.results.read_text()), done.run


def test_results_report_and_weights(tiny: Path) -> None:
    plain, _ = _run(tiny, ARMS, "federation.rounds=2", "name=plain")
    results, run = _run(tiny, ARMS, "federation.rounds=2", ON)
    assert "retrogress" not in plain
    assert [a["models"] for a in plain["arms"]] == [a["models"] for a in results["arms"]]
    for before, after in zip(plain["arms"], results["arms"], strict=True):
        assert before["sites"] == after["sites"]
    for arm in results["arms"]:
        for entry in arm["history"]:
            recorded = {site for site, block in entry["sites"].items() if "before" in block}
            assert recorded == (set() if arm["arm"] == "local" else {"alder", "birch"})
            for site in recorded:
                assert entry["sites"][site]["before"].keys() == {"balanced_accuracy", "macro_f1", "loss"}
    images = {
        site: sum(c["validation"] for c in results["data"]["sites"][site]["classes"].values())
        for site in ("alder", "birch")
    }
    assert results["retrogress"] == summarise_retrogress(results["arms"], ["alder", "birch"], images)
    assert {e["model"] for e in results["retrogress"]} == {"fedavg", "fedper"}
    assert {e["communications"] for e in results["retrogress"] if e["scope"] == "alder"} == {2}
    page = (run / "report.html").read_text()
    assert 'id="communication"' in page
    assert 'id="table-retrogress-balanced-accuracy"' in page
    assert 'id="communication"' not in (tiny.parent / "runs" / "plain" / "report.html").read_text()
    folder = run / "units/fedavg/all/seed-0"
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    uploads = [line for line in lines if line["tensors"]]
    assert all(
        {"before_balanced_accuracy", "before_macro_f1", "before_loss"} <= line["metrics"].keys() for line in uploads
    )
    assert sum(line["bytes"] for line in uploads) == results["arms"][0]["bytes_up"]


def test_a_finished_run_is_not_refused_and_has_nothing_to_show(tiny: Path) -> None:
    """Switched on later, it counts for what is trained from then on."""
    _run(tiny, "federation.rounds=1")
    results, _ = _run(tiny, "federation.rounds=1", "seeds=[0,1]", ON)
    entries = {e["scope"]: e for e in results["retrogress"] if e["metric"] == "loss"}
    assert entries["alder"]["seeds"] == entries["alder"]["communications"] == 1


def test_every_site_held_out_in_turn(tiny: Path) -> None:
    results, run = _run(tiny, "federation.rounds=1", "holdout=each", "held_out=[]", ON)
    folds = [json.loads((run / f["results"]).read_text()) for f in results["folds"]]
    drops: dict[str, list[float]] = {}
    for fold in folds:
        for e in fold["retrogress"]:
            if e["metric"] == "loss" and e["scope"] != "mean_training":
                drops.setdefault(e["scope"], []).append(e["mean"])
    assert {site: len(found) for site, found in drops.items()} == {"alder": 2, "birch": 2, "cedar": 2}
    joined = {e["scope"]: e for e in results["retrogress"] if e["metric"] == "loss"}
    for site, found in drops.items():
        assert joined[site]["mean"] == pytest.approx(sum(found) / 2)
        assert joined[site]["communications"] == 2
    assert 'id="table-retrogress-balanced-accuracy"' in (run / "report.html").read_text()
    assert 'id="figure-teeth-balanced-accuracy-0"' in (run / results["folds"][0]["report"]).read_text()


def test_plan_counts_both_validations(tiny: Path) -> None:
    off, on = (plan_study(tiny, [ARMS, *more], measure=False) for more in ((), (ON,)))
    sites = off["sites"]
    images = {site: sites[site]["validation"] for site in ("alder", "birch")}
    assert sum(images.values()) > 0
    for plan, times in ((off, 1), (on, 2)):
        validated = {u["model"]: u["validated"] for u in plan["units"]}
        assert validated["fedavg"] == validated["fedper"] == times * 3 * sum(images.values())
        assert validated["local/alder"] == 3 * images["alder"]  # nothing is sent, nothing is judged twice
        assert {u["tested"] for u in plan["units"]} == {sum(s["test"] for s in sites.values())}
    assert "twice a round" in render_plan(on)
    assert "twice a round" not in render_plan(off)
    total = sum(u["validated"] for u in on["units"])
    assert f"judged: {total} validation images" in render_plan(on)
