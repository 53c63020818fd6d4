"""The page as a whole: complete, self-contained, valid, true to results.json, the same every time."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from morphfed.core.errors import StorageError
from morphfed.reporting import write_report
from morphfed.reporting.blocks import Page, Table
from morphfed.reporting.report import render
from morphfed.reporting.results import Results, load
from morphfed.reporting.sections.cost import cost
from morphfed.reporting.sections.outcome import arms_by_sites

Maker = Callable[..., dict[str, Any]]
NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'
FORBIDDEN = {"script", "iframe", "object", "embed", "link", "base", "form", "audio", "video"}


SHAPES: dict[str, dict[str, Any]] = {
    "one site, one seed, two classes": {
        "training": ("kampala",),
        "held_out": (),
        "arms": ("local", "fedavg"),
        "classes": ("neutrophil", "lymphocyte"),
    },
    "no local arm, no held-out site": {"training": ("a", "b"), "held_out": (), "arms": ("centralised", "fedavg")},
    "two held-out sites, one arm": {"training": ("a", "b"), "held_out": ("c", "d"), "arms": ("fedavg",)},
    "no federated arm": {"training": ("a", "b"), "held_out": ("c",), "arms": ("local", "centralised")},
}


def check_page(text: str, parse_html: Callable[[str], Any]) -> Any:
    """Everything that any page must be; returns its tree."""
    assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text.replace(NAMESPACE, "")), "an address of the network"
    tree = parse_html(text)
    nodes = tree.all()
    ids = [n.attributes["id"] for n in nodes if "id" in n.attributes]
    assert len(set(ids)) == len(ids), f"ids twice: {sorted({i for i in ids if ids.count(i) > 1})}"
    for node in nodes:
        assert node.tag not in FORBIDDEN
        assert not any(name.startswith("on") for name in node.attributes), node.attributes
        for name in ("aria-labelledby", "aria-describedby"):
            assert node.attributes.get(name, ids[0]) in ids
        if "href" in node.attributes:
            assert node.attributes["href"].startswith("#")
            assert node.attributes["href"][1:] in ids
        if node.tag == "img":
            assert node.attributes["alt"]
            assert node.attributes["src"].startswith("data:image/jpeg;base64,")
        if node.tag == "svg" and node.attributes.get("aria-hidden") != "true":
            assert node.attributes["role"] == "img"
            assert len(node.attributes["aria-label"]) > 10
        if node.tag == "th":
            assert node.attributes["scope"] in {"row", "col", "colgroup"}
        assert not re.search(r"url\((?!#)", node.attributes.get("style", ""))
    head = tree.all("head")[0]
    policy = next(m for m in head.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy.attributes["content"]
    assert tree.all("html")[0].attributes["lang"] == "en"
    assert len(tree.all("h1")) == 1
    assert len(tree.all("main")) == 1
    headings = [int(n.tag[1]) for n in nodes if re.fullmatch("h[1-4]", n.tag)]
    assert all(b - a <= 1 for a, b in pairwise(headings)), "a level of headings is skipped"
    assert "Research use only" in tree.text()
    assert not re.search(r"\b(None|nan|Undefined)\b", tree.text()), "a missing number shows its Python name"
    return tree


@pytest.fixture(scope="module")
def page(full: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "results.json").write_text(json.dumps(full), encoding="utf-8")
    start = time.process_time()
    written = write_report(folder / "results.json", folder / "report.html")
    return written, time.process_time() - start


def test_full_page_is_valid_small_and_quick(page: tuple[Path, float], parse_html: Callable[[str], Any]) -> None:
    path, seconds = page
    check_page(path.read_text(encoding="utf-8"), parse_html)
    assert path.stat().st_size < 6e6
    assert seconds < 20


def test_sections_in_order_with_contents(page: tuple[Path, float], parse_html: Callable[[str], Any]) -> None:
    tree = parse_html(page[0].read_text(encoding="utf-8"))
    sections = [n.attributes["id"] for n in tree.all("main")[0].all("section")]
    assert sections == [
        "summary", "results", "comparisons", "learning", "cross-site", "classes", "certainty", "masked", "data",
        "mistakes", "cost", "methods",
    ]  # fmt: skip
    assert [a.attributes["href"][1:] for a in tree.all("nav")[0].all("a")] == sections


def test_numbers_of_figures_and_tables_run_through(page: tuple[Path, float], parse_html: Callable[[str], Any]) -> None:
    captions = [c.text() for c in parse_html(page[0].read_text(encoding="utf-8")).all("figcaption")]
    for kind in ("Figure", "Table"):
        numbers = [int(m[1]) for c in captions if (m := re.match(rf"{kind} (\d+)\.", c))]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 5


def test_main_table_shows_the_summary_block(
    full: dict[str, Any], page: tuple[Path, float], parse_html: Callable[[str], Any]
) -> None:
    table = parse_html(page[0].read_text(encoding="utf-8")).by_id("table-main")
    titles = [th.text() for th in table.all("thead")[0].all("th")][1:]
    models = dict(zip(titles, ["local (own site)", *full["study"]["arms"][1:]], strict=True))
    wanted = {(s["model"], s["scope"]): s for s in full["summary"] if s["metric"] == "balanced_accuracy"}
    scopes = {"mean, training sites": "mean_training", "gap, best to worst": "gap_training", "tecom": "tecom"}
    seen = 0
    for row in table.rows():
        if row[0] not in scopes:
            continue
        for title, cell in zip(titles, row[1:], strict=True):
            s = wanted[models[title], scopes[row[0]]]
            expected = f"{s['mean']:.3f} {s['low']:.3f} to {s['high']:.3f} sd {s['sd']:.3f}"
            assert cell.removeprefix("▲ ") == expected
            seen += 1
    assert seen == 3 * 6


def test_best_is_marked_only_where_it_is_clear(small: dict[str, Any]) -> None:
    def marked(results: dict[str, Any]) -> list[str]:
        table = arms_by_sites(Page(Results(results))).blocks[0]
        assert isinstance(table, Table)
        column = [c.text for c in table.head].index("mean, training sites")
        return [row[0].text for row in table.rows if row[column].best]

    # by the comparisons: fedavg clearly above all three others
    clear = copy.deepcopy(small)
    for s in clear["summary"]:
        if s["metric"] == "balanced_accuracy" and s["scope"] == "mean_training":
            s["mean"] = {"fedavg": 0.9}.get(s["model"], 0.6)
            s["low"], s["high"] = s["mean"] - 0.4, s["mean"] + 0.05  # overlapping: only the pairing can tell
    clear["comparisons"] = [
        {"a": "fedavg", "b": b, "metric": "balanced_accuracy", "scope": "mean_training", "difference": 0.3, "low": 0.2,
         "high": 0.4, "p": 0.001, "p_holm": 0.003}
        for b in ("centralised", "local (own site)", "fedmedian")
    ]  # fmt: skip
    assert marked(clear) == ["FedAvg"]
    clear["comparisons"][1]["p_holm"] = 0.2  # one pair is not clear any more
    assert marked(clear) == []
    del clear["comparisons"][1]  # untested, and the intervals overlap
    assert marked(clear) == []


def test_confusion_is_summed_over_seeds(
    full: dict[str, Any], page: tuple[Path, float], parse_html: Callable[[str], Any]
) -> None:
    figure = parse_html(page[0].read_text(encoding="utf-8")).by_id("figure-confusion-1")  # second site
    assert "summed over 3 seeds" in figure.text()
    svg = next(n for n in figure.all("svg") if n.attributes["aria-label"].startswith("Confusion matrix of FedAvg"))
    counts = sorted(int(t.text()) for t in svg.all("text") if t.text().isdigit())
    tables = [u["sites"]["tecom"]["confusion"] for u in full["arms"] if u["model"] == "fedavg"]
    summed = [sum(t[i][j] for t in tables) for i in range(5) for j in range(5)]
    assert counts == sorted(v for v in summed if v)


def test_own_site_confusion_uses_each_sites_own_model(full: dict[str, Any], page: tuple[Path, float]) -> None:
    tables = [u["sites"]["bccd"]["confusion"] for u in full["arms"] if u["model"] == "local/bccd"]
    right = sum(t[i][i] for t in tables for i in range(5))
    total = sum(sum(row) for t in tables for row in t)
    assert f"Confusion matrix of Local (own site) at bccd. {right} of {total} on the diagonal" in page[0].read_text()


def test_comparisons_are_all_listed(
    full: dict[str, Any], page: tuple[Path, float], parse_html: Callable[[str], Any]
) -> None:
    tree = parse_html(page[0].read_text(encoding="utf-8"))
    rows = tree.by_id("table-difference-0").rows()
    wanted = [c for c in full["comparisons"] if (c["metric"], c["scope"]) == ("balanced_accuracy", "mean_training")]
    assert len(rows) == len(wanted) == 18
    one = next(c for c in wanted if (c["a"], c["b"]) == ("fedavg", "centralised"))
    row = next(r for r in rows if r[:2] == ["FedAvg", "Centralised"])
    assert row[2].replace("−", "-") == f"{one['difference']:+.3f}"
    assert row[3].replace("−", "-") == f"{one['low']:.3f} to {one['high']:.3f}"
    # every scope and metric is somewhere; the mean over one held-out site is that site, once
    shown = [n for n in tree.all("figure") if n.attributes.get("id", "").startswith("table-difference")]
    scopes = {(c["metric"], c["scope"]) for c in full["comparisons"]}
    assert len(shown) == len(scopes) - 2


def test_same_results_same_bytes(make_results: Maker, tmp_path: Path) -> None:
    shape = SHAPES["two held-out sites, one arm"]
    small = make_results(**shape, seeds=(0, 1), n=(30,), rounds=2, errors=2, resamples=20)
    first = render(load(small))
    assert render(load(copy.deepcopy(small))) == first
    source = tmp_path / "results.json"
    source.write_text(json.dumps(small), encoding="utf-8")
    command = "import sys; from pathlib import Path; from morphfed.reporting import write_report; "
    command += "write_report(Path(sys.argv[1]), Path(sys.argv[2]))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    out = tmp_path / "out.html"
    subprocess.run([sys.executable, "-c", command, str(source), str(out)], check=True, env=environment)
    assert out.read_text(encoding="utf-8") == first


def test_reads_a_run_folder_and_writes_into_a_folder(tmp_path: Path) -> None:
    tiny = {"schema": 1, "study": {"name": "x", "classes": ["a", "b"], "training_sites": ["s"]}, "arms": []}
    (tmp_path / "results.json").write_text(json.dumps(tiny), encoding="utf-8")
    assert write_report(tmp_path, tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(load(tiny))


@pytest.mark.parametrize("study", SHAPES.values(), ids=SHAPES)
def test_any_shape_of_study_gives_a_sound_page(
    study: dict[str, Any], make_results: Maker, parse_html: Callable[[str], Any]
) -> None:
    results = make_results(**study, seeds=(0,), n=(40,), rounds=2, errors=2, resamples=20)
    check_page(render(load(results)), parse_html)


def test_many_sites_with_long_names(make_results: Maker, parse_html: Callable[[str], Any]) -> None:
    sites = tuple(f"university-hospital-{i:02d}-department-of-haematology" for i in range(12))
    arms = ("fedavg", "an-arm-with-a-name-that-does-not-want-to-end")
    some = {"classes": ("neutrophil", "monocyte"), "seeds": (0,), "n": (12,), "rounds": 2, "errors": 0, "resamples": 5}
    tree = check_page(render(load(make_results(training=sites, held_out=(), arms=arms, **some))), parse_html)
    table = tree.by_id("table-main")
    assert [row[0] for row in table.rows()][:12] == list(sites)  # sites are rows where they are many


def test_twenty_classes(make_results: Maker, parse_html: Callable[[str], Any]) -> None:
    kinds = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
    classes = tuple(f"{a}_{b}" for a in ("banded", "atypical", "immature", "reactive") for b in kinds)
    some = {"arms": ("fedavg",), "seeds": (0,), "n": (60,), "rounds": 2, "errors": 1, "resamples": 5}
    results = make_results(training=("kampala",), held_out=("munich",), classes=classes, **some)
    tree = check_page(render(load(results)), parse_html)
    matrix = tree.by_id("figure-confusion-0").all("svg")[0]
    assert [t.text() for t in matrix.all("text")].count("banded neutrophil") == 2  # row and column


def test_null_numbers(small: dict[str, Any], parse_html: Callable[[str], Any]) -> None:
    def without(value: Any, keys: set[str]) -> Any:
        if isinstance(value, dict):
            return {k: None if k in keys else without(v, keys) for k, v in value.items()}
        return [without(v, keys) for v in value] if isinstance(value, list) else value

    tree = check_page(render(load(without(small, {"low", "high", "p", "p_holm", "sd"}))), parse_html)
    assert "No interval could be computed" in tree.by_id("summary").text()
    assert "scored clearly" not in tree.text()
    check_page(render(load(without(small, {"value", "mean", "recall", "low", "high", "difference"}))), parse_html)


def test_unit_that_failed_is_named_with_its_reason(small: dict[str, Any], parse_html: Callable[[str], Any]) -> None:
    results = copy.deepcopy(small)
    results["arms"] = [u for u in results["arms"] if (u["model"], u["seed"]) != ("local/munich", 1)]
    why = "The loss is not finite in round 2."
    results["failed"] = [{"unit": "local/munich/seed-1", "reason": why}]
    tree = check_page(render(load(results)), parse_html)
    assert "1 of the 10 planned training runs has no results (local/munich, seed 1)" in tree.by_id("summary").text()
    assert tree.by_id("table-missing").rows() == [["local/munich, seed 1", why]]
    results["failed"] = {"local/munich/seed-1": why}  # the same as a mapping
    assert Results(results).missing == [("local/munich, seed 1", why)]


def test_almost_nothing_recorded(parse_html: Callable[[str], Any]) -> None:
    study = {"name": "x", "classes": ["a", "b"], "training_sites": ["s"]}
    check_page(render(load({"schema": 1, "study": study, "arms": []})), parse_html)
    study = {**study, "arms": ["local", "fedavg"], "seeds": [0], "held_out": ["h"]}
    tree = check_page(render(load({"schema": 1, "study": study, "arms": []})), parse_html)
    assert "2 of the 2 planned training runs have no results" in tree.text()


def test_hostile_names_stay_text(small: dict[str, Any], parse_html: Callable[[str], Any]) -> None:
    evil = '<img src=x onerror="alert(1)">$x_1$&amp;'
    text = json.dumps(small).replace('"munich"', json.dumps(evil)).replace("/munich", "/" + json.dumps(evil)[1:-1])
    results = json.loads(text)
    results["study"]["title"] = "</title><script>alert(1)</script>"
    results["arms"][0]["rejected"] = [{"round": 2, "site": evil, "reason": "<script>alert(2)</script>"}]
    results["arms"][0]["warnings"] = ["<b>bold</b>"]
    errors = next(s for s in results["arms"][0]["sites"].values())["errors"]
    errors[0]["image"] = "https://example.org/tracker.png"
    errors[1]["image"] = 'data:image/svg+xml;base64,PHN2Zz4="'
    results["data"]["sites"][evil]["samples"] = [{"class": "x", "image": "javascript:alert(3)"}]
    tree = check_page(render(load(results)), parse_html)
    assert evil.replace("&amp;", "&amp;") in tree.by_id("results").text()
    assert "<script>alert(2)</script>" in tree.by_id("table-rejected").text()
    assert "1 upload" in tree.by_id("summary").text()


def test_other_schema_and_broken_files_say_what_to_do(small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="schema 2; this morphfed reads schema 1"):
        write_report({**small, "schema": 2}, tmp_path / "r.html")
    with pytest.raises(StorageError, match="no block 'arms'"):
        write_report({k: v for k, v in small.items() if k != "arms"}, tmp_path / "r.html")
    study = {k: v for k, v in small["study"].items() if k != "classes"}
    with pytest.raises(StorageError, match=r"no 'study\.classes'"):
        write_report({**small, "study": study}, tmp_path / "r.html")
    with pytest.raises(StorageError, match="does not exist"):
        write_report(tmp_path / "results.json", tmp_path / "r.html")
    (tmp_path / "results.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(StorageError, match="does not hold an object"):
        write_report(tmp_path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_costs_are_summed_over_sites_and_averaged_over_seeds(small: dict[str, Any]) -> None:
    results = copy.deepcopy(small)
    for unit in results["arms"]:
        if unit["arm"] == "local":
            unit["steps"] = {"local/kampala": 100, "local/munich": 50}[unit["model"]] + 10 * unit["seed"]
        if unit["model"] == "fedavg":
            unit["bytes_up"] = 3_000_000
            unit["images_seen"] *= 2
    section = cost(Page(Results(results)))
    sentence, table = section.blocks[:2]
    assert isinstance(table, Table)
    rows = {row[0].text: [c.text for c in row] for row in table.rows}
    assert rows["Local (own site)"][3] == "160"  # seeds: 100 + 50 and 110 + 60
    assert rows["FedAvg"][7] == "3.0 MB"
    assert rows["Centralised"][7] == "nothing"
    assert "The budgets differ: FedAvg went over each training image" in sentence.text
    assert "Equal budget" in cost(Page(Results(small))).blocks[0].text


def test_a_temperature_is_shown_with_the_calibration_error_before_and_after(
    full: dict[str, Any], parse_html: Callable[[str], Any]
) -> None:
    raw = copy.deepcopy(full)
    for unit in raw["arms"]:
        if unit["model"] == "fedavg":
            unit["calibration"] = {
                "temperature": 1.2 + 0.1 * unit["seed"],
                "images": 88,
                "loss_before": 1,
                "loss_after": 0.9,
            }
            for test in unit["sites"].values():
                test["uncalibrated"] = {"ece": {"value": 0.4, "low": None, "high": None}}
    tree = check_page(render(Results(raw)), parse_html)
    (row,) = tree.by_id("table-temperature").rows()
    assert row[:3] == ["FedAvg", "1.30 1.20 to 1.40", "88"]
    after = [t["sites"]["tecom"]["metrics"]["ece"]["value"] for t in raw["arms"] if t["model"] == "fedavg"]
    assert row[4] == f"0.400 → {sum(after) / 3:.3f}"
    assert "calibrated by one temperature" in tree.text()
    assert "table-temperature" not in render(Results(full))


def test_class_counts_that_moved_are_said(full: dict[str, Any], parse_html: Callable[[str], Any]) -> None:
    raw = copy.deepcopy(full)
    for unit in raw["arms"]:
        if unit["arm"] in ("fedavg", "centralised"):  # the centralised arm moved nothing
            unit["class_counts"] = [500, 40, 4, 300, 60]
    raw["config"]["train"]["loss"] = {"kind": "logit_adjusted", "prior": "federation"}
    text = check_page(render(Results(raw)), parse_html).text()
    assert "FedAvg: before the first round each site sent its number of training images of each class" in text
    assert "neutrophil 500, eosinophil 40, basophil 4, lymphocyte 300, monocyte 60" in text
    assert "logit-adjusted cross-entropy with class counts summed over the training sites" in text
    assert "Menon" in text


def test_unknown_cells_and_adaptation_have_sections_of_their_own(
    full: dict[str, Any], parse_html: Callable[[str], Any]
) -> None:
    raw = copy.deepcopy(full)
    for unit in raw["arms"]:
        unit["rejection"] = {"threshold": 0.5 + 0.1 * unit["seed"], "accepted": 0.96, "images": 88}
        for site, test in unit["sites"].items():
            met = site == "barcelona"
            test["unknown"] = {
                "n": 250 if met else 0,
                "auroc": {"value": 0.8 if met else None, "low": 0.7 if met else None, "high": 0.9 if met else None},
                "known_accepted": 0.9,
                "unknown_rejected": 0.25 if met else None,
                "kinds": {"platelet": {"n": 250, "rejected": 0.25}} if met else {},
                "risk_coverage": [{"coverage": 0.5, "risk": 0.1}, {"coverage": 1.0, "risk": 0.4}] if met else [],
            }
        after = {"balanced_accuracy": {"value": 0.75, "low": 0.7, "high": 0.8}}
        change = {"metric": "balanced_accuracy", "value": 0.05, "low": 0.01, "high": 0.09}
        unit["sites"]["cellavision"]["adapted"] = {"how": "norms", "metrics": after, "difference": change}
    tree = check_page(render(Results(raw)), parse_html)
    thresholds = {row[0]: row[1:] for row in tree.by_id("table-thresholds").rows()}
    assert thresholds["FedAvg"][:3] == ["0.600", "0.960", "0.900 0.250 of unknown stopped"]
    auroc = {row[0]: row[1:] for row in tree.by_id("table-unknown-auroc").rows()}
    assert len(auroc["FedAvg"]) == 1  # one site holds unknown cells
    assert auroc["FedAvg"][0].startswith("0.800 0.700 to 0.900")
    assert tree.by_id("table-unknown-kinds").rows()[0][:3] == ["platelet", "barcelona", "250"]
    risk = next(row for row in tree.by_id("table-unknown-risk").rows() if row[0] == "FedAvg")
    assert risk == ["FedAvg", "barcelona", "0.100", "0.100", "0.100", "0.400"]
    adapted = {row[0]: row[1:] for row in tree.by_id("table-adaptation").rows()}
    plain = [u["sites"]["cellavision"]["metrics"] for u in raw["arms"] if u["model"] == "fedavg"]
    before = sum(m["balanced_accuracy"]["value"] for m in plain) / 3
    assert adapted["FedAvg"][0].startswith(f"{before:.3f}")
    assert adapted["FedAvg"][2] == "+0.050 0.010 to 0.090"
    assert "no held-out score" in tree.by_id("adaptation").text()
    page = render(Results(full))
    assert 'id="unknown"' not in page
    assert 'id="adaptation"' not in page
