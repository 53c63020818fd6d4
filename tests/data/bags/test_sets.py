"""CSV sets of the MIL literature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from morphfed.core.errors import DataError
from morphfed.data.bags.sets import looks_like_a_set, read_set
from morphfed.data.bags.store import fingerprint_at, odd_at, read_at


def test_bags_in_any_order_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("1,a,1,2\n0,b,3,4\n\n1,a,5,6\n")
    found = read_set(path)
    assert found.labels == {"a": "1", "b": "0"}
    np.testing.assert_array_equal(found.bag("a"), [[1, 2], [5, 6]])
    np.testing.assert_array_equal(read_at(tmp_path / "s.csv::b"), [[3, 4]])
    assert fingerprint_at(tmp_path / "s.csv::a") != fingerprint_at(tmp_path / "s.csv::b")
    with pytest.raises(DataError, match="no bag c"):
        read_at(tmp_path / "s.csv::c")
    path.write_text("1,a,1,nan\n")
    assert odd_at(tmp_path / "s.csv::a") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,1,2,3\n1,1,2\n", "line 2: 3 cells; the lines before have 4"),
        ("1,1,2,3\n0,1,2,3\n", "line 2: bag 1 has the label 0, before it had 1"),
        ("1,1,2,3\n1,2,2,x\n", "line 2: 'x' is no number"),
        ("", "is empty"),
    ],
)
def test_bad_lines_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_set(path)


def test_a_table_with_a_header_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("case_id,slide_id,label\na,b,c\n")
    (tmp_path / "s.csv").write_text("1,1,0.5\n")
    assert not looks_like_a_set(tmp_path / "t.csv")
    assert looks_like_a_set(tmp_path / "s.csv")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "bags", "positive", "instances", "width"),
    [("musk1", 92, 47, 476, 166), ("elephant", 200, 100, 1391, 230), ("corel_dogs", 2000, 100, 7947, 9)],
)
def test_published_sets(shared_data: Path, name: str, bags: int, positive: int, instances: int, width: int) -> None:
    found = read_set(shared_data / "bags" / f"{name}.csv")
    assert len(found.labels) == bags
    assert sum(label == "1" for label in found.labels.values()) == positive
    assert found.features.shape == (instances, width)
