from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from morphfed.core.errors import DataError
from morphfed.evaluation.compare import compare_pairs, summarise
from morphfed.evaluation.predictions import Predictions
from morphfed.evaluation.scores import Scores, UnitPredictions
from morphfed.evaluation.site import evaluate_site

CLASSES = ("neutrophil", "monocyte", "basophil")


def predictions(site: str, *, present: int = 3, n: int = 30, model: int = 0, unit: str = "image") -> Predictions:
    labels = np.arange(n) % present
    raw = np.random.default_rng(model).dirichlet(np.ones(3), n)
    raw[np.arange(n), labels] += 0.5
    ids = np.char.mod(f"{site}/%03d", np.arange(n))
    clusters = ids if unit == "image" else np.char.mod("p%d", np.arange(n) // 3)
    return Predictions(CLASSES, ids, labels, raw / raw.sum(axis=1, keepdims=True), clusters, unit)  # type: ignore[arg-type]


def make(model: str = "fedavg", seed: int = 0, **changes: Any) -> UnitPredictions:
    sites = {"lyon": predictions("lyon"), "oslo": predictions("oslo", present=2)} | changes.pop("sites", {})
    values = {
        "arm": model,
        "model": model,
        "algorithm": "fedavg",
        "seed": seed,
        "trained_on": ("lyon",),
        "sites": sites,
        "roles": {"lyon": "train", "oslo": "held_out"},
    }
    return UnitPredictions(**(values | changes))


def test_masked_metrics_appear_where_a_site_lacks_classes() -> None:
    scores = Scores([make()], resamples=100)
    rows = {(r["scope"], r["metric"]): r for r in summarise(scores)}
    block = evaluate_site(make().sites["oslo"], role="held_out", resamples=100)
    for name in ("balanced_accuracy", "macro_f1"):
        assert rows["oslo", f"{name}_masked"]["mean"] == block["masked"]["metrics"][name]["value"]
        assert rows["oslo", name]["mean"] == block["metrics"][name]["value"]
        assert rows["lyon", f"{name}_masked"]["mean"] == rows["lyon", name]["mean"]
    # The same images give the same resamples, so one seed's summary is its block.
    assert rows["oslo", "balanced_accuracy"]["low"] == block["metrics"]["balanced_accuracy"]["low"]
    assert "balanced_accuracy_masked" in {e["metric"] for e in compare_pairs([make(), make("b")], resamples=20)}
    full = {"oslo": predictions("oslo")}
    assert "balanced_accuracy_masked" not in Scores([make(sites=full)], resamples=10).metrics


def test_one_training_site_has_neither_a_worst_site_nor_a_gap() -> None:
    assert Scores([make()], resamples=10).scopes == ("lyon", "oslo", "mean_training", "mean_held_out")
    alone = make(sites={}, roles={"lyon": "train", "oslo": "train"})
    assert Scores([alone], resamples=10).scopes[2:] == ("mean_training", "worst_training", "gap_training")


def test_clusters_of_a_scope_say_what_they_are() -> None:
    scores = Scores(
        [make(sites={"lyon": predictions("lyon", unit="patient")}, roles={"lyon": "train", "oslo": "train"})],
        resamples=10,
    )
    assert scores.clusters_of("lyon") == (10, "patient")
    assert scores.clusters_of("oslo") == (30, "image")
    assert scores.clusters_of("mean_training") == (40, "mixed")


def test_a_site_without_images_makes_its_means_null_not_the_others() -> None:
    empty = Predictions(CLASSES, [], [], np.zeros((0, 3)), [], "image")
    units = [make(m, sites={"oslo": empty}, roles={"lyon": "train", "oslo": "train"}) for m in ("fedavg", "fedprox")]
    rows = {(r["scope"], r["metric"]): r for r in summarise(units, resamples=20) if r["model"] == "fedavg"}
    assert rows["lyon", "accuracy"]["mean"] is not None
    for scope in ("oslo", "mean_training"):
        assert [rows[scope, "accuracy"][k] for k in ("mean", "low", "high")] == [None, None, None]
    assert {e["scope"] for e in compare_pairs(units, resamples=20)} == {"lyon"}


def test_each_arm_of_local_models_has_its_own_diagonal() -> None:
    units = [make(f"{arm}/lyon", arm=arm, roles={"lyon": "train", "oslo": "train"}) for arm in ("local", "local-gn")]
    scores = Scores(units, resamples=10)
    assert scores.all_models[2:] == (
        "local (own site)",
        "local (mean)",
        "local-gn (own site)",
        "local-gn (mean)",
    )
    assert scores.arm("local-gn (mean)") == "local-gn"


def other_images() -> dict[str, Predictions]:
    return {"lyon": predictions("elsewhere")}


def other_labels() -> dict[str, Predictions]:
    p = predictions("lyon")
    labels = p.labels.copy()
    labels[0] = 1
    return {"lyon": Predictions(CLASSES, p.ids, labels, p.probabilities, p.clusters, "image")}


def other_classes() -> dict[str, Predictions]:
    p = predictions("lyon")
    return {"lyon": Predictions(("x", "y", "z"), p.ids, p.labels, p.probabilities, p.clusters, "image")}


@pytest.mark.parametrize(
    ("second", "match"),
    [
        (make(), "two units of model 'fedavg' with seed 0"),
        (make("b", sites=other_images()), "'b' with seed 0 at site 'lyon'.*60 images are in one only"),
        (make("b", sites=other_labels()), "labels or patients differ"),
        (make("b", sites=other_classes()), "predicts x, y, z"),
        (make("b", sites={"kano": predictions("kano")}), "only one has kano"),
        (make("b", roles={"lyon": "train", "oslo": "train"}), "'oslo' as 'train', others as 'held_out'"),
    ],
)
def test_units_that_cannot_be_compared_are_refused(second: UnitPredictions, match: str) -> None:
    with pytest.raises(DataError, match=match):
        Scores([make(), second], resamples=10)


def test_a_model_that_is_not_for_held_out_sites_is_left_out_there_only() -> None:
    """Whichever unit comes first; a training site must not be missing."""
    whole = make(roles={"lyon": "train", "oslo": "held_out"})
    own = UnitPredictions("fedper", "fedper", "fedper", 0, ("lyon",), {"lyon": whole.sites["lyon"]}, whole.roles)
    for units in ([own, whole], [whole, own]):
        assert Scores(units, resamples=10).sites == ("lyon", "oslo")
        rows = {(r["model"], r["scope"]) for r in summarise(units, resamples=10)}
        assert {scope for model, scope in rows if model == "fedper"} == {"lyon", "mean_training"}
        assert {scope for model, scope in rows if model == "fedavg"} == {
            "lyon",
            "oslo",
            "mean_training",
            "mean_held_out",
        }
        assert {e["scope"] for e in compare_pairs(units, resamples=10)} == {"lyon", "mean_training"}
    elsewhere = UnitPredictions("b", "b", "fedper", 0, ("lyon",), {"oslo": whole.sites["oslo"]}, whole.roles)
    with pytest.raises(DataError, match="'b' with seed 0 and model 'fedavg'.*only one has lyon"):
        Scores([whole, elsewhere], resamples=10)


def test_no_units_is_an_error() -> None:
    with pytest.raises(DataError, match="no predictions to compare"):
        summarise([])


def test_rows_in_another_order_are_the_same_images() -> None:
    p = predictions("lyon")
    back = np.arange(len(p))[::-1]
    turned = Predictions(CLASSES, p.ids[back], p.labels[back], p.probabilities[back], p.clusters[back], "image")
    found = compare_pairs([make(), make("b", sites={"lyon": turned})], [("fedavg", "b")], resamples=50)
    assert {(e["difference"], e["low"], e["high"]) for e in found if e["scope"] == "lyon"} == {(0.0, 0.0, 0.0)}
