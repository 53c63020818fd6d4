from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from morphfed.core.errors import DataError, StorageError
from morphfed.evaluation.metrics import METRICS, measure
from morphfed.evaluation.predictions import Predictions, read_predictions, write_predictions
from morphfed.evaluation.scores import Scores, UnitPredictions
from morphfed.evaluation.site import evaluate_site

CLASSES = ("neutrophil", "monocyte", "basophil")
ROWS = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0]], dtype=np.float32)


def make(**changes: Any) -> Predictions:
    values: dict[str, Any] = {
        "classes": CLASSES,
        "ids": np.array(["a.jpg", "b.jpg", "ç d.jpg", "e.jpg"]),
        "labels": np.array([0, 1, 1, 0]),
        "probabilities": ROWS,
        "clusters": np.array(["p1", "p1", "p2", "p3"]),
        "cluster_unit": "patient",
    }
    return Predictions(**(values | changes))


def assert_equal(a: Predictions, b: Predictions) -> None:
    assert a.classes == b.classes
    assert a.cluster_unit == b.cluster_unit
    for name in ("ids", "labels", "probabilities", "clusters"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.labels.dtype, a.probabilities.dtype) == (np.int64, np.float32)


def test_one_site_survives_the_file(tmp_path: Path) -> None:
    make().save(tmp_path / "p.parquet")
    assert_equal(Predictions.load(tmp_path / "p.parquet"), make())


def test_many_sites_keep_their_order_and_an_empty_one_is_not_lost(tmp_path: Path) -> None:
    empty = make(ids=[], labels=[], probabilities=np.zeros((0, 3)), clusters=[])
    other = make(cluster_unit="image", clusters=make().ids)
    write_predictions(tmp_path / "p.parquet", {"tecom": other, "barcelona": make(), "none": empty})
    found = read_predictions(tmp_path / "p.parquet")
    assert list(found) == ["tecom", "barcelona", "none"]
    for site, expected in (("tecom", other), ("barcelona", make()), ("none", empty)):
        assert_equal(found[site], expected)


def test_file_names_truth_and_probabilities_by_class(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.parquet", {"tecom": make()})
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert table["truth"] == ["neutrophil", "monocyte", "monocyte", "neutrophil"]
    np.testing.assert_array_equal(table["p/basophil"], ROWS[:, 2])


def test_masking_renormalises_over_the_classes_present() -> None:
    masked = make().masked(("neutrophil", "monocyte"))
    # By hand: .7/.9 and .2/.9; .1/.4 and .3/.4; .25/.5 twice; nothing left in the last row, so uniform.
    expected = [[7 / 9, 2 / 9, 0], [0.25, 0.75, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]
    np.testing.assert_allclose(masked.probabilities, expected, rtol=1e-6)
    assert masked.predicted.tolist() == [0, 1, 0, 0]
    assert make().predicted.tolist() == [0, 2, 2, 2]
    assert make().present == ("neutrophil", "monocyte")


@pytest.mark.parametrize(
    ("names", "match"), [(("neutrophil",), "monocyte"), ((), "masked"), (("neutrophil", "blast"), "blast")]
)
def test_a_mask_that_makes_no_sense_is_refused(names: tuple[str, ...], match: str) -> None:
    with pytest.raises(DataError, match=match):
        make().masked(names)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"labels": np.array([0, 1, 3, 0])}, r"row 2 \(ç d.jpg\) is 3, 0 to 2"),
        ({"labels": np.array([0, -1, 1, 0])}, "row 1"),
        ({"labels": np.array([0.0, 1.0, 1.0, 0.0])}, "float64"),
        ({"probabilities": ROWS * 2}, "row 0.*and 3 more.*sum 2"),
        ({"probabilities": ROWS + np.array([0.4, 0, -0.4], dtype=np.float32)}, "no distribution"),
        ({"probabilities": np.where(ROWS == 1, np.nan, ROWS)}, r"row 3 \(e.jpg\).*not finite"),
        ({"probabilities": ROWS[:, :2]}, r"\(4, 2\), \(4, 3\) was expected"),
        ({"ids": ["a.jpg"] * 4}, "a.jpg occurs 4 times"),
        ({"clusters": ["p1"]}, r"clusters has shape \(1,\)"),
        ({"classes": ("a", "b", "a")}, "distinct"),
        ({"cluster_unit": "slide"}, "slide"),
    ],
)
def test_what_cannot_be_predictions_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        make(**changes)


def test_sites_of_one_file_share_their_classes(tmp_path: Path) -> None:
    other = make(classes=("a", "b", "c"))
    with pytest.raises(DataError, match="'tecom' has the classes a, b, c"):
        write_predictions(tmp_path / "p.parquet", {"barcelona": make(), "tecom": other})
    with pytest.raises(DataError, match="no predictions"):
        write_predictions(tmp_path / "p.parquet", {})
    assert list(tmp_path.iterdir()) == []


def test_unreadable_files_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    with pytest.raises(StorageError, match="does not exist"):
        read_predictions(path)
    make().save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StorageError, match="cannot be read"):
        read_predictions(path)
    write_predictions(path, {"a": make(), "b": make()})
    with pytest.raises(StorageError, match=r"2 sites \(a, b\)"):
        Predictions.load(path)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(StorageError, match="not a predictions file"):
        read_predictions(path)


def test_some_of_the_images_in_an_order_of_ones_own() -> None:
    found = make().only(np.array(["e.jpg", "b.jpg"]))
    assert_equal(
        found,
        make(
            ids=["e.jpg", "b.jpg"], labels=np.array([0, 1]), probabilities=ROWS[[3, 1]], clusters=np.array(["p3", "p1"])
        ),
    )
    with pytest.raises(DataError, match=r"1 images were never predicted, such as x\.jpg"):
        make().only(np.array(["a.jpg", "x.jpg"]))


def of_logits(logits: np.ndarray, labels: list[int], classes: tuple[str, ...] = ("no", "yes")) -> Predictions:
    """As a trainer makes them: probabilities of float32, logarithms of float64."""
    z = torch.from_numpy(logits).float()
    ids = np.array([f"b{i:03}" for i in range(len(labels))])
    logs = z.double().log_softmax(dim=1).numpy()
    return Predictions(classes, ids, np.array(labels), z.softmax(dim=1).numpy(), ids, "bag", logs)


SATURATED = np.array([[60, -60], [55, -58], [-58, 60], [-60, 55], [59, -59.5], [-60, 60]], dtype=np.float32)
"""Float32 makes 0 and 1 of all of them; the second class's log-odds are -120, -113, 118, 115, -118.5 and 120."""


def test_auroc_of_a_saturated_model_is_the_order_of_its_logits() -> None:
    labels = [0, 1, 1, 0, 0, 1]  # by hand: of the nine pairs of a positive and a negative only (-113, 115) is wrong
    p = of_logits(SATURATED, labels)
    assert set(p.probabilities.ravel().tolist()) == {0.0, 1.0}
    assert measure(p.labels, p.probabilities)["auroc"] == pytest.approx(6 / 9)  # what ties make of it
    np.testing.assert_allclose(p.ranking[:, 1], [-120, -113, 118, 115, -118.5, 120])
    np.testing.assert_allclose(p.ranking[:, 0], -p.ranking[:, 1])
    block = evaluate_site(p, role="train", resamples=50)
    assert block["metrics"]["auroc"]["value"] == pytest.approx(8 / 9)
    assert [block["per_class"][c]["auroc"] for c in p.classes] == [pytest.approx(8 / 9)] * 2
    unit = UnitPredictions("fedavg", "fedavg", "fedavg", 0, ("a",), {"a": p}, {"a": "train"})
    vector = Scores([unit], resamples=50).vector("fedavg", "a", "auroc", 0)
    assert vector is not None
    assert vector[0] == pytest.approx(8 / 9)
    assert np.nanmin(vector) < 8 / 9 < np.nanmax(vector)


def test_saturated_logits_survive_the_file_the_mask_and_another_temperature(tmp_path: Path) -> None:
    p = of_logits(SATURATED, [0, 1, 1, 0, 0, 1])
    p.save(tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet")["log p/yes"].to_pylist()[0] == -120.0
    for found in (Predictions.load(tmp_path / "p.parquet"), p.at(np.arange(6)), p.masked(p.classes)):
        assert_equal(found, p)
        np.testing.assert_allclose(found.log_probabilities, p.log_probabilities, atol=1e-15)
    softer = p.tempered(10.0)
    np.testing.assert_allclose(softer.ranking, p.ranking / 10)
    np.testing.assert_allclose(np.exp(softer.log_probabilities).sum(axis=1), 1.0)


def test_a_mask_tells_what_had_underflowed_by_its_logarithms() -> None:
    logits = np.array([[150.0, 1.0, -1.0]], dtype=np.float32)
    p = of_logits(logits, [1], CLASSES)
    assert p.probabilities[0].tolist() == [1.0, 0.0, 0.0]
    expected = np.exp(2) / (1 + np.exp(2))
    assert p.masked(CLASSES[1:]).probabilities[0].tolist() == pytest.approx([0.0, expected, 1 - expected])


def test_ranks_are_those_of_the_probabilities_where_nothing_saturates() -> None:
    rng = np.random.default_rng(0)
    p = of_logits(rng.normal(0, 2, (300, 3)).astype(np.float32), rng.integers(0, 3, 300).tolist(), CLASSES)
    without = replace(p, log_probabilities=None)
    assert without.ranking is without.probabilities
    for metric in METRICS:
        one, other = (measure(x.labels, x.probabilities, ranking=x.ranking)[metric] for x in (p, without))
        assert one == other


def test_files_without_logarithms_are_read_and_a_file_has_all_or_none(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.parquet", {"a": make(), "b": make(log_probabilities=np.log(ROWS + 1e-9))})
    found = read_predictions(tmp_path / "p.parquet")
    assert [p.log_probabilities for p in found.values()] == [None, None]


@pytest.mark.parametrize(
    ("logs", "words"),
    [(np.zeros((4, 2)), "shape"), (np.where(ROWS > 0.65, np.nan, 0.0), r"row 0 \(a.jpg\) and 1 more")],
)
def test_wrong_logarithms_are_refused(logs: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make(log_probabilities=logs)
