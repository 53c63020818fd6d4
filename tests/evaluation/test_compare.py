from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kstest, norm

from morphfed.core.errors import DataError
from morphfed.evaluation.compare import (
    Scores,
    UnitPredictions,
    compare_pairs,
    cross_site_matrix,
    default_pairs,
    holm,
    p_value,
    summarise,
)
from morphfed.evaluation.predictions import Predictions

CLASSES = ("neutrophil", "monocyte")
ROLES = {"lyon": "train", "kano": "train", "oslo": "held_out"}
TRAINING = ("lyon", "kano")
IMAGES = 20  # at each site, half of each class


def site(name: str, right: int, seed: int = 0) -> Predictions:
    """Of 20 images, ``right`` are classified rightly, as many of each class: all accuracies are right/20."""
    ids = np.array([f"{name}/{k:02d}" for k in range(IMAGES)])
    labels = np.arange(IMAGES) % 2
    order = np.random.default_rng(seed).permutation(IMAGES // 2)
    correct = np.zeros((IMAGES // 2, 2), dtype=bool)
    correct[order[: right // 2]] = True
    guess = np.where(correct.ravel(), labels, 1 - labels)
    return Predictions(CLASSES, ids, labels, np.eye(2)[guess] * 0.8 + 0.1, ids, "image")


def unit(model: str, seed: int, right: Sequence[int]) -> UnitPredictions:
    arm, _, own = model.partition("/")
    sites = {name: site(name, r, seed) for name, r in zip(ROLES, right, strict=True)}
    algorithm = "fedavg" if own else arm
    return UnitPredictions(arm, model, algorithm, seed, (own,) if own else TRAINING, sites, ROLES)  # type: ignore[arg-type]


def study() -> list[UnitPredictions]:
    return [
        *(unit("local/lyon", 0, (18, 8, 10)), unit("local/lyon", 1, (16, 10, 12))),
        *(unit("local/kano", 0, (10, 14, 8)), unit("local/kano", 1, (12, 16, 10))),
        *(unit("centralised", 0, (18, 18, 14)), unit("centralised", 1, (18, 16, 16))),
        *(unit("fedavg", 0, (16, 14, 14)), unit("fedavg", 1, (18, 14, 18))),
        *(unit("fedprox", 0, (16, 14, 14)), unit("fedprox", 1, (18, 14, 18))),
    ]


@pytest.fixture(scope="module")
def scores() -> Scores:
    return Scores(study(), resamples=400)


def row(rows: Sequence[Mapping[str, object]], **keys: str) -> Mapping[str, object]:
    (found,) = [r for r in rows if all(r[k] == v for k, v in keys.items())]
    return found


@pytest.mark.parametrize(
    ("model", "scope", "expected"),
    [
        ("fedavg", "lyon", [16, 18]),
        ("fedavg", "mean_training", [15, 16]),
        ("fedavg", "mean_held_out", [14, 18]),
        ("fedavg", "worst_training", [14, 14]),
        ("fedavg", "gap_training", [2, 4]),
        ("local (own site)", "lyon", [18, 16]),
        ("local (own site)", "kano", [14, 16]),
        ("local (own site)", "mean_training", [16, 16]),
        ("local (mean)", "lyon", [14, 14]),
        ("local (mean)", "mean_training", [12.5, 13.5]),
        ("local (mean)", "oslo", [9, 11]),
        ("local (mean)", "worst_training", [9, 11]),
    ],
)
def test_means_and_spread_by_hand(scores: Scores, model: str, scope: str, expected: list[float]) -> None:
    found = row(summarise(scores), model=model, scope=scope, metric="balanced_accuracy")
    values = np.array(expected) / 20
    assert found["mean"] == pytest.approx(values.mean())
    assert found["sd"] == pytest.approx(values.std(ddof=1), abs=1e-12)
    assert found["seeds"] == 2
    assert found["low"] <= found["mean"] <= found["high"]  # type: ignore[operator]


def test_summary_is_json_and_leaves_out_only_what_has_no_meaning(scores: Scores) -> None:
    rows = summarise(scores)
    json.dumps(rows, allow_nan=False)
    models = 5 + 2
    scopes = 3 + 4
    assert len(rows) == (models * scopes - 2) * 6  # own site: neither at oslo nor held out
    assert not [r for r in rows if r["model"] == "local (own site)" and r["scope"] in ("oslo", "mean_held_out")]
    assert {r["arm"] for r in rows if str(r["model"]).startswith("local")} == {"local"}


def test_worst_site_of_a_loss_is_the_highest() -> None:
    rows = summarise(Scores([u for u in study() if u.seed == 0], metrics=["ece"], resamples=50))
    each = [row(rows, model="fedavg", scope=s, metric="ece")["mean"] for s in TRAINING]
    assert each[0] != each[1]
    assert row(rows, model="fedavg", scope="worst_training", metric="ece")["mean"] == max(each)  # type: ignore[type-var]
    assert row(rows, model="fedavg", scope="lyon", metric="ece")["sd"] is None


def test_interval_of_a_site_is_that_of_its_images() -> None:
    rows = summarise(Scores([unit("fedavg", 0, (14, 14, 14))], metrics=["accuracy"], resamples=4000))
    found = row(rows, model="fedavg", scope="lyon", metric="accuracy")
    # Binomial(20, .7) at the expanded tail (t with 19 degrees of freedom: 0.0159): 9 and 18 of 20.
    assert (found["low"], found["high"]) == (
        pytest.approx(9 / 20, abs=0.051),
        pytest.approx(18 / 20, abs=0.051),
    )
    mean = row(rows, model="fedavg", scope="mean_training", metric="accuracy")
    width = float(found["high"]) - float(found["low"])  # type: ignore[arg-type]
    # Two sites that are resampled independently: narrower by √2.
    assert float(mean["high"]) - float(mean["low"]) == pytest.approx(width / np.sqrt(2), rel=0.15)  # type: ignore[arg-type]


def test_a_gap_that_noise_alone_would_open_is_not_reported_as_one() -> None:
    rows = summarise(Scores([unit("fedavg", 0, (14, 14, 14))], metrics=["accuracy"], resamples=2000))
    gap = row(rows, model="fedavg", scope="gap_training", metric="accuracy")
    # Equal sites; the difference of two shares of 20 has a standard deviation of .145, so resampled gaps average
    # .12 and reach .33: those percentiles shifted by twice .12 leave .10.
    assert (gap["mean"], gap["low"]) == (0.0, 0.0)
    assert gap["high"] == pytest.approx(0.1, abs=0.05)


def test_cross_site_matrix_by_hand(scores: Scores) -> None:
    expected = {
        "metric": "balanced_accuracy",
        "rows": ["lyon", "kano"],
        "columns": ["lyon", "kano", "oslo"],
        "values": [pytest.approx([0.85, 0.45, 0.55]), pytest.approx([0.55, 0.75, 0.45])],
    }
    assert cross_site_matrix(scores) == expected
    assert cross_site_matrix(study()) == expected
    assert cross_site_matrix([unit("fedavg", 0, (1, 2, 3))]) is None


def test_default_pairs_go_by_algorithm_not_by_name() -> None:
    against = ["centralised", "local (own site)", "local (mean)"]
    expected = [(a, b) for a in ("fedavg", "fedprox") for b in against] + [("fedprox", "fedavg")]
    assert default_pairs(study()) == expected
    renamed = [
        UnitPredictions("upper bound", "upper bound", "centralised", 0, TRAINING, u.sites, ROLES)  # type: ignore[arg-type]
        if u.model == "centralised"
        else u
        for u in study()
        if u.seed == 0
    ]
    assert ("fedavg", "upper bound") in default_pairs(renamed)
    assert default_pairs([u for u in study() if u.arm == "local"]) == []


def test_difference_is_of_seed_means_and_identical_models_do_not_differ(scores: Scores) -> None:
    found = compare_pairs(scores, metrics=["balanced_accuracy"])
    json.dumps(found, allow_nan=False)
    entry = row(found, a="fedavg", b="centralised", scope="mean_training")
    assert entry["difference"] == pytest.approx(15.5 / 20 - 17.5 / 20)
    assert (entry["clusters"], entry["cluster_unit"], entry["resamples"], entry["seeds"]) == (
        40,
        "image",
        400,
        2,
    )
    same = row(found, a="fedprox", b="fedavg", scope="mean_training")
    # Unpaired resampling would give an interval around 0; paired, two equal models never differ.
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0.0, 0.0, 0.0, 1.0)
    assert {e["scope"] for e in found if e["b"] == "local (own site)"} == {
        *TRAINING,
        "mean_training",
        "worst_training",
    }


def test_holm_is_taken_within_one_metric_and_scope(scores: Scores) -> None:
    found = compare_pairs(scores)
    for metric in ("balanced_accuracy", "macro_f1"):
        for scope in ("lyon", "mean_training", "mean_held_out"):
            family = [e for e in found if e["metric"] == metric and e["scope"] == scope]
            assert len(family) == (5 if scope == "mean_held_out" else 7)
            assert [e["p_holm"] for e in family] == pytest.approx(holm([e["p"] for e in family]))


def test_units_and_scores_give_the_same(scores: Scores) -> None:
    assert compare_pairs(study(), default_pairs(study()), resamples=400) == compare_pairs(scores)
    assert summarise(study(), resamples=400) == summarise(scores)


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04: × 4, 3, 2, 1 = .02 .03 .06 .04; never below an earlier one.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, None, 0.03]) == [pytest.approx(0.04), None, pytest.approx(0.04)]
    assert holm([]) == []


def test_p_value_by_hand() -> None:
    replicates = np.array([0.1, 0.3, -0.2, 0.7, np.nan])
    # About the observed .3: −.2 0 −.5 .4; of four, two are at least .3 away.
    assert p_value(0.3, replicates) == pytest.approx((1 + 2) / (4 + 1))
    assert p_value(0.0, np.zeros(9)) == 1.0


def test_beyond_all_replicates_a_p_value_is_the_normal_tail() -> None:
    replicates = np.tile([-1.0, 1.0], 500) * 0.1 + 0.35  # spread .1; the observed .35 is 3.5 spreads from 0
    assert p_value(0.35, replicates) == pytest.approx(2 * norm.sf(3.5))
    assert p_value(0.9, replicates + 0.55) == 1e-5  # 9 spreads: the smallest that is given
    assert p_value(0.22, replicates - 0.13) == pytest.approx(1 / 1001)  # the tail, .03, must not raise the count's
    assert p_value(0.3, np.full(99, 0.3)) == 1 / 100  # no spread, no tail


def simulated_p(rng: np.random.Generator, patients: int | None) -> float:
    """Two equally good models on one site of 150 images, each with its own mistakes."""
    n = 150
    labels = np.arange(n) % 2
    who = np.arange(n) if patients is None else rng.integers(0, patients, n)
    clusters = np.char.mod("%d", who)
    units = []
    for model in ("a", "b"):
        chance = np.full(n, 0.75) if patients is None else rng.beta(3, 1, patients)[who]
        guess = np.where(rng.random(n) < chance, labels, 1 - labels)
        p = Predictions(
            CLASSES,
            np.char.mod("%03d", np.arange(n)),
            labels,
            np.eye(2)[guess],
            clusters,
            "image" if patients is None else "patient",
        )
        units.append(UnitPredictions(model, model, "fedavg", 0, ("x",), {"x": p}, {"x": "train"}))
    (entry,) = compare_pairs(units, [("a", "b")], ["balanced_accuracy"], ["x"], resamples=400)
    return float(entry["p"])


@pytest.mark.parametrize("patients", [None, 30])
def test_p_values_are_uniform_where_nothing_differs(patients: int | None) -> None:
    rng = np.random.default_rng(21)
    values: NDArray[np.float64] = np.array([simulated_p(rng, patients) for _ in range(400)])
    assert kstest(values, "uniform").pvalue > 0.01
    # Standard error of a share of .05 in 400: .011.
    assert 0.02 <= (values <= 0.05).mean() <= 0.085


def test_a_real_difference_is_found() -> None:
    found = compare_pairs([unit("a", 0, (20, 20, 20)), unit("b", 0, (8, 8, 8))], [("a", "b")])
    entry = row(found, scope="mean_training", metric="balanced_accuracy")
    assert entry["difference"] == pytest.approx(0.6)
    assert entry["low"] > 0.3  # type: ignore[operator]
    assert 1e-5 <= entry["p"] < 1 / 2001  # type: ignore[operator]


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"pairs": [("fedavg", "centralized")]}, "no model 'centralized'.*Did you mean 'centralised'"),
        ({"metrics": ["macro_f2"]}, "no metric 'macro_f2'.*Did you mean 'macro_f1'"),
        ({"scopes": ["mean_trainin"]}, "Did you mean 'mean_training'"),
    ],
)
def test_unknown_names_are_refused(keys: dict[str, list[str]], match: str) -> None:
    with pytest.raises(DataError, match=match):
        compare_pairs(study(), **keys, resamples=10)  # type: ignore[arg-type]


def test_only_seeds_that_both_have_are_compared() -> None:
    units = [unit("a", 0, (20, 20, 20)), unit("a", 1, (10, 10, 10)), unit("b", 1, (8, 8, 8))]
    entry = row(compare_pairs(units, [("a", "b")], resamples=50), scope="lyon", metric="balanced_accuracy")
    assert (entry["difference"], entry["seeds"]) == (pytest.approx(0.1), 1)
    with pytest.raises(DataError, match="no seed in common"):
        compare_pairs([units[0], units[2]], [("a", "b")], resamples=10)
