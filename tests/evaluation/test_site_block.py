from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from morphfed.evaluation.bootstrap import proportion_interval
from morphfed.evaluation.metrics import METRICS
from morphfed.evaluation.predictions import Predictions
from morphfed.evaluation.site import adaptation, calibration_error, evaluate_site

CLASSES = ("neutrophil", "monocyte", "basophil")


def make(
    n: int = 120, present: int = 3, patients: int | None = None, strength: float = 1.0, seed: int = 0
) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, present, n)
    raw = rng.dirichlet(np.ones(3), n)
    raw[np.arange(n), labels] += strength
    ids = np.char.mod("cells/%04d.jpg", np.arange(n))
    clusters = ids if patients is None else np.char.mod("p%d", rng.integers(0, patients, n))
    raw /= raw.sum(axis=1, keepdims=True)
    return Predictions(CLASSES, ids, labels, raw, clusters, "image" if patients is None else "patient")


def test_block_has_the_documented_keys_and_is_json() -> None:
    block = evaluate_site(make(), role="held_out", resamples=200)
    keys = "role n clusters cluster_unit classes_present metrics masked per_class confusion calibration"
    assert list(block) == [*keys.split(), "risk_coverage", "errors", "notes"]
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    head = (block["role"], block["n"], block["clusters"], block["cluster_unit"])
    assert head == ("held_out", 120, 120, "image")
    assert tuple(block["metrics"]) == METRICS
    for value in block["metrics"].values():
        assert value["low"] <= value["value"] <= value["high"]


def test_numbers_agree_with_scikit_learn() -> None:
    p = make(strength=0.3)
    block = evaluate_site(p, role="train", resamples=50)
    recall = recall_score(p.labels, p.predicted, average=None)
    assert [block["per_class"][c]["recall"] for c in CLASSES] == pytest.approx(recall)
    assert block["metrics"]["balanced_accuracy"]["value"] == pytest.approx(recall.mean())
    assert block["metrics"]["macro_f1"]["value"] == pytest.approx(f1_score(p.labels, p.predicted, average="macro"))
    assert [sum(row) for row in block["confusion"]] == [block["per_class"][c]["n"] for c in CLASSES]
    low, high = proportion_interval(recall[0], block["per_class"]["neutrophil"]["n"])
    assert (block["per_class"]["neutrophil"]["low"], block["per_class"]["neutrophil"]["high"]) == (low, high)


def test_same_seed_same_block_in_any_order_of_rows() -> None:
    p = make(strength=0.3)
    back = np.arange(len(p))[::-1]
    turned = Predictions(CLASSES, p.ids[back], p.labels[back], p.probabilities[back], p.clusters[back], "image")
    first = evaluate_site(p, role="train", resamples=100)
    assert evaluate_site(p, role="train", resamples=100) == first
    other = evaluate_site(turned, role="train", resamples=100)
    assert other["errors"] == first["errors"]
    for name in METRICS:
        assert other["metrics"][name] == pytest.approx(first["metrics"][name]), name
    assert evaluate_site(p, role="train", resamples=100, seed=1)["metrics"] != first["metrics"]


def test_absent_classes_give_nulls_and_a_masked_block() -> None:
    p = make(present=2, strength=0.3)
    block = evaluate_site(p, role="held_out", resamples=100)
    assert block["classes_present"] == ["neutrophil", "monocyte"]
    basophil = block["per_class"]["basophil"]
    assert basophil == {
        "n": 0,
        "recall": None,
        "low": None,
        "high": None,
        "precision": 0.0,  # it was predicted, always wrongly
        "f1": None,
        "auroc": None,
    }
    masked = block["masked"]["metrics"]
    guess = p.probabilities[:, :2].argmax(axis=1)
    expected = recall_score(p.labels, guess, average="macro")
    assert masked["balanced_accuracy"]["value"] == pytest.approx(expected)
    assert masked["balanced_accuracy"]["value"] > block["metrics"]["balanced_accuracy"]["value"]
    assert evaluate_site(make(), role="train", resamples=10)["masked"] is None


def test_one_class_has_no_auroc() -> None:
    block = evaluate_site(make(present=1, strength=0.3), role="train", resamples=100)
    assert block["metrics"]["auroc"] == {"value": None, "low": None, "high": None}
    assert block["metrics"]["balanced_accuracy"]["value"] is not None
    assert json.dumps(block, allow_nan=False)


def test_an_empty_site_is_said_to_be_empty() -> None:
    empty = Predictions(CLASSES, [], [], np.zeros((0, 3)), [], "patient")
    block = evaluate_site(empty, role="train")
    assert (block["n"], block["clusters"], block["masked"], block["errors"]) == (0, 0, None, [])
    assert all(v == {"value": None, "low": None, "high": None} for v in block["metrics"].values())
    assert block["notes"] == ["No test images: nothing can be computed."]


def test_mistakes_are_listed_surest_first() -> None:
    p = make(strength=0.1)
    errors = evaluate_site(p, role="train", resamples=10, errors=5)["errors"]
    wrong = [
        (-float(row.max()), str(i), CLASSES[t], CLASSES[row.argmax()])
        for i, t, row in zip(p.ids, p.labels, p.probabilities, strict=True)
        if row.argmax() != t
    ]
    expected = [
        {"path": i, "truth": truth, "predicted": guess, "confidence": -sure}
        for sure, i, truth, guess in sorted(wrong)[:5]
    ]
    assert len(wrong) > 5
    assert errors == expected


def per_class(p: Predictions, **keys: Any) -> dict[str, Any]:
    return dict(evaluate_site(p, role="train", resamples=1000, **keys)["per_class"]["neutrophil"])


def test_recall_of_few_patients_is_less_certain_than_of_as_many_images() -> None:
    # Eight patients of ten neutrophils; in half of them every cell is missed: 8 observations, not 80.
    patients = np.repeat(np.arange(8), 10)
    guess = np.where(patients % 2 == 0, 0, 1)
    ids = np.char.mod("%03d", np.arange(80))
    labels = np.zeros(80, dtype=np.int64)
    clustered = Predictions(CLASSES, ids, labels, np.eye(3)[guess], np.char.mod("p%d", patients), "patient")
    plain = Predictions(CLASSES, ids, labels, np.eye(3)[guess], ids, "image")
    low, high = proportion_interval(0.5, 80)
    assert (per_class(plain)["low"], per_class(plain)["high"]) == (low, high)
    # Variance of the mean of 8 coin-like patients: 1/4/8, so 8 effective images.
    low, high = proportion_interval(0.5, 8)
    assert per_class(clustered)["low"] == pytest.approx(low, abs=0.02)
    assert per_class(clustered)["high"] == pytest.approx(high, abs=0.02)
    right = Predictions(CLASSES, ids, labels, np.eye(3)[labels], np.char.mod("p%d", patients), "patient")
    assert per_class(right)["low"] == pytest.approx(proportion_interval(1.0, 8)[0])


def test_notes_name_rare_classes_one_patient_and_no_mistake() -> None:
    p = make(n=14, patients=1, strength=5.0)
    block = evaluate_site(p, role="train", resamples=50)
    assert block["metrics"]["accuracy"] == {"value": 1.0, "low": None, "high": None}
    counts = np.bincount(p.labels, minlength=3)
    listed = [f"{c} ({n})" for c, n in zip(CLASSES, counts, strict=True) if n < 10]
    assert all(name in block["notes"][0] for name in listed)
    assert "one patient" in block["notes"][1]
    assert "No mistake among 14" in block["notes"][2]


def test_interval_of_the_calibration_error_reaches_zero_where_noise_explains_it() -> None:
    # Confidence .8 everywhere, 78 of 100 right: |.8 − .78| is half a standard error of .04 from nothing.
    ids = np.char.mod("%03d", np.arange(100))
    chosen = np.tile([0.8, 0.2], (100, 1))
    labels = np.where(np.arange(100) < 78, 0, 1)
    p = Predictions(("a", "b"), ids, labels, chosen, ids, "image")
    found = evaluate_site(p, role="train", resamples=1000)["metrics"]["ece"]
    assert found["value"] == pytest.approx(0.02, abs=1e-6)
    assert found["low"] == 0.0  # a plain percentile of absolute values never is
    assert 0.02 <= found["high"] <= 0.09


def test_the_calibration_error_before_has_the_interval_of_the_block() -> None:
    p = make(strength=0.3)
    assert calibration_error(p, resamples=200) == evaluate_site(p, role="train", resamples=200)["metrics"]["ece"]


def test_another_temperature_changes_confidence_and_nothing_else() -> None:
    p = make(strength=0.3)
    softer = p.tempered(2.0)
    roots = np.sqrt(p.probabilities.astype(np.float64))
    np.testing.assert_allclose(softer.probabilities, roots / roots.sum(axis=1, keepdims=True), rtol=1e-6)
    assert (softer.predicted == p.predicted).all()
    assert p.tempered(1.0) is p


def test_adaptation_is_compared_on_the_same_resamples() -> None:
    plain, adapted = make(strength=0.3), make(strength=0.6)
    block = adaptation(plain, adapted, how="norms", metric="balanced_accuracy", resamples=300)
    recalls = [recall_score(p.labels, p.predicted, average="macro") for p in (plain, adapted)]
    assert block["metrics"]["balanced_accuracy"]["value"] == pytest.approx(recalls[1])
    change = block["difference"]
    assert change["value"] == pytest.approx(recalls[1] - recalls[0])
    assert change["low"] < change["value"] < change["high"]
    same = adaptation(plain, plain, how="norms", metric="balanced_accuracy", resamples=300)
    assert same["difference"] == {"metric": "balanced_accuracy", "value": 0.0, "low": 0.0, "high": 0.0}
