"""A site's bags → rows; whatever cannot be used keeps its row and says why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from morphfed.core.errors import ConfigError, DataError
from morphfed.data.bags.drafting import draft_bags
from morphfed.data.bags.files import write_bag
from morphfed.data.bags.tables import read_slides, read_splits
from morphfed.data.manifest import Manifest


def bag(path: Path, n: int = 6, *, seed: int | None = None, dim: int = 4, encoder: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(len(path.stem) + sum(map(ord, path.stem)) if seed is None else seed)
    write_bag(path, draw.normal(size=(n, dim)).astype(np.float32), encoder=encoder)
    return path


def rows(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {str(row["slide"] or row["path"]): row for row in manifest.frame.to_dict("records")}


def test_clam_folders_and_table(tmp_path: Path) -> None:
    for slide in ("s1", "s2", "s3"):
        bag(tmp_path / "h5_files" / f"{slide}.h5")
        (tmp_path / "pt_files").mkdir(exist_ok=True)
        (tmp_path / "pt_files" / f"{slide}.pt").write_bytes(b"not looked at, as there is an h5 file")
    (tmp_path / "slides.csv").write_text("case_id,slide_id,label\np1,s1.svs,tumor\np1,s2,normal\np2,s3,normal\n")
    manifest, notes = draft_bags(tmp_path, site="a")
    found = rows(manifest)
    assert [found[s]["source_label"] for s in ("s1", "s2", "s3")] == ["tumor", "normal", "normal"]
    assert [found[s]["patient"] for s in ("s1", "s2", "s3")] == ["p1", "p1", "p2"]
    assert found["s1"]["path"] == "h5_files/s1.h5"
    assert found["s1"]["instances"] == 6
    assert found["s1"]["dim"] == 4
    assert manifest.frame["problem"].isna().all()
    assert any("3 .pt files are not used" in note for note in notes)
    saved = manifest.write(tmp_path / "run" / "manifest.parquet")
    again = Manifest.read(tmp_path / "run" / "manifest.parquet")
    assert again.frame.astype(str).to_dict("records") == saved.frame.astype(str).to_dict("records")


def test_histofl_table_by_institute_with_survival(tmp_path: Path) -> None:
    for slide in "abc":
        bag(tmp_path / "features" / f"{slide}.h5")
    table = tmp_path / "all.csv"
    table.write_text(
        "case_id,slide_id,diagnosis_label,institute,survival_months,censorship\n"
        "1,a,x,north,12.5,1\n2,b,y,south,3,0\n3,c,x,north,,\n"
    )
    manifest, _ = draft_bags(table, site="n", options={"bags": "features", "institute": "north"})
    found = rows(manifest)
    assert set(found) == {"a", "c"}
    assert (found["a"]["survival_months"], found["a"]["censorship"]) == (12.5, 1)
    assert np.isnan(found["c"]["survival_months"])
    with pytest.raises(DataError, match="Did you mean 'north'"):
        draft_bags(table, site="n", options={"bags": "features", "institute": "nort"})


def test_class_folders(tmp_path: Path) -> None:
    bag(tmp_path / "train" / "tumor" / "s1.h5"), bag(tmp_path / "normal" / "s2_patches.h5")
    found = rows(draft_bags(tmp_path, site="a")[0])
    assert {slide: row["source_label"] for slide, row in found.items()} == {"s1": "tumor", "s2": "normal"}


def test_clam_splits(tmp_path: Path) -> None:
    for slide in "abcd":
        bag(tmp_path / f"{slide}.h5")
    (tmp_path / "slides.csv").write_text("case_id,slide_id,label\n" + "".join(f"{s},{s},x\n" for s in "abcd"))
    (tmp_path / "splits_0.csv").write_text(",train,val,test\n0,a,b,c\n")
    found = rows(draft_bags(tmp_path, site="x", options={"splits": "splits_0.csv"})[0])
    assert [found[s]["split"] for s in "abc"] == ["train", "validation", "test"]
    assert found["d"]["problem"] == "not in splits_0.csv"
    (tmp_path / "splits_1.csv").write_text(",train,val,test\n0,a,a,c\n")
    with pytest.raises(DataError, match="such as a in train and validation"):
        read_splits(tmp_path / "splits_1.csv")


def test_nothing_is_lost(tmp_path: Path) -> None:
    bag(tmp_path / "good.h5"), bag(tmp_path / "glass.h5", 0), bag(tmp_path / "unlisted.h5"), bag(tmp_path / "torn.h5")
    bag(tmp_path / "twice.h5"), bag(tmp_path / "blank.h5")
    torn = (tmp_path / "torn.h5").read_bytes()
    (tmp_path / "torn.h5").write_bytes(torn[: len(torn) // 2])
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file.create_dataset("coords", data=np.zeros((3, 2)))
    listed = ("good", "glass", "torn", "bare", "absent", "twice")
    text = "slide_id,label\n" + "".join(f"{s},x\n" for s in listed) + "twice,y\nblank,\ngood,x\n"
    (tmp_path / "slides.csv").write_text(text)
    manifest, notes = draft_bags(tmp_path, site="a")
    why = {slide: row["problem"] for slide, row in rows(manifest).items()}
    assert set(why) == {*listed, "unlisted", "blank"}
    assert why["good"] is None
    assert why["glass"] == "no instance: an empty slide"
    assert "cannot be read" in why["torn"]
    assert str(tmp_path) not in why["torn"]
    assert "no dataset 'features' (it holds coords)" in why["bare"]
    assert why["absent"] == "a label without a bag: no bag file"
    assert why["unlisted"] == "a bag without a label: slides.csv does not list its slide"
    assert why["twice"] == "different labels in its rows (x and y)"
    assert why["blank"] == "its row has no label"
    assert any("lists 2 slides again" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,label\n1,x\n", "no column 'slide_id'"),
        ("slide_id,case_id\na,1\n", "no column 'label'"),
        ("slide_id,label\n,x\n", "row 2: it names no slide"),
        ("slide_id,label,survival_months\na,x,long\n", "row 2: survival_months is 'long'"),
        ("slide_id,label,censorship\na,x,2\n", "row 2: censorship is 2"),
    ],
)
def test_bad_tables_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_slides(tmp_path / "t.csv", {})


def test_two_files_of_one_slide_are_refused(tmp_path: Path) -> None:
    bag(tmp_path / "uni" / "s1.h5"), bag(tmp_path / "conch" / "s1.h5")
    with pytest.raises(DataError, match="slide s1 has 2 files"):
        draft_bags(tmp_path, site="a")


def test_files_of_coordinates_beside_the_features(tmp_path: Path) -> None:
    bag(tmp_path / "features_uni" / "tumor" / "s1.h5")
    (tmp_path / "patches").mkdir()
    with h5py.File(tmp_path / "patches" / "s1_patches.h5", "w") as file:
        file.create_dataset("coords", data=np.zeros((3, 2)))
    manifest, notes = draft_bags(tmp_path, site="a")
    assert list(manifest.frame["path"]) == ["features_uni/tumor/s1.h5"]
    assert any("1 files of coordinates" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tabel": "x"}, "Did you mean 'table'"),
        ({"part": 1}, "belong together"),
        ({"part": 5, "of": 4}, "part 5 of 4"),
        ({"part": "one", "of": 4}, "whole numbers"),
        ({"patient_pattern": "s"}, "has 0 groups"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    bag(tmp_path / "x" / "s1.h5")
    with pytest.raises(ConfigError, match=message):
        draft_bags(tmp_path, site="a", options=options)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        draft_bags(tmp_path / "none", site="a")
    with pytest.raises(DataError, match="holds no bag file"):
        draft_bags(tmp_path, site="a")
    bag(tmp_path / "s1.h5")
    with pytest.raises(DataError, match="no slide table"):
        draft_bags(tmp_path, site="a")


def test_a_set_dealt_out_is_whole_and_skewed(tmp_path: Path) -> None:
    lines = [f"{b % 2},{b},{b},{b + 0.5}" for b in range(120) for _ in range(2)]
    (tmp_path / "set.csv").write_text("\n".join(lines))
    parts = []
    for part in (1, 2, 3):
        how = {"part": part, "of": 3, "dirichlet": 0.3, "deal_seed": 4}
        manifest, _ = draft_bags(tmp_path / "set.csv", site=f"s{part}", options=how)
        parts.append(manifest.frame)
    paths = [path for frame in parts for path in frame["path"]]
    assert len(paths) == len(set(paths)) == 120
    shares = [Counter(frame["source_label"])["1"] / len(frame) for frame in parts]
    assert max(shares) - min(shares) > 0.3
