"""What a site tells in place of predictions gives the numbers that the predictions would."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from morphfed.core.errors import DataError
from morphfed.evaluation import released
from morphfed.evaluation.cases import Cases, CaseScores, evaluate_cases
from morphfed.evaluation.compare import compare_pairs, default_pairs, summarise
from morphfed.evaluation.predictions import Predictions
from morphfed.evaluation.scores import MASKED, Scores, UnitPredictions
from morphfed.evaluation.site import evaluate_site
from morphfed.evaluation.vectored import Vectored
from morphfed.privacy.egress import Findings

CLASSES = ("a", "b", "c")
ROLES: Any = {"north": "train", "south": "train", "west": "held_out"}
B = 60


def predictions(site: str, seed: int, *, classes: int = 3, n: int = 40) -> Predictions:
    """Made up; at one site a class is missing."""
    truth, said = np.random.default_rng(ord(site[0])), np.random.default_rng((seed, ord(site[0])))
    labels = truth.integers(0, classes, size=n)
    scores = said.normal(size=(n, 3)) + 1.5 * np.eye(3)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    ids = np.array([f"{site}/{i:03d}" for i in range(n)])
    clusters = np.array([f"p{i // 2}" for i in range(n)])
    return Predictions(CLASSES, ids, labels, probabilities, clusters, "patient")


def unit(model: str, seed: int, draw: int) -> UnitPredictions:
    sites = {site: predictions(site, draw, classes=2 if site == "south" else 3) for site in ROLES}
    return UnitPredictions(model, model, model, seed, ("north", "south"), sites, ROLES)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


@pytest.mark.parametrize("site", ["north", "south"])
def test_a_block_is_the_same_after_its_words_were_taken_out_and_put_back(site: str) -> None:
    block = evaluate_site(predictions(site, 1, classes=2 if site == "south" else 3), role="train", resamples=B)
    told = released.tell_classes(block)
    assert Findings(released.places_of_classes(CLASSES, ()), {}, "").objection(told, {}) == ""
    again = released.retell_classes(
        through_json(told), CLASSES, role="train", cluster_unit="patient", how="none", metric="balanced_accuracy"
    )
    assert again == {**block, "errors": []}
    assert list(again["per_class"]) == list(CLASSES)


@pytest.mark.parametrize("n", [0, 1, 12])
def test_notes_are_made_of_the_numbers_alone(n: int) -> None:
    p = predictions("north", 2, n=n)
    block = evaluate_site(p, role="held_out", resamples=B)
    told = through_json(released.tell_classes(block))
    kept = {"role": "held_out", "cluster_unit": "patient", "how": "none", "metric": "balanced_accuracy"}
    assert released.retell_classes(told, CLASSES, **kept)["notes"] == block["notes"]
    assert block["notes"]


def vectored(u: UnitPredictions) -> UnitPredictions:
    """As each site would tell it, by itself."""
    found: dict[str, Any] = {}
    metrics = tuple(dict.fromkeys((*Scores([u], resamples=0).metrics, *MASKED)))
    for site, p in u.sites.items():
        assert isinstance(p, Predictions)
        alone = UnitPredictions(u.arm, u.model, u.algorithm, u.seed, u.trained_on, {site: p}, {site: ROLES[site]})
        scores = Scores([alone], metrics=metrics, resamples=B)
        vectors = {m: v for m in metrics if (v := scores.vector(u.model, site, m, u.seed)) is not None}
        found[site] = Vectored(len(p), 20, "patient", vectors, classes=p.classes, present=p.present)
    return UnitPredictions(u.arm, u.model, u.algorithm, u.seed, u.trained_on, found, ROLES)


def test_means_intervals_and_comparisons_are_those_of_the_predictions() -> None:
    units = [unit("fedavg", 0, 1), unit("fedavg", 1, 2), unit("fedprox", 0, 3), unit("fedprox", 1, 4)]
    told = [vectored(u) for u in units]
    with_images, without = Scores(units, resamples=B), Scores(told, resamples=B)
    assert without.metrics == with_images.metrics  # masked ones too: a class is missing at a site
    assert "balanced_accuracy_masked" in without.metrics
    assert summarise(without) == summarise(with_images)
    pairs = default_pairs(units)
    assert compare_pairs(without, pairs) == compare_pairs(with_images, pairs)


def test_a_site_that_told_nothing_leaves_its_own_scope_and_the_means_empty() -> None:
    whole, partial = vectored(unit("fedavg", 0, 1)), vectored(unit("fedprox", 0, 3))
    lacking = {site: p for site, p in partial.sites.items() if site != "south"}
    partial = UnitPredictions("fedprox", "fedprox", "fedprox", 0, ("north", "south"), lacking, ROLES)
    rows = {(row["model"], row["scope"]) for row in summarise(Scores([partial, whole], resamples=B))}
    assert {("fedprox", "north"), ("fedprox", "west"), ("fedavg", "south"), ("fedavg", "mean_training")} <= rows
    assert not rows & {("fedprox", "south"), ("fedprox", "mean_training")}
    units = [unit("fedavg", 0, 1), unit("fedprox", 0, 3)]
    gone = {site: p for site, p in units[1].sites.items() if site != "south"}
    units[1] = UnitPredictions("fedprox", "fedprox", "fedprox", 0, ("north", "south"), gone, ROLES)
    with pytest.raises(DataError, match="only one has south"):  # of predictions that is a defect
        Scores(units, resamples=B)


def test_masks_are_told_like_classes() -> None:
    random = np.random.default_rng(5)
    truth, drawn = (random.integers(0, 3, size=(9, 16, 16)).astype(np.uint8) for _ in range(2))
    truth[0][truth[0] == 2] = 0
    drawn[3][drawn[3] == 1] = 0
    ids = np.array([f"i{k}" for k in range(9)])
    structures = ("nucleus", "cytoplasm")
    kept: dict[str, Any] = {"structures": structures, "ids": ids, "clusters": ids, "cluster_unit": "image"}
    cases = Cases.of(truth, drawn, um_per_px=np.full(9, np.nan), **kept)
    block = evaluate_cases(cases, role="train", resamples=B)
    assert "times a structure was missed" in " ".join(block["notes"])
    told = released.tell_masks(block)
    assert Findings(released.places_of_masks(structures), {}, "").objection(told, {}) == ""
    again = released.retell_masks(through_json(told), structures, role="train", cluster_unit="image")
    assert again == block
    one = UnitPredictions("fedavg", "fedavg", "fedavg", 0, ("north",), {"north": cases}, {"north": "train"})
    scores = CaseScores([one], resamples=B)
    vectors = {m: v for m in scores.metrics if (v := scores.vector("fedavg", "north", m, 0)) is not None}
    given = Vectored(9, 9, "image", vectors, structures=structures)
    two = UnitPredictions("fedavg", "fedavg", "fedavg", 0, ("north",), {"north": given}, {"north": "train"})
    assert summarise(CaseScores([two], resamples=B)) == summarise(scores)


def test_counts_that_do_not_fit_are_refused() -> None:
    told = released.tell_classes(evaluate_site(predictions("north", 1), role="train", resamples=B))
    kept: dict[str, Any] = {"role": "train", "cluster_unit": "patient", "how": "none", "metric": "balanced_accuracy"}
    with pytest.raises(ValueError, match="does not fit its number of images"):
        released.retell_classes({**told, "n": 41}, CLASSES, **kept)
    with pytest.raises(KeyError, match="metrics"):
        released.retell_classes({k: v for k, v in told.items() if k != "metrics"}, CLASSES, **kept)
