"""Folds together: hand-worked means, and the same numbers as one study in which every site is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from morphfed.evaluation.compare import compare_pairs, holm, summarise
from morphfed.evaluation.folds import FoldScores, fold_matrix, fold_pairs
from morphfed.evaluation.predictions import Predictions
from morphfed.evaluation.scores import Scores, UnitPredictions

CLASSES = ("neutrophil", "monocyte")
SITES = ("lyon", "kano", "oslo")
WHOLE, PART = 40, 20  # images of a held-out site, and of a training site's test part

# Right answers of 40 at the left-out site, by seed: what a copy trained without that site reaches.
AWAY: dict[str, dict[str, tuple[int, int]]] = {
    "fedavg": {"lyon": (32, 36), "kano": (24, 28), "oslo": (30, 30)},
    "fedprox": {"lyon": (34, 38), "kano": (22, 26), "oslo": (32, 36)},
    "centralised": {"lyon": (36, 36), "kano": (28, 32), "oslo": (26, 26)},
    "local/lyon": {"kano": (20, 24), "oslo": (24, 20)},
    "local/kano": {"lyon": (28, 28), "oslo": (22, 24)},
    "local/oslo": {"lyon": (30, 22), "kano": (26, 20)},
}
# Right answers of 20 at the test part of a site that trained, in every fold and seed.
HOME = {"fedavg": 16, "fedprox": 16, "centralised": 18, "local/lyon": 12, "local/kano": 14, "local/oslo": 10}


def answers(name: str, n: int, right: int, stir: int, lacking: bool = False) -> Predictions:
    """``right`` of n images are classified rightly, as many of each class: balanced accuracy is right / n."""
    ids = np.array([f"{name}/{k:02d}" for k in range(n)])
    labels = np.zeros(n, dtype=np.int64) if lacking else np.arange(n) % 2
    order = np.random.default_rng(stir).permutation(n // 2)
    correct = np.zeros((n // 2, 2), dtype=bool)
    correct[order[: right // 2]] = True
    guess = np.where(correct.ravel(), labels, 1 - labels)
    return Predictions(CLASSES, ids, labels, np.eye(2)[guess] * 0.8 + 0.1, ids, "image")


def left_out(model: str, site: str, seed: int, lacking: Sequence[str] = ()) -> Predictions:
    stir = 10 * list(AWAY).index(model) + seed
    return answers(site, WHOLE, AWAY[model][site][seed], stir, site in lacking)


def fold(site: str, seeds: Mapping[str, Sequence[int]] | None = None, lacking: Sequence[str] = ()) -> Scores:
    """The scores of the study that holds out ``site``."""
    roles: dict[str, Any] = {s: "held_out" if s == site else "train" for s in SITES}
    others = tuple(s for s in SITES if s != site)
    units = []
    for model in AWAY:
        arm, _, own = model.partition("/")
        if own == site:
            continue
        for seed in (seeds or {}).get(model, (0, 1)):
            sites = {s: answers(s, PART, HOME[model], seed) for s in others}
            sites[site] = left_out(model, site, seed, lacking)
            sites = {s: sites[s] for s in SITES}
            units.append(UnitPredictions(arm, model, arm, seed, (own,) if own else others, sites, roles))
    return Scores(units, resamples=300)


def folds(**changes: Any) -> FoldScores:
    scores = FoldScores(SITES)
    for site in SITES:
        scores.take(site, fold(site, **changes))
    return scores


@pytest.fixture(scope="module")
def scores() -> FoldScores:
    return folds()


def row(rows: Sequence[Mapping[str, Any]], **keys: str) -> Mapping[str, Any]:
    (found,) = [r for r in rows if all(r[k] == v for k, v in keys.items())]
    return found


BALANCED = {"metric": "balanced_accuracy"}


@pytest.mark.parametrize(
    ("model", "scope", "expected"),
    [
        ("fedavg", "lyon", [32 / 40, 36 / 40]),
        ("fedavg", "mean_held_out", [(32 + 24 + 30) / 120, (36 + 28 + 30) / 120]),
        ("fedavg", "mean_training", [16 / 20, 16 / 20]),
        ("local (mean)", "lyon", [(28 + 30) / 80, (28 + 22) / 80]),
        ("local (mean)", "mean_held_out", [(28 + 30 + 20 + 26 + 24 + 22) / 240, (28 + 22 + 24 + 20 + 20 + 24) / 240]),
        # By seed-mean the best at lyon is kano's (28 against 26), though oslo's has the single highest score.
        ("local (best)", "lyon", [28 / 40, 28 / 40]),
        ("local (best)", "kano", [26 / 40, 20 / 40]),
        ("local (best)", "oslo", [22 / 40, 24 / 40]),
        ("local (best)", "mean_held_out", [(28 + 26 + 22) / 120, (28 + 20 + 24) / 120]),
        # Each site's own model, each site in two of three folds.
        ("local (own site)", "mean_training", [(12 + 14 + 10) / 60] * 2),
    ],
)
def test_worked_by_hand(scores: FoldScores, model: str, scope: str, expected: list[float]) -> None:
    found = row(summarise(scores), model=model, scope=scope, **BALANCED)
    assert found["mean"] == pytest.approx(np.mean(expected))
    assert found["sd"] == pytest.approx(np.std(expected, ddof=1))
    assert found["low"] <= found["mean"] <= found["high"]


def test_what_is_not_defined_is_not_there(scores: FoldScores) -> None:
    there = {(r["model"], r["scope"]) for r in summarise(scores)}
    assert ("local/lyon", "lyon") not in there
    assert ("local/lyon", "kano") in there
    assert ("local/lyon", "mean_held_out") not in there
    assert ("local (own site)", "lyon") not in there
    assert ("local (own site)", "mean_held_out") not in there
    assert ("local (best)", "mean_training") not in there


def test_the_same_as_one_study_in_which_every_site_is_held_out(scores: FoldScores) -> None:
    """Each copy's answers at the site that it has not seen, put side by side, through the ordinary evaluation."""
    roles: dict[str, Any] = dict.fromkeys(SITES, "held_out")
    units = [
        UnitPredictions(m, m, m, seed, SITES, {s: left_out(m, s, seed) for s in SITES}, roles)
        for m in ("fedavg", "fedprox", "centralised")
        for seed in (0, 1)
    ]
    plain = Scores(units, resamples=300)
    pairs = [("fedavg", "centralised"), ("fedprox", "centralised"), ("fedprox", "fedavg")]
    scopes = [*SITES, "mean_held_out"]
    for metric in ("balanced_accuracy", "ece", "auroc"):
        found, expected = ([r for r in summarise(s) if r["metric"] == metric] for s in (scores, plain))
        for e in expected:
            assert row(found, model=e["model"], scope=e["scope"]) == e
    assert compare_pairs(scores, pairs, scopes=scopes) == compare_pairs(plain, pairs, scopes=scopes)


def test_the_mean_over_folds_is_taken_inside_each_resample(scores: FoldScores) -> None:
    each = [fold(s).vector("fedavg", "mean_training", "balanced_accuracy", 0) for s in SITES]
    together = scores.vector("fedavg", "mean_training", "balanced_accuracy", 0)
    assert together is not None
    assert together == pytest.approx(np.mean([v for v in each if v is not None], axis=0))
    assert scores.clusters_of("mean_training") == (3 * PART, "image")
    assert scores.clusters_of("mean_held_out") == (3 * WHOLE, "image")
    assert scores.clusters_of("kano") == (WHOLE, "image")


def test_pairs_and_holm(scores: FoldScores) -> None:
    pairs = fold_pairs(scores, ["centralised"], ["fedavg", "fedprox"])
    assert pairs == [
        ("fedavg", "centralised"), ("fedavg", "local (own site)"), ("fedavg", "local (best)"),
        ("fedavg", "local (mean)"),
        ("fedprox", "centralised"), ("fedprox", "local (own site)"), ("fedprox", "local (best)"),
        ("fedprox", "local (mean)"), ("fedprox", "fedavg"),
    ]  # fmt: skip
    found = compare_pairs(scores, pairs, metrics=["balanced_accuracy"], scopes=["mean_held_out"])
    assert [c["p_holm"] for c in found] == holm([c["p"] for c in found])
    assert len(found) == 7, "each site's own model is not defined where it is held out"
    best = row(found, a="fedavg", b="local (best)")
    assert best["difference"] == pytest.approx((32 + 36 + 24 + 28 + 60) / 240 - (56 + 46 + 46) / 240)
    assert best["clusters"] == 3 * WHOLE


def test_matrix_of_local_models(scores: FoldScores) -> None:
    found = fold_matrix(scores, "balanced_accuracy")
    assert found is not None
    assert found["rows"] == found["columns"] == list(SITES)
    assert found["values"] == [
        pytest.approx([12 / 20, 22 / 40, 22 / 40]),
        pytest.approx([28 / 40, 14 / 20, 23 / 40]),
        pytest.approx([26 / 40, 23 / 40, 10 / 20]),
    ]


def test_a_seed_that_is_missing_in_one_fold_counts_in_none() -> None:
    scores = FoldScores(SITES)
    for site in SITES:
        scores.take(site, fold(site, seeds={"fedavg": (1,)} if site == "kano" else None))
    assert scores.seeds("fedavg") == (1,)
    found = row(summarise(scores), model="fedavg", scope="mean_held_out", **BALANCED)
    assert (found["mean"], found["seeds"]) == (pytest.approx((36 + 28 + 30) / 120), 1)


def test_a_fold_that_is_missing_leaves_no_mean() -> None:
    scores = FoldScores(SITES)
    for site in ("lyon", "oslo"):
        scores.take(site, fold(site))
    there = {(r["model"], r["scope"]) for r in summarise(scores)}
    assert ("fedavg", "lyon") in there
    assert not {("fedavg", "kano"), ("fedavg", "mean_held_out"), ("fedavg", "mean_training")} & there


def test_pairs_without_a_common_seed_are_left_out() -> None:
    scores = folds(seeds={"fedavg": (0,), "centralised": (1,)})
    pairs = fold_pairs(scores, ["centralised"], ["fedavg", "fedprox"])
    assert ("fedavg", "centralised") not in pairs
    assert {("fedprox", "centralised"), ("fedprox", "fedavg")} <= set(pairs)
    assert compare_pairs(scores, pairs)


def test_masked_metrics_where_only_one_fold_lacks_a_class() -> None:
    """At the other sites the mask changes nothing: their masked score is the free one."""
    scores = FoldScores(SITES)
    for site in SITES:
        scores.take(site, fold(site, lacking=["kano"]))
    assert "balanced_accuracy_masked" in scores.metrics
    found = summarise(scores)
    free, masked = (row(found, model="fedavg", scope="lyon", metric=f"balanced_accuracy{m}") for m in ("", "_masked"))
    assert masked["mean"] == free["mean"]
    assert row(found, model="fedavg", scope="kano", metric="balanced_accuracy_masked")["mean"] == 1.0
    over = row(found, model="fedavg", scope="mean_held_out", metric="balanced_accuracy_masked")["mean"]
    assert over == pytest.approx((34 / 40 + 1 + 30 / 40) / 3)


def test_a_lower_calibration_error_is_the_better_one() -> None:
    scores = folds()
    for site in SITES:
        errors = {m: scores.at(m, site, "ece") for m in scores.locals_of("local") if not m.endswith(site)}
        assert errors[scores.best_local("local", site, "ece")] == min(v for v in errors.values() if v is not None)


@pytest.mark.parametrize("others", [True, False])
def test_a_method_without_a_model_for_newcomers_has_its_training_sites_only(others: bool) -> None:
    scores = FoldScores(SITES)
    for site in SITES:
        units = [
            replace(u, sites={s: p for s, p in u.sites.items() if s != site}) if u.model == "fedavg" else u
            for u in fold(site).units
            if others or u.model == "fedavg"
        ]
        scores.take(site, Scores(units, resamples=300))
    found = {r["scope"]: r["mean"] for r in summarise(scores) if (r["model"], r["metric"]) == ("fedavg", "accuracy")}
    assert found == {"mean_training": pytest.approx(16 / 20)}
    pairs = fold_pairs(scores, ["centralised"], ["fedavg"])
    assert {c["scope"] for c in compare_pairs(scores, pairs)} == ({"mean_training"} if others else set())


def test_mistakes_of_the_caller() -> None:
    with pytest.raises(ValueError, match="the fold of lyon holds out"):
        FoldScores(SITES).take("lyon", fold("kano"))
    with pytest.raises(ValueError, match="need the pairs"):
        compare_pairs(folds())
