"""What the page says of noise: who added it, where, and that some of it guarantees nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from tests.reporting.test_report import check_page

from morphfed.reporting.blocks import Bullets, Details, Page, Section, Table
from morphfed.reporting.report import render
from morphfed.reporting.results import Results
from morphfed.reporting.sections.noise import NO_GUARANTEE, noise

CALIBRATED = {
    "kind": "calibrated",
    "clip": 0.5,
    "std": 2.0,
    "unit": "site",
    "delta": 1e-5,
    "epsilon": 7.25,
    "draw": "study",
}
PUBLISHED = {"kind": "as_published", "alpha": 0.1, "biases": False, "epsilon": None, "draw": "secret"}


@pytest.fixture
def noised(small: dict[str, Any]) -> dict[str, Any]:
    """FedAvg calibrated, FedMedian as published."""
    results = copy.deepcopy(small)
    for unit in results["arms"]:
        if unit["arm"] == "fedavg":
            unit["noise"] = CALIBRATED | {"epsilon": 7.25 + unit["seed"] / 4}
            for entry in unit["history"]:
                entry["epsilon"] = 2.0 + entry["round"]
        if unit["arm"] == "fedmedian":
            unit["noise"] = PUBLISHED
    return results


def section(results: dict[str, Any]) -> Section:
    made = noise(Page(Results(results)))
    assert made is not None
    return made


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_no_noise_no_section(small: dict[str, Any]) -> None:
    assert noise(Page(Results(small))) is None


def test_table_and_sentences(noised: dict[str, Any]) -> None:
    made = section(noised)
    table = next(b for b in made.blocks if isinstance(b, Table))
    rows = {row[0]: row[1:] for row in texts(table)}
    assert len(rows) == 2
    one, two = rows["FedAvg"], rows["FedMedian"]
    assert "cut to length 0.5" in one[0]
    assert one[1:] == ["by each site, before it sent", "2 a number", "7.5 at δ = 1e-05"]  # the larger of two seeds
    assert two[1:] == ["by each site, before it sent", "0.1 × the tensor's", NO_GUARANTEE]
    said = next(b for b in made.blocks if isinstance(b, Bullets)).items
    assert "The unit is a site" in said[0]
    assert "nobody who knows the seed" in said[0]
    assert "no (ε, δ) holds" in said[1]


def test_epsilon_by_round(noised: dict[str, Any]) -> None:
    details = next(b for b in section(noised).blocks if isinstance(b, Details))
    table = next(b for b in details.blocks if isinstance(b, Table))
    assert texts(table) == [["1", "3"], ["2", "4"], ["3", "5"]]


@pytest.mark.parametrize(
    ("placement", "where", "scale"),
    [
        ("unweighted", "by the coordinator", "0.01 × the tensor's, not weighted, as published"),
        ("weighted", "by each site, before it sent", "0.01 × the tensor's, weighted"),
    ],
)
def test_histofl(small: dict[str, Any], placement: str, where: str, scale: str) -> None:
    results = copy.deepcopy(small)
    keys = {"alpha": 0.01, "noise": placement, "biases": False}
    results["config"]["arms"]["fedavg"] |= {"algorithm": "histofl", "config": keys}
    made = section(results)
    table = next(b for b in made.blocks if isinstance(b, Table))
    assert texts(table)[0][2:] == [where, scale, NO_GUARANTEE]
    sentence = next(b for b in made.blocks if isinstance(b, Bullets)).items[0]
    assert ("The coordinator saw the uploads without it" in sentence) == (placement == "unweighted")
    results["config"]["arms"]["fedavg"]["config"]["alpha"] = 0.0
    assert noise(Page(Results(results))) is None


def test_the_page_has_it_before_the_cost(noised: dict[str, Any], parse_html: Callable[[str], Any]) -> None:
    tree = check_page(render(Results(noised)), parse_html)
    sections = [n.attributes["id"] for n in tree.all("main")[0].all("section")]
    assert sections[sections.index("noise") + 1] == "cost"
    assert "Deep learning with differential privacy" in tree.by_id("methods").text()
    assert tree.by_id("methods").text().count("Federated learning for computational pathology") == 1
