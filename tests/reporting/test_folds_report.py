"""The page of a study that holds out every site in turn: its words, its table, its links."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from morphfed.reporting import write_report
from morphfed.reporting.report import render, words
from morphfed.reporting.results import Results
from morphfed.reporting.summary import Summary

SITES = ("kampala", "munich", "barcelona")
UP = {"difference": 0.06, "low": 0.02, "high": 0.10, "p": 0.001, "p_holm": 0.004}
DOWN = {"difference": -0.06, "low": -0.10, "high": -0.02, "p": 0.001, "p_holm": 0.004}
FLAT = {"difference": 0.01, "low": -0.03, "high": 0.05, "p": 0.6, "p_holm": 1.0}

SCORES = {
    "fedavg": {"kampala": 0.80, "munich": 0.60, "barcelona": 0.70, "mean_held_out": 0.70, "mean_training": 0.85},
    "fedprox": {"kampala": 0.81, "munich": 0.61, "barcelona": 0.71, "mean_held_out": 0.71, "mean_training": 0.86},
    "centralised": {"kampala": 0.75, "munich": 0.66, "barcelona": 0.66, "mean_held_out": 0.69, "mean_training": 0.90},
    "local (mean)": {"kampala": 0.40, "munich": 0.41, "barcelona": 0.42, "mean_held_out": 0.41, "mean_training": 0.55},
    "local (best)": {"kampala": 0.83, "munich": 0.50, "barcelona": 0.62, "mean_held_out": 0.65},
    "local (own site)": {"mean_training": 0.88},
}


def study(
    comparisons: dict[tuple[str, str, str], dict[str, Any]] | None = None,
    scores: dict[str, dict[str, float]] | None = None,
    arms: tuple[str, ...] = ("local", "centralised", "fedavg", "fedprox"),
) -> dict[str, Any]:
    """results.json after docs/reference/results.md."""
    units = []
    for arm in arms:
        for held in SITES:
            others = [s for s in SITES if s != held]
            model, on = (f"local/{held}", [held]) if arm == "local" else (arm, others)
            unit = {
                "arm": arm,
                "algorithm": arm,
                "model": model,
                "seed": 0,
                "trained_on": on,
                "images_seen": 10 * len(on),
            }
            units.append(
                {**unit, "held_out": None if arm == "local" else held, "rounds": 2, "steps": 4, "seconds": 1.0}
            )
    classes = {"a": {"train": 10, "validation": 2, "test": 13}, "b": {"train": 10, "validation": 0, "test": 20}}
    block = {"role": "each", "source": "table", "n": 55, "patients": 9, "cluster_unit": "patient", "classes": classes}
    return {
        "schema": 1,
        "study": {
            "name": "made-up", "title": "Made up", "classes": ["a", "b"], "seeds": [0], "holdout": "each",
            "training_sites": list(SITES), "held_out": list(SITES), "arms": list(arms),
            "primary_metric": "balanced_accuracy",
        },
        "folds": [
            {
                "held_out": s, "training_sites": [o for o in SITES if o != s], "n": 55, "n_train": 40, "units": 5,
                "done": 5, "results": f"folds/{s}/results.json", "report": f"folds/{s}/report.html",
            }
            for s in SITES
        ],
        "data": {"sites": {s: copy.deepcopy(block) for s in SITES}, "notes": [], "check": {}},
        "arms": units,
        "failed": [],
        "summary": [
            {
                "model": m, "arm": m.split(" ")[0], "scope": scope, "metric": "balanced_accuracy",
                "mean": v, "sd": None, "low": v - 0.03, "high": v + 0.03, "seeds": 1,
            }
            for m, row in (scores or SCORES).items()
            for scope, v in row.items()
            if m.split(" ")[0] in arms
        ],
        "best_local": [
            {"arm": "local", "held_out": s, "model": f"local/{o}"}
            for s, o in (("kampala", "munich"), ("munich", "kampala"), ("barcelona", "munich"))
        ],
        "cross_site": {
            "metric": "balanced_accuracy", "rows": list(SITES), "columns": list(SITES), "values": [[0.5] * 3] * 3,
        },
        "comparisons": [
            {"a": a, "b": b, "metric": "balanced_accuracy", "scope": scope, **c}
            for (a, b, scope), c in (comparisons or {}).items()
        ],
        "recall": [
            {"model": a, "held_out": s, "class": c, "n": n, "recall": 0.25 if n else None}
            for a in arms if a != "local" for s in SITES for c, n in (("a", 25), ("b", 0 if s == "munich" else 4))
        ],
        "environment": {"torch": "2"},
        "config": {},
    }  # fmt: skip


def said(*args: Any, **more: Any) -> Summary:
    return words(Results(study(*args, **more)))


def finding(summary: Summary, topic: str) -> str:
    return next(f.text for f in summary.findings if f.topic == topic)


def test_the_highest_federated_arm_against_the_others() -> None:
    found = said({
        ("fedprox", "centralised", "mean_held_out"): FLAT,
        ("fedprox", "local (mean)", "mean_held_out"): UP,
        ("fedprox", "local (best)", "mean_held_out"): UP,
    })  # fmt: skip
    assert found.headline == (
        "At a site that took no part in training (each of the 3 in turn), FedProx scored highest: mean balanced "
        "accuracy 0.710 (0.680 to 0.740). It showed no clear difference from training on pooled data (+0.010, "
        "−0.030 to 0.050) and did clearly better than the average single-site model (+0.060, 0.020 to 0.100)."
    )
    assert "0.650 (0.620 to 0.680)" in finding(found, "Federated or the best single model")
    assert any("picked by the score" in c for c in found.cautions)


def test_where_pooled_data_wins_it_is_said_first() -> None:
    scores = {**SCORES, "centralised": {**SCORES["centralised"], "mean_held_out": 0.80}}
    found = said({("fedprox", "centralised", "mean_held_out"): DOWN}, scores)
    assert "training on pooled data scored highest: mean balanced accuracy 0.800" in found.headline
    assert (
        "FedProx, the highest federated arm, did clearly worse than training on pooled data (−0.060" in found.headline
    )


def test_where_the_average_single_site_model_wins_it_is_said_first() -> None:
    scores = {**SCORES, "local (mean)": {**SCORES["local (mean)"], "mean_held_out": 0.90}}
    found = said({("fedprox", "local (mean)", "mean_held_out"): DOWN}, scores)
    assert "the average single-site model scored highest" in found.headline
    assert "did clearly worse than the average single-site model" in found.headline


def test_the_best_single_model_never_is_the_winner_and_is_always_told() -> None:
    scores = {**SCORES, "local (best)": {**SCORES["local (best)"], "mean_held_out": 0.95}}
    found = said({("fedavg", "local (best)", "mean_held_out"): DOWN}, scores)
    assert "FedProx scored highest" in found.headline
    text = finding(found, "Federated or the best single model")
    assert "nobody could have known beforehand, reaches 0.950" in text
    assert "FedAvg (−0.060, −0.100 to −0.020) scored clearly lower" in text
    assert "not tested for FedProx" in text


def test_site_by_site() -> None:
    found = said({
        ("fedavg", "centralised", "kampala"): UP,
        ("fedprox", "centralised", "kampala"): UP,
        ("fedavg", "centralised", "munich"): DOWN,
        ("fedavg", "local (best)", "munich"): FLAT,
    })  # fmt: skip
    assert finding(found, "Site by site") == (
        "Federated arms are clearly better than training on pooled data at kampala (FedAvg and FedProx); clearly worse "
        "than training on pooled data at munich (FedAvg). At no single site do federated arms differ clearly from "
        "the best single-site model. FedAvg is weakest at munich (0.600) and strongest at kampala (0.800)."
    )
    assert "FedAvg from 0.850 to 0.700" in finding(found, "What taking no part costs")


@pytest.mark.parametrize(
    "arms", [("fedavg",), ("local", "centralised"), ("centralised", "fedavg"), ("local", "fedavg")]
)
def test_studies_with_fewer_arms(arms: tuple[str, ...]) -> None:
    raw = study(arms=arms)
    if "local" not in arms:
        raw["best_local"], raw["cross_site"] = [], None
    text = render(Results(raw))
    assert "scored highest" in text
    assert ("no federated arm" in text) == ("fedavg" not in arms)


def test_a_fold_that_failed_is_said(make_page: Callable[[dict[str, Any]], Any]) -> None:
    raw = study()
    raw["summary"] = [s for s in raw["summary"] if s["scope"] not in ("munich", "mean_held_out", "mean_training")]
    raw["folds"][1] |= {"done": 0, "results": None, "report": None}
    raw["failed"] = [{"unit": "without-munich/fedavg/all/seed-0", "reason": "the loss is not finite"}]
    summary = words(Results(raw))
    assert summary.headline == "No arm has results in all 3 folds, so nothing is said of a site that took no part."
    assert "without-munich/fedavg/all/seed-0" in summary.cautions[0]
    tree = make_page(raw)
    assert [row[5] for row in tree.by_id("table-folds").rows()] == [
        "folds/kampala/report.html", "no results", "folds/barcelona/report.html",
    ]  # fmt: skip


def test_chance_and_small_classes_are_judged_by_all_images_of_a_site() -> None:
    low = {m: dict.fromkeys(row, 0.5) for m, row in SCORES.items()}
    found = said(None, low)
    assert any(
        c.startswith("Naming one class always gives 0.500; not clearly above that at held-out sites")
        for c in found.cautions
    )
    assert not any("Fewer than 20 test images" in c for c in found.cautions), "25 and 30 images are tested at each"


@pytest.fixture
def make_page(parse_html: Callable[[str], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda raw: parse_html(render(Results(raw)))


def test_page(make_page: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    comparisons = {
        ("fedprox", other, "mean_held_out"): UP for other in ("centralised", "local (mean)", "local (best)", "fedavg")
    }
    raw = study(comparisons)
    tree = make_page(raw)
    head = [n.text() for n in tree.by_id("table-main").all("th") if n.attributes["scope"] == "col"]
    assert head == ["Arm", *(f"{s} 55 images" for s in SITES), "Mean, held-out sites", "Training sites"]
    rows = {row[0]: row[1:] for row in tree.by_id("table-main").rows()}
    assert rows["FedAvg"] == [f"{v:.3f} {v - 0.03:.3f} to {v + 0.03:.3f}" for v in (0.8, 0.6, 0.7, 0.7, 0.85)]
    assert rows["FedProx"][3] == "▲ 0.710 0.680 to 0.740"
    assert rows["Local (best of models)"][0] == "0.830 0.800 to 0.860 of munich"
    assert rows["Local (best of models)"][4] == "–"
    assert rows["Local (own site)"] == ["–", "–", "–", "–", "0.880 0.850 to 0.910"]
    links = [n.attributes["href"] for n in tree.all("a") if not n.attributes["href"].startswith("#")]
    assert links == [f"folds/{s}/report.html" for s in SITES]
    ids = [n.attributes["id"] for n in tree.all() if "id" in n.attributes]
    assert len(set(ids)) == len(ids)
    assert len(tree.by_id("figure-left-out").all("svg")) == 4
    recall = tree.by_id("figure-recall")
    assert [n.attributes["aria-label"] for n in recall.all("svg")][1] == (
        "Recall of FedAvg at each held-out site: a: kampala 0.25, munich 0.25, barcelona 0.25; "
        "b: kampala 0.25, munich –, barcelona 0.25"
    )
    assert "Few images: b at barcelona (4) and b at kampala (4)." in recall.text()
    assert [row[1] for row in tree.by_id("table-sites").rows()] == ["in turn"] * 3
    # Passes: images seen over training images, every fold's.
    assert [row[5] for row in tree.by_id("table-cost").rows()] == ["0.5"] * 4
    assert not re.search(r"\b(None|nan|Undefined)\b", tree.text())
    (tmp_path / "results.json").write_text(json.dumps(raw))
    page = write_report(tmp_path, tmp_path)
    assert page.read_text() == render(Results(raw)), "the same results, the same bytes"


def test_the_page_of_a_fold_leads_back(small: dict[str, Any], parse_html: Callable[[str], Any]) -> None:
    raw = copy.deepcopy(small)
    raw["study"]["fold_of"], raw["study"]["seconds"] = "made-up", None
    tree = parse_html(render(Results(raw)))
    assert [n.text() for n in tree.all("a") if n.attributes["href"] == "../../report.html"] == ["made-up"]
    assert "holdout=named 'held_out=[\"barcelona\"]'" in tree.by_id("methods").text()
    plain = render(Results(small))
    assert "../../report.html" not in plain
    assert "holdout" not in plain
