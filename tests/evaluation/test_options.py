"""Differences of one model with an option and without it: limits, pairing, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from morphfed.core.errors import DataError
from morphfed.evaluation.compare import compare_pairs
from morphfed.evaluation.options import gains
from morphfed.evaluation.predictions import Predictions
from morphfed.evaluation.scores import UnitPredictions

CLASSES = ("a", "b", "c")


def predicted(seed: int, n: int = 60, sure: float = 1.0) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), labels] += sure
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ids = np.array([str(i) for i in range(n)])
    return Predictions(CLASSES, ids, labels, p, ids, "image")


def unit(seed: int, sure: float, model: str = "fedavg", add: int = 0) -> UnitPredictions:
    sites = {"kampala": predicted(10 * seed + add, sure=sure), "quito": predicted(10 * seed + add + 1, 45, sure)}
    return UnitPredictions(model, model, model, seed, ("kampala",), sites, {"kampala": "train", "quito": "held_out"})


def test_no_change_is_no_difference() -> None:
    units = [unit(s, 1.0) for s in (0, 1)]
    for entry in gains("views", units, units, ("balanced_accuracy", "ece"), resamples=100):
        assert (entry["difference"], entry["low"], entry["high"]) == (0, 0, 0)
        assert entry["p"] == 1
        assert entry["with"] == entry["without"]


def test_the_same_as_a_comparison_of_two_arms() -> None:
    """An option is an arm of its own whose images are the same."""
    plain = [unit(s, 1.0) for s in (0, 1)]
    better = [unit(s, 2.0, add=5) for s in (0, 1)]
    as_arm = [replace(u, arm="other", model="other") for u in better]
    expected = compare_pairs([*plain, *as_arm], [("other", "fedavg")], resamples=200)
    found = gains("adapt", better, plain, ("balanced_accuracy", "macro_f1"), resamples=200)
    wanted = {(e["metric"], e["scope"]): e for e in expected}
    assert len(found) == 8
    for entry in found:
        other = wanted[entry["metric"], entry["scope"]]
        keys = ("difference", "low", "high", "p", "seeds", "clusters", "cluster_unit", "resamples")
        assert [entry[k] for k in keys] == [other[k] for k in keys]
    assert next(e for e in found if e["scope"] == "kampala")["low"] > 0


def test_holm_counts_the_models_of_one_metric_and_scope() -> None:
    models = ("fedavg", "fedprox", "moon")
    plain = [unit(0, 1.0, m) for m in models]
    better = [unit(0, 1.6, m, add=k + 1) for k, m in enumerate(models)]
    found = [e for e in gains("views", better, plain, ("accuracy",), resamples=100) if e["scope"] == "quito"]
    least = min(found, key=lambda e: e["p"])
    assert least["p_holm"] == pytest.approx(min(1.0, 3 * least["p"]))


def test_other_images_or_models_are_refused() -> None:
    plain = [unit(0, 1.0)]
    other = replace(plain[0], sites={"kampala": predicted(0, 30), "quito": plain[0].sites["quito"]})
    with pytest.raises(DataError, match="other images at 'kampala'"):
        gains("views", [other], plain, ("accuracy",))
    with pytest.raises(DataError, match="other sites"):
        gains("views", [replace(other, sites={"quito": plain[0].sites["quito"]})], plain, ("accuracy",))
    with pytest.raises(DataError, match=r"moon \(seed 0\)"):
        gains("views", [*plain, unit(0, 1.0, "moon")], plain, ("accuracy",))
    assert gains("views", [], [], ("accuracy",)) == []
