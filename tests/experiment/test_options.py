"""A study with every switch on: what leaves, what is written, what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from morphfed.core.errors import ConfigError
from morphfed.data.ontology import load_ontology
from morphfed.experiment.runner import Options, run_study

# The drawn films hold a third kind of cell that is no class of the study.
SWITCHES = [
    "federation.rounds=2",
    "arms={fedavg={}, local={train={loss={prior='site'}}}}",
    "train.loss={kind='logit_adjusted', prior='federation'}",
    "evaluation.calibrate=temperature",
    "evaluation.unknown=true",
    "evaluation.adapt=norms",
    "evaluation.views=8",
]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from morphfed.data.synthetic import PRESETS, write_films

    folder = tmp_path_factory.mktemp("options")
    counts = {"neutrophil": 14, "lymphocyte": 14, "eosinophil": 6}
    write_films(folder / "films", [PRESETS[n] for n in ("alder", "birch", "cedar")], counts, seed=0, patients=7)
    return folder


@pytest.fixture(scope="module")
def done(films: Path, tiny_text: str) -> tuple[dict[str, Any], Path]:
    study = films / "study.toml"
    study.write_text(tiny_text)
    finished = run_study(study, Options(films / "runs", overrides=SWITCHES))
    assert not finished.failed
    return json.loads(finished.results.read_text()), finished.run


def _arm(results: dict[str, Any], model: str) -> dict[str, Any]:
    return next(a for a in results["arms"] if a["model"] == model)


def test_every_byte_is_in_the_ledger(done: tuple[dict[str, Any], Path]) -> None:
    results, run = done
    arm = _arm(results, "fedavg")
    lines = [json.loads(t) for t in (run / "units/fedavg/all/seed-0/ledger.jsonl").read_text().splitlines()]
    assert sum(line["bytes"] for line in lines if line["tensors"]) == arm["bytes_up"]
    sent = {(line["site"], line["statistic"]) for line in lines if "statistic" in line}
    assert sent == {(s, k) for s in ("alder", "birch") for k in ("class_counts", "temperature", "confidence")}
    held = results["data"]["sites"]
    trained = [sum(held[s]["classes"][c]["train"] for s in ("alder", "birch")) for c in ("neutrophil", "lymphocyte")]
    assert arm["class_counts"] == trained


def test_probabilities_of_the_results_are_those_at_the_temperature(done: tuple[dict[str, Any], Path]) -> None:
    results, run = done
    for arm in results["arms"]:
        folder = run / "units" / arm["arm"] / (arm["model"].partition("/")[2] or "all") / "seed-0"
        frame = pd.read_parquet(folder / "predictions.parquet")
        frame = frame[frame["site"] == "cedar"]
        raw = frame[[c for c in frame.columns if c.startswith("p/")]].to_numpy(dtype=np.float64)
        scaled = raw ** (1 / arm["calibration"]["temperature"])
        scaled /= scaled.sum(axis=1, keepdims=True)
        bins = arm["sites"]["cedar"]["calibration"]
        mean = sum(b["confidence"] * b["n"] for b in bins) / sum(b["n"] for b in bins)
        assert mean == pytest.approx(scaled.max(axis=1).mean(), rel=1e-5)
        assert arm["sites"]["cedar"]["uncalibrated"]["ece"]["value"] is not None
        assert arm["calibration"]["images"] > 0
    assert any(arm["calibration"]["temperature"] != 1 for arm in results["arms"])


def test_unknown_cells_are_judged_and_take_no_part(done: tuple[dict[str, Any], Path]) -> None:
    results, _ = done
    for site in ("alder", "birch", "cedar"):
        about = results["data"]["sites"][site]
        assert about["unknown"] == {"eosinophil": 6}
        assert about["n"] == 28
        block = _arm(results, "fedavg")["sites"][site]["unknown"]
        assert block["n"] == 6
        assert block["kinds"]["eosinophil"]["n"] == 6
        assert 0 <= block["auroc"]["value"] <= 1
    assert load_ontology().is_outside("eosinophil", results["study"]["classes"])
    assert _arm(results, "local/birch")["rejection"]["accepted"] >= 0.95


def test_adaptation_is_told_apart_from_the_held_out_score(done: tuple[dict[str, Any], Path]) -> None:
    results, run = done
    for arm in results["arms"]:
        assert {site: "adapted" in block for site, block in arm["sites"].items()} == {
            "alder": False,
            "birch": False,
            "cedar": True,
        }
        folder = run / "units" / arm["arm"] / (arm["model"].partition("/")[2] or "all") / "seed-0"
        plain, adapted = (pd.read_parquet(folder / f"{name}.parquet") for name in ("predictions", "adapted"))
        plain = plain[plain["site"] == "cedar"]
        assert plain["id"].tolist() == adapted["id"].tolist()
        assert not np.allclose(plain["p/neutrophil"], adapted["p/neutrophil"])
        guess = np.where(plain["p/neutrophil"] >= plain["p/lymphocyte"], "neutrophil", "lymphocyte")
        recalls = [(guess == c)[plain["truth"] == c].mean() for c in ("neutrophil", "lymphocyte")]
        score = arm["sites"]["cedar"]["metrics"]["balanced_accuracy"]["value"]
        assert score == pytest.approx(np.mean(recalls))  # the plain block is of the plain predictions


def test_what_each_option_changed_by_hand(done: tuple[dict[str, Any], Path]) -> None:
    results, run = done
    folder = run / "units/fedavg/all/seed-0"
    arm = _arm(results, "fedavg")
    files = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("predictions", "one-view", "adapted")}
    assert not np.allclose(files["predictions"]["p/neutrophil"], files["one-view"]["p/neutrophil"])

    def balanced(name: str, site: str) -> float:
        frame = files[name][files[name]["site"] == site]
        guess = np.where(frame["p/neutrophil"] >= frame["p/lymphocyte"], "neutrophil", "lymphocyte")
        return float(np.mean([(guess == c)[frame["truth"] == c].mean() for c in ("neutrophil", "lymphocyte")]))

    found = {(e["option"], e["model"], e["metric"], e["scope"]): e for e in results["options"]}
    views = found["views", "fedavg", "balanced_accuracy", "mean_training"]
    sites = ("alder", "birch")
    assert views["without"] == pytest.approx(np.mean([balanced("one-view", s) for s in sites]))
    assert views["with"] == pytest.approx(np.mean([balanced("predictions", s) for s in sites]))
    assert views["difference"] == pytest.approx(views["with"] - views["without"])
    adapt = found["adapt", "fedavg", "balanced_accuracy", "mean_held_out"]
    block = arm["sites"]["cedar"]["adapted"]["difference"]
    assert adapt["difference"] == pytest.approx(block["value"])
    assert (adapt["low"], adapt["high"]) == pytest.approx((block["low"], block["high"]))
    ece = found["calibrate", "fedavg", "ece", "cedar"]
    assert ece["without"] == pytest.approx(arm["sites"]["cedar"]["uncalibrated"]["ece"]["value"])
    assert ece["with"] == pytest.approx(arm["sites"]["cedar"]["metrics"]["ece"]["value"])
    assert {e["model"] for e in results["options"]} >= {"fedavg", "local/alder", "local/birch"}
    assert all(e["low"] <= e["high"] for e in results["options"])


def test_the_report_shows_all_of_it(done: tuple[dict[str, Any], Path]) -> None:
    page = (done[1] / "report.html").read_text()
    for key in (
        "table-temperature",
        "table-thresholds",
        "table-unknown-auroc",
        "table-unknown-kinds",
        "table-adaptation",
        "table-option-views",
        "table-option-calibrate",
        "table-option-adapt",
    ):
        assert f'id="{key}"' in page
    assert "every site&#39;s loss used their sum" in page


def test_a_finished_run_is_not_calibrated_differently(done: tuple[dict[str, Any], Path], films: Path) -> None:
    overrides = [*SWITCHES, "evaluation.calibrate=none"]
    with pytest.raises(ConfigError, match=r"evaluation\.calibrate"):
        run_study(films / "study.toml", Options(films / "runs", overrides=overrides))
