"""Every site held out in turn: the folds are the studies that hold out one site each, and share what they may."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morphfed.cli import call
from morphfed.core.errors import ConfigError
from morphfed.core.files import sha256_file
from morphfed.evaluation.predictions import read_predictions
from morphfed.experiment.folds import fold_study, hold_out, study_of
from morphfed.experiment.prepare import load_prepared
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import load_study
from morphfed.experiment.units import units_of, units_of_fold

SITES = ("alder", "birch", "cedar")
EACH = ["holdout=each", "held_out=[]"]
SETTINGS = [
    "arms={local={}, centralised={}, fedavg={}, fedper={}}",
    "federation.rounds=1",
    "evaluation.resamples=200",
]


def _run(study: Path, *overrides: str, name: str = "runs") -> tuple[dict[str, Any], Path]:
    done = run_study(study, Options(study.parent / name, overrides=overrides))
    assert not done.failed
    return json.loads(done.results.read_text()), done.run


@pytest.fixture(scope="module")
def folder(drawn: Path, tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("each")
    shutil.copytree(drawn, folder / "films")
    (folder / "study.toml").write_text(tiny_text)
    return folder


@pytest.fixture(scope="module")
def each(folder: Path) -> tuple[dict[str, Any], Path]:
    """All arms, every site held out in turn, in two processes."""
    return _run(folder / "study.toml", *EACH, *SETTINGS, "compute.jobs=2", "compute.threads=1")


@pytest.fixture(scope="module")
def alone(folder: Path, each: tuple[dict[str, Any], Path]) -> tuple[dict[str, Any], Path]:
    """The ordinary study that holds out birch."""
    return _run(folder / "study.toml", "held_out=['birch']", *SETTINGS, name="alone")


def _fold(run: Path, site: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "folds" / site / "results.json").read_text())
    return found


def _value(results: dict[str, Any], model: str, scope: str, key: str = "mean") -> float:
    (found,) = [
        s for s in results["summary"] if (s["model"], s["scope"], s["metric"]) == (model, scope, "balanced_accuracy")
    ]
    value: float = found[key]
    return value


# ── the study file ────────────────────────────────────────────────────────────────────────────────────────
def test_units_are_trained_once_for_all_folds_where_they_may(tiny: Path) -> None:
    study, arms = load_study(tiny, [*EACH, "arms={local={}, fedavg={}}", "seeds=[0,1]"])
    units = units_of(study, arms)
    keys = [u.key for u in units if u.seed == 1]
    assert keys == [
        "local/alder/seed-1", "local/birch/seed-1", "local/cedar/seed-1",
        "without-alder/fedavg/all/seed-1", "without-birch/fedavg/all/seed-1", "without-cedar/fedavg/all/seed-1",
    ]  # fmt: skip
    assert len({u.key for u in units}) == len({u.folder(Path("run")) for u in units}) == len(units) == 12
    birch = units_of_fold(units, study, "birch")
    assert [(u.seed, u.model, u.trained_on) for u in birch[:3]] == [
        (0, "local/alder", ("alder",)),
        (0, "local/cedar", ("cedar",)),
        (0, "fedavg", ("alder", "cedar")),
    ]
    # The same models in the same order as the ordinary study has them.
    named, arms = load_study(tiny, ["held_out=['birch']", "arms={local={}, fedavg={}}", "seeds=[0,1]"])
    assert [(u.name, u.trained_on) for u in birch] == [(u.name, u.trained_on) for u in units_of(named, arms)]


def test_what_each_unit_may_see(tiny: Path) -> None:
    study, arms = load_study(tiny, [*EACH, "arms={local={}, fedavg={}}"])
    held = {u.key: study_of(u, study).held_out for u in units_of(study, arms)}
    assert held["without-birch/fedavg/all/seed-0"] == ("birch",)
    assert held["local/birch/seed-0"] == ("alder", "cedar")
    assert fold_study(study, "birch").training_sites == ["alder", "cedar"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["holdout=each"], r'holdout = "each" holds out every site in turn, but held_out names cedar'),
        (["holdout=each", "held_out=[]", "sites={alder={path='alder'}}"], "at least two sites.*there is 1"),
        (["holdout=all"], "'holdout' = 'all'"),
    ],
)
def test_mistakes(tiny: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(tiny, overrides)


# ── the folds ─────────────────────────────────────────────────────────────────────────────────────────────
def test_a_training_site_has_the_same_parts_in_every_fold(each: tuple[dict[str, Any], Path], folder: Path) -> None:
    study, _ = load_study(folder / "study.toml", EACH)
    whole = load_prepared(study, each[1], folder / "runs" / ".cache", build=False)
    for site in SITES:
        fold = hold_out(whole, fold_study(study, site))
        assert sorted(fold.sets[site]["test"].ids) == sorted(i for part in whole.sets[site].values() for i in part.ids)
        assert len(fold.sets[site]["train"]) == len(fold.sets[site]["validation"]) == 0
        assert sum(c["test"] for c in fold.info[site]["classes"].values()) == fold.info[site]["n"] == 28
        assert fold.info[site]["role"] == "held_out"
        assert not any(note.startswith(f"{site}: split") for note in fold.notes)
        for other in SITES:
            if other != site:
                assert fold.sets[other] is whole.sets[other]
                assert any(note.startswith(f"{other}: split by patient") for note in fold.notes)
        assert hold_out(fold, fold_study(study, site)) is fold
    assert whole.info["alder"]["role"] == "train", "the view changed what it was made of"


def test_a_fold_is_the_study_that_holds_out_its_site(
    each: tuple[dict[str, Any], Path], alone: tuple[dict[str, Any], Path]
) -> None:
    """The same model bytes, the same predictions and the same numbers as the ordinary study."""
    fold = _fold(each[1], "birch")
    for unit in ("fedavg/all", "centralised/all"):
        for model in ("best", "last"):
            mine = each[1] / "folds/birch/units" / unit / f"seed-0/{model}.safetensors"
            assert sha256_file(mine) == sha256_file(alone[1] / "units" / unit / f"seed-0/{model}.safetensors")
    shared, own = (run / "units/local/alder/seed-0/best.safetensors" for run in (each[1], alone[1]))
    assert sha256_file(shared) == sha256_file(own)
    assert [a["model"] for a in fold["arms"]] == [a["model"] for a in alone[0]["arms"]]
    assert fold["study"]["held_out"] == ["birch"]
    assert fold["study"]["fold_of"] == "tiny"
    for mine, other in zip(fold["summary"], alone[0]["summary"], strict=True):
        assert {k: v for k, v in mine.items() if isinstance(v, str)} == {
            k: v for k, v in other.items() if isinstance(v, str)
        }
        assert mine["mean"] == pytest.approx(other["mean"], abs=1e-4), mine
    for mine, other in zip(fold["comparisons"], alone[0]["comparisons"], strict=True):
        assert (mine["a"], mine["b"], mine["scope"]) == (other["a"], other["b"], other["scope"])
        assert mine["p_holm"] == pytest.approx(other["p_holm"], abs=1e-6)
    assert fold["data"]["sites"]["birch"]["classes"] == alone[0]["data"]["sites"]["birch"]["classes"]


def test_a_local_model_is_trained_once_and_judged_in_every_other_fold(each: tuple[dict[str, Any], Path]) -> None:
    _, run = each
    assert sorted(p.parent.parent.name for p in run.glob("units/local/*/seed-0/unit.json")) == list(SITES)
    assert not list(run.glob("folds/*/units/local"))
    predicted = read_predictions(run / "units/local/alder/seed-0/predictions.parquet")
    assert len(predicted["birch"]) == len(predicted["cedar"]) == 28
    assert len(predicted["alder"]) < 28, "a local model predicted what it was trained on"
    for site in ("birch", "cedar"):
        (unit,) = [a for a in _fold(run, site)["arms"] if a["model"] == "local/alder"]
        assert unit["sites"][site]["n"] == 28
        other = "cedar" if site == "birch" else "birch"
        assert (
            unit["sites"][other]["n"] == _fold(run, site)["data"]["sites"][other]["classes"]["neutrophil"]["test"] * 2
        )


# ── what they say together ────────────────────────────────────────────────────────────────────────────────
def test_the_joint_numbers_are_those_of_the_folds(each: tuple[dict[str, Any], Path]) -> None:
    results, run = each
    folds = {site: _fold(run, site) for site in SITES}
    for model in ("fedavg", "centralised", "local (mean)"):
        left_out = [_value(folds[s], model, s) for s in SITES]
        for site, value in zip(SITES, left_out, strict=True):
            assert _value(results, model, site) == pytest.approx(value)
            assert _value(results, model, site, "low") == pytest.approx(_value(folds[site], model, site, "low"))
        assert _value(results, model, "mean_held_out") == pytest.approx(np.mean(left_out))
        over = [_value(folds[s], model, "mean_training") for s in SITES]
        assert _value(results, model, "mean_training") == pytest.approx(np.mean(over))
    best = [max(_value(folds[s], f"local/{o}", s) for o in SITES if o != s) for s in SITES]
    assert _value(results, "local (best)", "mean_held_out") == pytest.approx(np.mean(best))
    chosen = {b["held_out"]: b["model"] for b in results["best_local"]}
    assert [_value(folds[s], chosen[s], s) for s in SITES] == pytest.approx(best)
    for site in SITES:
        (unit,) = [a for a in folds[site]["arms"] if a["model"] == "fedavg"]
        (recall,) = [
            e for e in results["recall"] if (e["model"], e["held_out"], e["class"]) == ("fedavg", site, "neutrophil")
        ]
        counts = unit["sites"][site]["confusion"][0]
        assert (recall["n"], recall["recall"]) == (14, counts[0] / sum(counts))
    pairs = {(c["a"], c["b"]) for c in results["comparisons"] if c["scope"] == "mean_held_out"}
    assert pairs == {("fedavg", "centralised"), ("fedavg", "local (best)"), ("fedavg", "local (mean)")}
    # FedPer has no model for a site that took no part: it is judged, and compared, at the training sites only.
    assert {s["scope"] for s in results["summary"] if s["model"] == "fedper"} == {"mean_training"}
    assert {c["scope"] for c in results["comparisons"] if c["a"] == "fedper"} == {"mean_training"}
    assert "fedper" not in {e["model"] for e in results["recall"]}


def test_what_the_run_leaves(each: tuple[dict[str, Any], Path]) -> None:
    results, run = each
    assert results["schema"] == 1
    assert results["study"]["holdout"] == "each"
    assert [f["held_out"] for f in results["folds"]] == list(SITES)
    for fold in results["folds"]:
        assert (fold["units"], fold["done"], fold["n"]) == (5, 5, 28)
        assert (run / fold["results"]).is_file()
        assert (run / fold["report"]).is_file()
        assert f'href="{fold["report"]}"' in (run / "report.html").read_text()
    assert len(results["arms"]) == 3 + 3 * 3
    assert {s["role"] for s in results["data"]["sites"].values()} == {"each"}
    for page in [run / "report.html", *run.glob("folds/*/report.html"), *run.glob("**/results.json")]:
        assert str(run.parent.parent) not in page.read_text()


def test_seeds_and_arms_may_be_added_and_only_they_are_trained(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run = _run(tiny, *EACH, "arms={local={}, fedavg={}}", "federation.rounds=1")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("unit.json")}
    assert len(before) == 6
    more = [*EACH, "arms={local={}, fedavg={}, fedprox={mu=0.5}}", "federation.rounds=1", "evaluation.images=false"]
    assert call(["run", str(tiny), *more, "--runs", str(run.parent), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert [f["held_out"] for f in outcome["folds"]] == list(SITES)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(list(run.rglob("unit.json"))) == 9
    assert "data:image/jpeg" not in (run / "report.html").read_text() + (run / "folds/alder/report.html").read_text()
    (run / "folds/alder/report.html").unlink()
    assert call(["report", str(run)]) == 0
    assert (run / "folds/alder/report.html").is_file()
    assert call(["run", str(tiny), "arms={local={}, fedavg={}}", "federation.rounds=1", "--runs", str(run.parent)]) != 0
    assert "holds a run with other settings" in capsys.readouterr().err


def test_plan_counts_every_fold(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p for p in tiny.parent.rglob("*") if "films" not in p.parts)
    assert call(["run", str(tiny), *EACH, "arms={local={}, fedavg={}}", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["folds"] == list(SITES)
    steps = {(u["model"], u["held_out"]): u["steps"] for u in plan["units"]}
    local = {s: steps[f"local/{s}", None] for s in SITES}
    assert local["alder"] == 3 * -(-plan["sites"]["alder"]["train"] // 8)
    for site in SITES:
        assert steps["fedavg", site] == sum(n for s, n in local.items() if s != site)
    assert sorted(p for p in tiny.parent.rglob("*") if "films" not in p.parts) == before
    assert call(["plan", str(tiny), *EACH, "--quick"]) == 0
    out = capsys.readouterr().out
    assert "fedavg without birch" in out
    assert "alder  in turn" in out


def test_a_fold_that_could_not_be_trained_is_refused_before_any_work(tiny: Path) -> None:
    """Only cedar has lymphocytes: without it there is one class."""
    for site in ("alder", "birch"):
        labels = tiny.parent / "films" / site / "labels.csv"
        kept = [line for line in labels.read_text().splitlines() if "lymphocyte" not in line]
        labels.write_text("\n".join(kept) + "\n")
    with pytest.raises(ConfigError, match="All training images without cedar are of one class"):
        _run(tiny, *EACH)
    assert not list((tiny.parent / "runs").rglob("units"))
