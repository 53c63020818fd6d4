"""The view on results.json, and how numbers are written."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from morphfed.reporting import text
from morphfed.reporting.results import Results, over_seeds


def test_models_of_a_study(small: dict[str, Any]) -> None:
    r = Results(small)
    assert [(m.key, m.kind) for m in r.arms] == [
        ("local (own site)", "own"), ("centralised", "pooled"), ("fedavg", "federated"), ("fedmedian", "federated")
    ]  # fmt: skip
    assert [m.key for m in r.singles] == ["local/kampala", "local/munich"]
    assert [m.key for m in r.judged_at("kampala")] == [m.key for m in r.arms]
    assert [m.key for m in r.judged_at("barcelona")][:2] == ["local/kampala", "local/munich"]


def test_local_arm_under_another_name(small: dict[str, Any]) -> None:
    results = copy.deepcopy(small)
    for unit in results["arms"]:
        if unit["arm"] == "local":
            unit["arm"], unit["model"] = "alone", unit["model"].replace("local", "alone")
        if unit["arm"] == "centralised":
            unit["arm"] = unit["model"] = "all-in-one"  # its algorithm is still centralised
    results["study"]["arms"] = ["alone", "all-in-one", "fedavg", "fedmedian"]
    r = Results(results)
    assert [(m.key, m.kind) for m in r.arms][:2] == [("alone (own site)", "own"), ("all-in-one", "pooled")]
    assert r.missing == []


def test_estimate_comes_from_summary_else_from_the_units(small: dict[str, Any]) -> None:
    fedavg = next(m for m in Results(small).arms if m.key == "fedavg")
    entry = next(
        s for s in small["summary"]
        if (s["model"], s["scope"], s["metric"]) == ("fedavg", "munich", "balanced_accuracy")
    )  # fmt: skip
    assert Results(small).estimate(fedavg, "munich").low == entry["low"]
    bare = {**small, "summary": []}
    values = [
        u["sites"]["munich"]["metrics"]["balanced_accuracy"]["value"] for u in small["arms"] if u["model"] == "fedavg"
    ]
    estimate = Results(bare).estimate(fedavg, "munich")
    assert estimate.value == pytest.approx(sum(values) / 2)
    assert estimate.sd == pytest.approx(abs(values[0] - values[1]) / 2**0.5)  # of two numbers
    assert estimate.seeds == 2


def test_over_seeds_worked_by_hand() -> None:
    estimate = over_seeds([{"value": 0.5, "low": 0.4, "high": 0.7}, {"value": 0.7, "low": 0.5, "high": 0.8}, None])
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.6, 0.45, 0.75))
    assert over_seeds([{"value": 0.5, "low": None, "high": None}]).low is None
    assert not over_seeds([{"value": None}, None]).known


def test_masked_is_known_only_where_classes_are_absent(small: dict[str, Any]) -> None:
    r = Results(small)
    fedavg = next(m for m in r.arms if m.key == "fedavg")
    assert not r.masked(fedavg, "munich").known
    values = [u["sites"]["barcelona"]["masked"]["metrics"]["accuracy"]["value"] for u in r.units_of(fedavg)]
    assert r.masked(fedavg, "barcelona", "accuracy").value == pytest.approx(sum(values) / len(values))
    summed = {
        "model": "fedavg",
        "scope": "barcelona",
        "metric": "accuracy_masked",
        "mean": 0.123,
        "low": 0.1,
        "high": 0.2,
    }
    r = Results({**small, "summary": [*small["summary"], summed]})
    assert r.masked(fedavg, "barcelona", "accuracy").value == 0.123


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (text.score(0.8435), "0.844"), (text.score(-0.0001), "0.000"), (text.score(-0.5), "−0.500"),
        (text.score(None), "–"), (text.signed(0.0602), "+0.060"), (text.signed(-0.06), "−0.060"),
        (text.signed(0.0001), "0.000"), (text.interval(-0.1, 0.02), "−0.100 to 0.020"), (text.interval(None, 1.0), ""),
        (text.p_value(0.00099), "< 0.001"), (text.p_value(0.0123), "0.012"), (text.p_clause(0.0005), "p < 0.001"),
        (text.p_clause(0.2), "p = 0.200"), (text.count(12992), "12\u202f992"), (text.counted(1, "image"), "1 image"),
        (text.counted(2, "class", "classes"), "2 classes"), (text.megabytes(2_900_000), "2.9 MB"),
        (text.megabytes(512), "512 B"), (text.duration(9.96), "10.0 s"), (text.duration(61), "1 min 01 s"),
        (text.duration(3661), "1 h 01 min"), (text.duration(3599.8), "1 h 00 min"),
        (text.listed(["a", "b", "c"]), "a, b and c"),
        (text.shortened(["a", "b", "c"], 2), "a, b and 1 more"),
        (text.metric_name("balanced_accuracy_masked"), "balanced accuracy (masked)"),
        (text.arm_title("fedavg"), "FedAvg"), (text.arm_title("my-arm"), "my-arm"),
    ],
)  # fmt: skip
def test_how_numbers_are_written(made: str, expected: str) -> None:
    assert made == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.5", True])
def test_what_is_no_number_is_missing(value: object) -> None:
    assert text.finite(value) is None
