"""Mean drops at communication: worked by hand, and with numpy and scipy as they stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from morphfed.evaluation.retrogress import communications, drop, summarise_retrogress

SITES, IMAGES = ["east", "west"], {"east": 20, "west": 30}


def unit(seed: int, scores: dict[str, list[tuple[float, float]]], *, model: str = "fedavg", rounds: int = 4) -> Any:
    """A unit in which site → (before, after) of balanced accuracy by round; the loss is one less the score."""
    history = []
    for r in range(rounds):
        sites: dict[str, Any] = {}
        for site, pairs in scores.items():
            if r < len(pairs):
                before, after = pairs[r]
                sites[site] = {
                    "before": {"balanced_accuracy": before, "loss": 1 - before},
                    "validation": {"balanced_accuracy": after, "loss": 1 - after},
                }
        history.append({"round": r + 1, "seconds": 1.0, "sites": sites})
    return {"arm": model, "model": model, "seed": seed, "rounds": rounds, "history": history}


def rows(found: list[dict[str, Any]], metric: str = "balanced_accuracy") -> dict[str, dict[str, Any]]:
    return {e["scope"]: e for e in found if e["metric"] == metric}


def test_worked_by_hand() -> None:
    """East loses .4, .2, .2, 0 (mean .2; late .1); west gains .1 and loses .3, .1, .1 (mean .1; late .1)."""
    one = unit(
        0,
        {
            "east": [(0.9, 0.5), (0.8, 0.6), (0.8, 0.6), (0.7, 0.7)],
            "west": [(0.5, 0.6), (0.8, 0.5), (0.7, 0.6), (0.7, 0.6)],
        },
    )
    found = rows(summarise_retrogress([one], SITES, IMAGES))
    assert found["east"]["mean"] == pytest.approx(0.2)
    assert found["west"]["mean"] == pytest.approx(0.1)
    assert found["mean_training"]["mean"] == pytest.approx(0.15)
    assert found["east"]["late"]["mean"] == pytest.approx(0.1)
    assert found["west"]["late"]["mean"] == pytest.approx(0.1)
    assert (found["east"]["hurt"], found["east"]["helped"]) == (0.75, 0.0)
    assert (found["west"]["hurt"], found["west"]["helped"]) == (0.75, 0.25)
    assert (found["mean_training"]["hurt"], found["mean_training"]["helped"]) == (6 / 8, 1 / 8)
    assert [found[s]["communications"] for s in ("east", "west", "mean_training")] == [4, 4, 8]
    assert [found[s]["images"] for s in ("east", "west", "mean_training")] == [20, 30, 50]
    for entry in found.values():
        assert (entry["sd"], entry["low"], entry["high"], entry["seeds"]) == (None, None, None, 1)


def test_a_loss_is_lost_by_rising() -> None:
    assert drop("loss", 0.2, 0.5) == pytest.approx(0.3)
    assert drop("macro_f1", 0.5, 0.2) == pytest.approx(0.3)
    found = summarise_retrogress([unit(0, {"east": [(0.9, 0.5)] * 4})], ["east"], IMAGES)
    assert rows(found, "loss")["east"]["mean"] == pytest.approx(rows(found)["east"]["mean"]) == pytest.approx(0.4)


def test_interval_is_students_t_over_the_seeds_means() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random((3, 2, 4)), rng.random((3, 2, 4))  # seeds, sites, rounds
    units = [
        unit(s, {site: list(zip(before[s, k], after[s, k], strict=True)) for k, site in enumerate(SITES)})
        for s in range(3)
    ]
    found = rows(summarise_retrogress(units, SITES, IMAGES))
    drops = before - after
    for scope, means in (
        ("east", drops[:, 0].mean(axis=1)),
        ("west", drops[:, 1].mean(axis=1)),
        ("mean_training", drops.mean(axis=(1, 2))),
    ):
        low, high = stats.t.interval(0.95, 2, loc=means.mean(), scale=stats.sem(means))
        entry = found[scope]
        assert entry["mean"] == pytest.approx(means.mean())
        assert entry["sd"] == pytest.approx(means.std(ddof=1))
        assert (entry["low"], entry["high"]) == pytest.approx((low, high))
        assert entry["seeds"] == 3
    late = drops[:, 0, 2:].mean(axis=1)
    assert found["east"]["late"]["mean"] == pytest.approx(late.mean())
    assert found["east"]["late"]["sd"] == pytest.approx(late.std(ddof=1))


def test_the_interval_covers_the_truth_where_rounds_depend_on_each_other() -> None:
    """Drops of a training share a common part: a resample of rounds would miss the truth most of the time."""
    rng = np.random.default_rng(1)
    inside = inside_by_rounds = 0
    for _ in range(400):
        drops = 0.05 + rng.normal(0, 0.03, (4, 1)) + rng.normal(0, 0.01, (4, 10))
        units = [unit(s, {"east": [(0.5 + d, 0.5) for d in drops[s]]}, rounds=10) for s in range(4)]
        entry = rows(summarise_retrogress(units, ["east"], IMAGES))["east"]
        inside += entry["low"] <= 0.05 <= entry["high"]
        pooled = drops[rng.integers(0, 4, (200, 40)), rng.integers(0, 10, (200, 40))].mean(axis=1)
        low, high = np.quantile(pooled, [0.025, 0.975])
        inside_by_rounds += low <= 0.05 <= high
    assert 0.92 <= inside / 400 <= 0.98
    assert inside_by_rounds / 400 < 0.6


def test_odd_rounds_and_a_single_round_have_a_second_half() -> None:
    scores = {"east": [(0.6, 0.5), (0.7, 0.5), (0.8, 0.5)]}
    assert [c.late for c in communications(unit(0, scores, rounds=3), "east", "balanced_accuracy")] == [
        False,
        True,
        True,
    ]
    single = rows(summarise_retrogress([unit(0, {"east": [(0.6, 0.5)]}, rounds=1)], ["east"], IMAGES))
    assert single["east"]["late"]["mean"] == single["east"]["mean"]


def test_what_was_not_recorded_is_left_out_and_counted() -> None:
    part = unit(0, {"east": [(0.9, 0.5)] * 2, "west": [(0.9, 0.5)] * 4})
    found = rows(summarise_retrogress([part], SITES, IMAGES))
    assert found["east"]["communications"] == 2
    assert found["east"]["late"]["mean"] is None
    assert found["mean_training"]["late"] == {"mean": None, "sd": None, "low": None, "high": None, "seeds": 0}
    old = unit(0, {"east": [(0.9, 0.5)] * 4})
    for entry in old["history"]:
        del entry["sites"]["east"]["before"]
    assert summarise_retrogress([old], SITES, IMAGES) == []
    assert summarise_retrogress([{"arm": "a", "model": "a", "seed": 0, "rounds": 1}], SITES, IMAGES) == []


def test_a_seed_that_lacks_a_site_is_not_in_the_mean_over_sites() -> None:
    both = unit(0, {"east": [(0.9, 0.5)] * 4, "west": [(0.7, 0.5)] * 4})
    one = unit(1, {"east": [(0.6, 0.5)] * 4})
    found = rows(summarise_retrogress([both, one], SITES, IMAGES))
    assert found["mean_training"]["seeds"] == 1
    assert found["mean_training"]["mean"] == pytest.approx(0.3)
    assert found["east"]["seeds"] == 2
    assert found["east"]["mean"] == pytest.approx(0.25)


def test_folds_of_one_seed_are_one_number() -> None:
    """The same arm and seed trained in two folds: east is in both, west in one."""
    first = unit(0, {"east": [(0.9, 0.5)] * 4})
    second = unit(0, {"east": [(0.7, 0.5)] * 4, "west": [(0.6, 0.5)] * 4})
    found = rows(summarise_retrogress([first, second], SITES, IMAGES))
    assert found["east"]["mean"] == pytest.approx(0.3)
    assert (found["east"]["seeds"], found["east"]["communications"]) == (1, 8)


def test_rounding_hurts_nobody() -> None:
    found = rows(summarise_retrogress([unit(0, {"east": [(0.5, 0.5 - 1e-12)] * 4})], ["east"], IMAGES))
    assert found["east"]["hurt"] == found["east"]["helped"] == 0.0
