from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from morphfed.core.errors import DataError, StorageError
from morphfed.evaluation.predictions import Predictions, read_predictions, write_predictions

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
