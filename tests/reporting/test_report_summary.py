"""The first words must say what the numbers say: constructed results, every direction."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphfed.reporting.results import Results
from morphfed.reporting.summary import Summary, summarise

UP = {"difference": 0.06, "low": 0.02, "high": 0.10, "p": 0.001, "p_holm": 0.004}
DOWN = {"difference": -0.06, "low": -0.10, "high": -0.02, "p": 0.001, "p_holm": 0.004}
FLAT = {"difference": 0.01, "low": -0.03, "high": 0.05, "p": 0.6, "p_holm": 1.0}
CORRECTED_AWAY = {"difference": 0.04, "low": 0.001, "high": 0.08, "p": 0.03, "p_holm": 0.09}
NULL = {"difference": 0.06, "low": None, "high": None, "p": None, "p_holm": None}


def unit(model: str, seed: int, trained_on: list[str], sites: list[str], **more: Any) -> dict[str, Any]:
    tested = {
        s: {
            "n": 100,
            "cluster_unit": "patient",
            "classes_present": ["a", "b"],
            "masked": None,
            "per_class": {"a": {"n": 50}, "b": {"n": 50}},
        }
        for s in sites
    }
    arm = model.partition("/")[0]
    return {
        "arm": arm,
        "algorithm": arm,
        "model": model,
        "seed": seed,
        "trained_on": trained_on,
        "sites": tested,
        **more,
    }


def study(
    comparisons: list[tuple[str, str, str, dict[str, Any]]],
    scores: dict[tuple[str, str], float] | None = None,
    *,
    arms: tuple[str, ...] = ("local", "centralised", "fedavg"),
    training: tuple[str, ...] = ("kampala", "munich"),
    held_out: tuple[str, ...] = ("barcelona",),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> dict[str, Any]:
    sites = [*training, *held_out]
    units = []
    for arm in arms:
        for model in [f"local/{s}" for s in training] if arm == "local" else [arm]:
            home = [model.partition("/")[2]] if "/" in model else list(training)
            units += [unit(model, seed, home, sites) for seed in seeds]
    return {
        "schema": 1,
        "study": {"name": "x", "classes": ["a", "b"], "seeds": list(seeds), "training_sites": list(training),
                  "held_out": list(held_out), "arms": list(arms), "primary_metric": "balanced_accuracy"},
        "data": {"sites": {s: {"cluster_unit": "patient", "classes": {
            "a": {"train": 200, "validation": 30, "test": 50}, "b": {"train": 200, "validation": 30, "test": 50}}}
            for s in sites}},
        "arms": units,
        "summary": [
            {"model": m, "scope": scope, "metric": "balanced_accuracy", "mean": v, "sd": 0.01, "low": v - 0.05,
             "high": v + 0.05, "seeds": len(seeds)} for (m, scope), v in (scores or {}).items()
        ],
        "comparisons": [
            {"a": a, "b": b, "scope": scope, "metric": "balanced_accuracy", **numbers}
            for a, b, scope, numbers in comparisons
        ],
    }  # fmt: skip


def said(results: dict[str, Any]) -> Summary:
    return summarise(Results(results))


def topic(summary: Summary, words: str) -> str:
    found = [f.text for f in summary.findings if words in f.topic]
    assert len(found) == 1, [f.topic for f in summary.findings]
    return found[0]


OWN = "local (own site)"


@pytest.mark.parametrize(
    ("numbers", "headline", "text"),
    [
        (UP, "did better than each site's own model", "FedAvg (+0.060, 0.020 to 0.100) scored clearly higher."),
        (DOWN, "did worse than each site's own model", "FedAvg (−0.060, −0.100 to −0.020) scored clearly lower."),
        (
            FLAT,
            "showed no clear difference from each site's own model",
            "No clear difference for FedAvg (+0.010, −0.030 to 0.050).",
        ),
        (
            CORRECTED_AWAY,
            "showed no clear difference from each site's own model",
            "No clear difference for FedAvg (+0.040, 0.001 to 0.080, but Holm p = 0.090).",
        ),
        (NULL, None, "The difference was not tested for FedAvg."),
    ],
    ids=["up", "down", "flat", "corrected away", "null"],
)
def test_at_home_in_every_direction(numbers: dict[str, Any], headline: str | None, text: str) -> None:
    summary = said(study([("fedavg", OWN, "mean_training", numbers)], {(OWN, "mean_training"): 0.8}))
    finding = topic(summary, "alone, at home")
    assert finding == (
        "A site's own model, tested at home, reaches 0.800 (0.750 to 0.850) on average over the 2 training sites. "
        + text
    )
    if headline:
        assert summary.headline == f"At the training sites, federated training {headline}."
    else:
        assert summary.headline == "No difference between federated training and another arm was tested in this run."


def test_written_the_other_way_round_it_reads_the_same() -> None:
    one = said(study([("fedavg", "centralised", "mean_training", DOWN)]))
    other = said(study([("centralised", "fedavg", "mean_training", UP)]))
    assert one == other
    assert "FedAvg (−0.060, −0.100 to −0.020) scored clearly lower" in topic(one, "Pooled")


@pytest.mark.parametrize("scope", ["barcelona", "mean_held_out"])
def test_held_out_site_against_pooled_data_and_single_models(scope: str) -> None:
    results = study(
        [("fedavg", "centralised", scope, DOWN), ("fedavg", "local (mean)", scope, UP)],
        {("fedavg", scope): 0.7, ("centralised", scope): 0.76, ("local (mean)", scope): 0.64},
    )
    if scope == "mean_held_out":  # the site itself is listed too, as the evaluation does
        results["summary"] += [{**s, "scope": "barcelona"} for s in results["summary"]]
    else:
        results["summary"] += [{**s, "scope": "mean_held_out"} for s in results["summary"]]
    summary = said(results)
    assert summary.headline == (
        "At barcelona, which took no part in training, federated training did better than the average single-site "
        "model and did worse than pooled data."
    )
    text = topic(summary, "took no part")
    assert "FedAvg 0.700 (0.650 to 0.750). Pooled data: 0.760" in text
    assert "FedAvg (−0.060, −0.100 to −0.020) scored clearly lower" in text
    assert (
        "The average single-site model: 0.640 (0.590 to 0.690). FedAvg (+0.060, 0.020 to 0.100) scored clearly higher"
        in text
    )


def test_the_best_single_site_model_at_a_held_out_site_is_never_left_unsaid() -> None:
    scores = {
        (model, scope): value
        for model, value in (("fedavg", 0.68), ("local/kampala", 0.77), ("local/munich", 0.33))
        for scope in ("barcelona", "mean_held_out")
    }
    text = topic(said(study([], scores)), "took no part")
    assert "The best of the 2 single-site models there, kampala's, reached 0.770 (0.720 to 0.820)." in text


def test_no_held_out_site_claims_nothing_about_one() -> None:
    summary = said(study([], held_out=()))
    assert topic(summary, "took no part") == "No site was held out, so this run says nothing about a new site."


def test_arms_that_differ_are_never_lumped_together() -> None:
    arms = ("local", "centralised", "fedavg", "fedprox", "fedbn")
    summary = said(
        study(
            [("fedavg", OWN, "mean_training", UP), ("fedprox", OWN, "mean_training", DOWN),
             ("fedbn", OWN, "mean_training", FLAT)], arms=arms
        )
    )  # fmt: skip
    assert (
        "mixed picture against each site's own model (of 3 arms, 1 better, 1 worse and 1 with no clear"
        in summary.headline
    )
    text = topic(summary, "at home")
    assert "FedAvg (+0.060, 0.020 to 0.100) scored clearly higher" in text
    assert "FedProx (−0.060, −0.100 to −0.020) scored clearly lower" in text
    assert "no clear difference for FedBN (+0.010, −0.030 to 0.050)" in text


def test_elsewhere_averages_the_models_away_from_home() -> None:
    scores = {
        ("local/kampala", "kampala"): 0.9, ("local/kampala", "munich"): 0.4,
        ("local/munich", "kampala"): 0.6, ("local/munich", "munich"): 0.8,
    }  # fmt: skip
    text = topic(said(study([], scores)), "elsewhere")
    assert text == (
        "Away from home, at the other training sites, these models average 0.500 (lowest 0.400, "
        "highest 0.600 of 2 pairs)."
    )


def test_worst_site_and_gap_are_named() -> None:
    scores = {("fedavg", "kampala"): 0.71, ("fedavg", "munich"): 0.88, ("fedavg", "gap_training"): 0.17}
    text = topic(said(study([], scores)), "Worst")
    assert "with FedAvg it is kampala (0.710; gap to the best, munich: 0.170, 0.120 to 0.220)" in text


def test_no_federated_arm() -> None:
    summary = said(study([], arms=("local", "centralised")))
    assert "no federated arm" in summary.headline
    assert "Local (own site) and Centralised" in summary.headline


# ── cautions ────────────────────────────────────────────────────────────────────────────────────────────────
def cautions(results: dict[str, Any]) -> str:
    return " | ".join(said(results).cautions)


def test_clean_study_has_no_cautions() -> None:
    assert cautions(study([], {("fedavg", "mean_training"): 0.9})) == ""


def test_unknown_patients() -> None:
    results = study([])
    results["data"]["sites"]["munich"]["cluster_unit"] = "image"
    assert "Patient ids are unknown at munich: intervals there resample images." in cautions(results)
    for site in results["data"]["sites"].values():
        site["cluster_unit"] = "image"
    assert "Patient ids are unknown at any site" in cautions(results)


def test_known_lesions_are_no_patients() -> None:
    results = study([])
    results["data"]["sites"]["munich"]["cluster_unit"] = "lesion"
    assert "Lesions but no patients are known at munich" in cautions(results)


def test_a_split_that_leaks_is_said_with_its_numbers() -> None:
    results = study([])
    results["data"]["sites"]["kampala"]["leaks"] = [
        {"kind": "lesion", "owners": 384, "seen": 419, "images": 598, "part": "test"},
        {"kind": "lesion", "owners": 193, "seen": 200, "images": 298, "part": "validation"},
    ]
    assert "419 of 598 at kampala (384 lesions). Scores there are too high" in cautions(results)


def test_one_seed() -> None:
    assert "trained with one seed" in cautions(study([], seeds=(0,)))
    assert "seed" not in cautions(study([], seeds=(0, 1)))


@pytest.mark.parametrize(("sites", "told"), [(("a", "b"), True), (("a", "b", "c"), False)])
def test_median_of_two_sites_is_a_mean(sites: tuple[str, ...], told: bool) -> None:
    with_median = study([], arms=("local", "fedavg", "fedmedian"), training=sites)
    assert ("a coordinate-wise median equals the unweighted mean: here, FedMedian" in cautions(with_median)) is told
    assert "median" not in cautions(study([], arms=("local", "fedavg"), training=sites))


def test_small_classes_are_named_smallest_first() -> None:
    results = study([])
    results["data"]["sites"]["munich"]["classes"]["a"]["test"] = 12
    results["data"]["sites"]["kampala"]["classes"]["b"]["test"] = 3
    assert "Fewer than 20 test images: b at kampala (3) and a at munich (12)." in cautions(results)
    results["data"]["sites"]["kampala"]["classes"]["b"]["test"] = 0  # absent is not small
    assert "Fewer than 20 test images: a at munich (12)." in cautions(results)


def test_chance_level() -> None:
    low = study([], {("fedavg", "mean_training"): 0.54, ("centralised", "mean_training"): 0.7})
    assert "Naming one class always gives 0.500; not clearly above that over the training sites: FedAvg." in cautions(
        low
    )


def test_missing_unit_rejected_upload_and_check() -> None:
    results = study([])
    dropped = results["arms"].pop()
    results["arms"][0]["rejected"] = [{"round": 1, "site": "munich", "reason": "NaN"}]
    results["data"]["check"] = {"findings": [{"level": "error"}, {"level": "warning"}, {"level": "warning"}]}
    text = cautions(results)
    assert f"1 of the 12 planned training runs has no results ({dropped['model']}, seed {dropped['seed']})" in text
    assert "1 upload of a site was rejected" in text
    assert "The data check left 1 error and 2 warnings." in text


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-0.5, 0.5, allow_nan=False),
    width=st.floats(0, 0.4, allow_nan=False),
    p_holm=st.one_of(st.none(), st.floats(0, 1, allow_nan=False)),
    turned=st.booleans(),
)
def test_wording_follows_the_numbers(low: float, width: float, p_holm: float | None, turned: bool) -> None:
    high = low + width
    numbers = {"difference": (low + high) / 2, "low": low, "high": high, "p": p_holm, "p_holm": p_holm}
    expected = "no clear difference"
    if p_holm is None or p_holm < 0.05:
        expected = "scored clearly higher" if low > 0 else "scored clearly lower" if high < 0 else expected
    pair = ("fedavg", OWN)
    if turned:
        numbers |= {"difference": -(low + high) / 2, "low": -high, "high": -low}
        pair = (OWN, "fedavg")
    text = topic(said(study([(*pair, "mean_training", copy.deepcopy(numbers))])), "at home").lower()
    phrases = ["no clear difference", "scored clearly higher", "scored clearly lower"]
    assert [p for p in phrases if p in text] == [expected]
