"""A published split is taken image by image; what lies on both of its sides is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from morphfed.core.errors import DataError
from morphfed.data.manifest import COLUMNS, Manifest
from morphfed.data.published import take_published
from morphfed.data.splits import Leak, assign_splits, leaks

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def build(rows: list[dict[str, Any]], root: Path = Path()) -> Manifest:
    full = [{**dict.fromkeys(COLUMNS), "source": "x", "source_label": "y", "label": "nv", **row} for row in rows]
    return Manifest(pd.DataFrame(full), root)


def skin() -> Manifest:
    lesions = {"A": ["L1", "L1", "L2", "L2", "L3", "L4"], "B": ["L5", "L6"]}
    return build(
        [
            {"path": f"{site}/ISIC_{site}{i}.jpg", "site": site.lower(), "lesion": lesion}
            for site, own in lesions.items()
            for i, lesion in enumerate(own)
        ]
    )


def table(folder: Path, text: str) -> Path:
    file = folder / "split.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_parts_of_the_table_and_what_they_leak(tmp_path: Path) -> None:
    # L1 and L2 lie in train and test, L1 with one test image and L2 with one; L3 is in the test alone.
    rows = "ISIC_A0,train\nISIC_A1.jpg,test\nISIC_A2,train\nISIC_A3,test\nISIC_A4,test\nISIC_X9,valid\n"
    manifest, notes = take_published(skin(), table(tmp_path, "image_id,part\n" + rows))
    assert dict(zip(manifest.frame["path"], manifest.frame["split"], strict=True)) == {
        "A/ISIC_A0.jpg": "train",
        "A/ISIC_A1.jpg": "test",
        "A/ISIC_A2.jpg": "train",
        "A/ISIC_A3.jpg": "test",
        "A/ISIC_A4.jpg": "test",
        "B/ISIC_B0.jpg": None,
        "B/ISIC_B1.jpg": None,
    }
    assert notes == [
        "a: published split of split.csv, not checked for independence: train 2, validation 0, test 3",
        "a: 1 images are not in split.csv and are left out",
        "b: split.csv lists none of its images; it is split as usual",
        "split.csv lists 1 images that are not there",
    ]
    assigned, said = assign_splits(manifest, SHARES, 0)
    said_of_a = [s for s in said.sentences if s.startswith("a: the split leaks")]
    assert said_of_a == [
        "a: the split leaks: 2 lesions lie in both train and test, so 2 of 3 test images show one that was trained on, "
        "and scores there are too high"
    ]
    assert list(assigned.frame["split"][:5]) == list(manifest.frame["split"][:5])


def test_leaks_by_hand() -> None:
    owners = [
        ("lesion", "1"),
        ("lesion", "1"),
        ("lesion", "1"),
        ("lesion", "2"),
        None,
        ("patient", "1"),
        ("patient", "1"),
    ]
    splits = ["train", "test", "test", "test", "test", "train", "test"]
    assert leaks(owners, splits) == [Leak("patient", 1, 1, 5), Leak("lesion", 1, 2, 5)]
    assert leaks(owners, splits, "validation") == []
    assert leaks(owners, ["train"] * 7) == []


def test_lesions_stay_together_without_a_published_split() -> None:
    rows = [{"path": f"{i}.jpg", "site": "a", "lesion": f"L{i // 3}"} for i in range(60)]
    assigned, notes = assign_splits(build(rows), SHARES, 0)
    sides = assigned.frame.groupby("lesion")["split"].nunique()
    assert set(sides) == {1}
    assert any(s.startswith("a: split by lesion:") for s in notes.sentences)
    assert leaks([("lesion", v) for v in assigned.frame["lesion"]], list(assigned.frame["split"])) == []


def test_a_patient_counts_before_the_lesion() -> None:
    rows = [{"path": f"{i}.jpg", "site": "a", "patient": f"P{i // 6}", "lesion": f"L{i // 2}"} for i in range(60)]
    assigned, notes = assign_splits(build(rows), SHARES, 0)
    assert set(assigned.frame.groupby("patient")["split"].nunique()) == {1}
    assert any(s.startswith("a: split by patient:") for s in notes.sentences)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,where\nISIC_A0,train\n", "has no column 'part': it has 'image', 'where'"),
        ("name,part\nISIC_A0,train\n", "has no column 'image'"),
        ("", "has no column 'image': it has no rows"),
        ("image,part\nISIC_A0,dev\nISIC_A1,elsewhere\n", "row 3: image 'ISIC_A1' in part 'elsewhere'"),
        ("image,part\nISIC_A0,train\nISIC_A0,test\n", "row 3: 'ISIC_A0' is in test and in train"),
        ("image,part\nISIC_Q1,train\n", "lists none of the images of a, b"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        take_published(skin(), table(tmp_path, text))
    with pytest.raises(DataError, match=r"data\.split\.leaky_published names it"):
        take_published(skin(), tmp_path / "absent.csv")


def test_equal_names_at_two_sites_need_the_column_site(tmp_path: Path) -> None:
    manifest = build([{"path": f"{site}/x.jpg", "site": site} for site in ("a", "b")])
    with pytest.raises(DataError, match=r"names 'x', which 2 images are called: a/x\.jpg at a"):
        take_published(manifest, table(tmp_path, "image,part\nx,train\n"))
    told, _ = take_published(manifest, table(tmp_path, "image,part,site\nx,train,a\nx,test,b\n"))
    assert list(told.frame["split"]) == ["train", "test"]
