"""Harrell's c-index, risk groups and what is kept of survival, against plain loops and cases worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from morphfed.core.errors import DataError, StorageError
from morphfed.evaluation.bootstrap import cluster_codes, interval
from morphfed.evaluation.compare import UnitPredictions, compare_pairs
from morphfed.evaluation.survival import (
    Outcomes,
    SurvivalScores,
    bin_names,
    c_index,
    evaluate_outcomes,
    kaplan_meier,
    read_outcomes,
    risk_groups,
    risk_of,
    survival_of,
    validation_metrics,
    write_outcomes,
)


def looped(months: list[float], censored: list[bool], risk: list[float]) -> float:
    """The definition, pair by pair."""
    agreed = compared = 0.0
    for i in range(len(months)):
        for j in range(len(months)):
            if censored[i] or not (months[i] < months[j] or (months[i] == months[j] and censored[j])):
                continue
            compared += 1
            agreed += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return agreed / compared if compared else math.nan


def drawn(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """With ties of times and of risks."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 12, n).astype(float), draw.random(n) < 0.4, draw.integers(-6, 0, n) / 2


def outcomes(n: int = 40, seed: int = 0, *, per_patient: int = 1) -> Outcomes:
    draw = np.random.default_rng(seed)
    patients = np.arange(n) // per_patient
    months = np.random.default_rng(99).integers(1, 60, n)[patients].astype(float)
    censored = (np.random.default_rng(98).random(n) < 0.3)[patients]
    curves = survival_of(draw.random((n, 3)) * 0.6)
    ids = np.array([f"s{i:03}" for i in range(n)])
    names = np.array([f"p{p:03}" for p in patients])
    return Outcomes((12.0, 24.0), ids, months, censored, curves, names, "patient")


def test_five_patients_by_hand() -> None:
    """Events at 2 and 5, censored at 2, 4 and 7. Pairs: 2 with all four others, 5 with 7 alone."""
    months, censored = np.array([2.0, 2, 4, 5, 7]), np.array([False, True, True, False, True])
    risk = np.array([3.0, 1, 3, 4, 0])
    # 2e > 2c, 2e = 4c (half), 2e < 5e, 2e > 7c, 5e > 7c: 3.5 of 5
    assert float(c_index(months, censored, risk)) == pytest.approx(3.5 / 5)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_definition(seed: int) -> None:
    months, censored, risk = drawn(60, seed)
    assert float(c_index(months, censored, risk)) == pytest.approx(looped(list(months), list(censored), list(risk)))


def test_more_events_than_are_looked_at_at_once() -> None:
    months, censored, risk = drawn(1300, 7)
    assert float(c_index(months, censored, risk)) == pytest.approx(looped(list(months), list(censored), list(risk)))


def test_weights_are_copies_of_patients() -> None:
    months, censored, risk = drawn(30, 1)
    weights = np.random.default_rng(4).integers(0, 4, (30, 6)).astype(float)
    found = c_index(months, censored, risk, weights)
    for b in range(6):
        rows = np.repeat(np.arange(30), weights[:, b].astype(int))
        assert found[b] == pytest.approx(looped(list(months[rows]), list(censored[rows]), list(risk[rows])))


def test_nothing_to_compare_is_not_a_number() -> None:
    assert np.isnan(c_index(np.array([3.0, 4]), np.array([True, True]), np.array([1.0, 2])))
    assert np.isnan(c_index(np.array([3.0, 3]), np.array([False, False]), np.array([1.0, 2])))
    assert np.isnan(c_index(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0)))


def test_risk_is_minus_the_sum_of_the_curve() -> None:
    """h = (½, ½, 0): S = (½, ¼, ¼), risk −1."""
    assert survival_of(np.array([[0.5, 0.5, 0.0]])).tolist() == [[0.5, 0.25, 0.25]]
    assert risk_of(np.array([[0.5, 0.25, 0.25]])).tolist() == [-1.0]


def test_validation_reports_the_likelihood_and_no_index_where_there_is_none() -> None:
    hazards = np.array([[0.2, 0.5], [0.1, 0.3]], dtype=np.float32)
    truth = np.array([[5.0, 0], [20.0, 2 + 1]])  # event in bin 0; censored in bin 1
    found = validation_metrics(truth, hazards)
    assert found["loss"] == pytest.approx(-(math.log(0.2) + math.log(0.9 * 0.7)) / 2, rel=1e-6)
    assert found["c_index"] == 1.0
    assert set(validation_metrics(truth[1:], hazards[1:])) == {"loss"}


def test_a_patient_is_the_mean_of_the_slides() -> None:
    found, slides = outcomes(per_patient=2).by_cluster(), outcomes(per_patient=2)
    assert len(found) == 20
    np.testing.assert_allclose(found.survival[3], slides.survival[6:8].mean(axis=0))
    assert found.months.tolist() == slides.months[::2].tolist()


def test_the_block_of_a_site() -> None:
    o = outcomes()
    block = evaluate_outcomes(o, role="train", resamples=300)
    value = looped(o.months.tolist(), o.censored.tolist(), o.risk.tolist())
    metric = block["metrics"]["c_index"]
    assert metric["value"] == pytest.approx(value)
    assert metric["low"] < value < metric["high"]
    assert block["events"] == int((~o.censored).sum())
    none = evaluate_outcomes(o.at(np.zeros(0, dtype=np.int64)), role="held_out", resamples=300)
    assert none["metrics"]["c_index"] == {"value": None, "low": None, "high": None}
    alive = evaluate_outcomes(o.at(np.flatnonzero(o.censored)), role="train", resamples=300)
    assert alive["metrics"]["c_index"]["value"] is None
    assert "there is no c-index" in alive["notes"][0]


def test_models_are_compared_on_the_same_patients() -> None:
    """The vectors' difference over resamples made here by hand gives the interval of the comparison."""
    pair = {name: outcomes(seed=s) for name, s in (("a", 1), ("b", 2))}
    units = [
        UnitPredictions(n, n, n, 0, ("x", "y"), {"x": o, "y": o}, {"x": "train", "y": "train"}) for n, o in pair.items()
    ]
    scores = SurvivalScores(units, resamples=200)
    entry = next(e for e in compare_pairs(scores, [("a", "b")]) if e["scope"] == "x")
    each = [looped(o.months.tolist(), o.censored.tolist(), o.risk.tolist()) for o in pair.values()]
    assert entry["metric"] == "c_index"
    assert entry["difference"] == pytest.approx(each[0] - each[1])
    first, second = (scores.vector(n, "x", "c_index", 0) for n in pair)
    assert first is not None
    assert second is not None
    low, high = interval(first[1:] - second[1:], cluster_codes(pair["a"].clusters)[1])
    assert (entry["low"], entry["high"]) == (low, high)


def test_kaplan_meier_by_hand() -> None:
    """Events at 2 (of 5), 4 (of 3); censored at 3, 4 and 6: S = 4/5, then 4/5 · 2/3."""
    o = outcomes(5)
    o = Outcomes(
        o.edges,
        o.ids,
        np.array([2.0, 3, 4, 4, 6]),
        np.array([False, True, False, True, True]),
        o.survival,
        o.clusters,
        "patient",
    )
    curve = kaplan_meier(o)
    np.testing.assert_allclose(curve, [[0, 1], [2, 0.8], [4, 0.8 * 2 / 3], [6, 0.8 * 2 / 3]])


def test_groups_are_halves_by_risk_and_the_log_rank_test_is_its_formula() -> None:
    o = outcomes()
    found = risk_groups(o)
    assert found is not None
    upper = o.risk > np.median(o.risk)
    assert [g["n"] for g in found["groups"]] == [20, 20]
    assert found["groups"][1]["events"] == int((~o.censored[upper]).sum())
    seen = expected = variance = 0.0
    for t in np.unique(o.months[~o.censored]):
        at_risk, died = o.months >= t, (o.months == t) & ~o.censored
        n, d, n1 = at_risk.sum(), died.sum(), (at_risk & upper).sum()
        seen, expected = seen + (died & upper).sum(), expected + d * n1 / n
        variance += d * (n1 / n) * (1 - n1 / n) * (n - d) / (n - 1) if n > 1 else 0.0
    z = abs(seen - expected) / math.sqrt(variance)
    assert found["logrank_p"] == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-6)


def test_alike_risks_make_no_groups() -> None:
    o = outcomes(6)
    flat = Outcomes(o.edges, o.ids, o.months, o.censored, np.full((6, 3), 0.5), o.clusters, "patient")
    assert risk_groups(flat) is None


def test_outcomes_come_back_as_written(tmp_path: Path) -> None:
    sites = {"x": outcomes(7), "y": outcomes(0)}
    write_outcomes(tmp_path / "o.parquet", sites)
    found = read_outcomes(tmp_path / "o.parquet")
    assert list(found) == ["x", "y"]
    assert found["x"].differs(sites["x"]) == ""
    np.testing.assert_array_equal(found["x"].survival, sites["x"].survival)
    assert len(found["y"]) == 0
    (tmp_path / "o.parquet").write_bytes(b"no")
    with pytest.raises(StorageError, match="cannot be read as outcomes"):
        read_outcomes(tmp_path / "o.parquet")


def test_a_curve_that_is_none_is_refused() -> None:
    o = outcomes(4)
    with pytest.raises(DataError, match="survival curve of s000 .* nor are 3 more"):
        Outcomes(o.edges, o.ids, o.months, o.censored, o.survival * np.nan, o.clusters, "patient")


def test_bins_have_names() -> None:
    assert bin_names((12.0, 24.5)) == ["0–12 months", "12–24.5 months", "from 24.5 months"]
