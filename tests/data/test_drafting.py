"""From a folder to a manifest: nothing guessed silently, nothing lost."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from morphfed.core.errors import ConfigError, DataError
from morphfed.core.progress import Event
from morphfed.data.drafting import draft, draft_tree, find_sites, site_name
from morphfed.data.manifest import Manifest


def paint(file: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB", shade: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode in {"L", "I;16"} else (shade, 10, 20, 255)[: len(mode)]).save(file)
    return file


def write(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_a_faulty_site_loses_nothing(tmp_path: Path) -> None:
    good = paint(tmp_path / "neutrophils" / "good.png")
    paint(tmp_path / "neutrophils" / "grey.tif", mode="L")
    paint(tmp_path / "neutrophils" / "clear.png", mode="RGBA")
    paint(tmp_path / "Monocyte" / "deep.png", mode="I;16")
    whole = paint(tmp_path / "Monocyte" / "whole.jpg", (64, 48)).read_bytes()
    write(tmp_path / "Monocyte" / "cut.jpg", whole[:-10])
    write(tmp_path / "Monocyte" / "empty.jpg", b"")
    write(tmp_path / "Monocyte" / "text.jpg", b"no image at all")
    paint(tmp_path / "weird cells" / "1.BMP")
    write(tmp_path / "readme.txt", b"")
    write(tmp_path / "Monocyte" / "Thumbs.db", b"")
    (tmp_path / "Monocyte" / "gone.png").symlink_to(tmp_path / "nowhere.png")

    drafted = draft(tmp_path, site="kampala")
    rows = drafted.manifest.frame.set_index("path")
    assert len(rows) == 10
    assert rows.loc["neutrophils/good.png", ["width", "height"]].tolist() == [8, 6]
    assert rows.loc["neutrophils/good.png", "sha256"] == hashlib.sha256(good.read_bytes()).hexdigest()
    assert rows.loc["Monocyte/cut.jpg", ["width", "height"]].tolist() == [64, 48]  # the header is whole
    for name in ("Monocyte/empty.jpg", "Monocyte/text.jpg"):
        assert rows["width"].isna()[name]
        assert rows.loc[name, "sha256"] is not None
    assert rows.loc["Monocyte/gone.png", "sha256"] is None
    assert Counter(rows["label"].dropna()) == {"neutrophil": 3, "monocyte": 6}
    assert drafted.unmapped == {"weird cells": 1}
    assert {reason: len(paths) for reason, paths in drafted.skipped.items()} == {
        "not an image (.txt)": 1,
        "left by Windows (Thumbs.db, desktop.ini)": 1,
    }
    assert drafted.guesses == [
        "source folders, because its images lie in folders named after cell types",
        "um_per_px not known: it can be given, or estimated from the cells",
        "no patient ids: splits will be by image",
        "3 files are missing or are no images; their rows are kept without a size",
    ]
    drafted.manifest.write(tmp_path / "m.csv")
    assert len(Manifest.read(tmp_path / "m.csv")) == 10


def test_a_site_with_one_class_and_one_image_is_a_site(tmp_path: Path) -> None:
    paint(tmp_path / "basophil" / "1.png")
    assert draft(tmp_path, site="tiny").manifest.frame["label"].tolist() == ["basophil"]


def test_an_empty_site_is_named_with_what_was_seen(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Site 'lagos'.*holds no image \(it is empty\)"):
        draft(tmp_path, site="lagos")
    write(tmp_path / "a.svs", b"")
    with pytest.raises(DataError, match=r"1 × not an image \(\.svs\)"):
        draft(tmp_path, site="lagos")


def test_an_unrecognised_layout_and_a_draw_name_the_candidates(tmp_path: Path) -> None:
    paint(tmp_path / "flat" / "1.png")
    with pytest.raises(DataError, match="Site 'x': no source recognises"):
        draft(tmp_path / "flat", site="x")
    paint(tmp_path / "draw" / "blast" / "MO_1.png")
    paint(tmp_path / "draw" / "monocyte" / "MO_2.png")
    with pytest.raises(DataError, match=r"2 ways: cellavision \(0\.70\), folders \(0\.70\)"):
        draft(tmp_path / "draw", site="x")
    asked = draft(tmp_path / "draw", site="x", source="folders")
    assert asked.guesses[0] == "source folders, as asked for"
    assert sorted(asked.manifest.frame["label"]) == ["blast", "monocyte"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"site": "Mulago Hospital"}, "for example 'mulago-hospital'"),
        ({"source": "folder"}, r"Did you mean 'folders'\?"),
        ({"options": {"label": "lmu"}}, r"no option 'label'\. Did you mean 'labels'"),
        ({"options": {"labels": "lnu"}}, r"Did you mean 'lmu'\?"),
        ({"options": {"patient_pattern": "("}}, "patient_pattern"),
        ({"options": {"patient_pattern": "p"}}, "has 0 groups"),
        ({"um_per_px": -0.1}, "not a positive size"),
    ],
)
def test_wrong_arguments_say_what_is_right(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    paint(tmp_path / "basophil" / "1.png")
    with pytest.raises((ConfigError, DataError), match=message):
        draft(tmp_path, **{"site": "x", **arguments})  # type: ignore[arg-type]


def test_folders_in_codes_of_a_known_source_are_read_as_such(tmp_path: Path) -> None:
    for code, n in (("BAS", 1), ("LYT", 2), ("PMB", 3)):
        paint(tmp_path / code / f"{code}_{n}.tiff", (400, 400))
    drafted = draft(tmp_path, site="munich")
    assert drafted.manifest.frame["label"].tolist() == [
        "basophil",
        "lymphocyte_typical",
        "promyelocyte_atypical",
    ]
    assert "labels read as those of lmu" in drafted.guesses[1]
    assert drafted.manifest.frame["um_per_px"].tolist() == pytest.approx([29 / 400] * 3)


def test_a_resized_copy_does_not_get_the_published_scale(tmp_path: Path) -> None:
    for code in ("BAS", "LYT", "PMB"):
        paint(tmp_path / code / f"{code}_1.tiff", (224, 224))
    drafted = draft(tmp_path, site="munich")
    assert drafted.manifest.frame["um_per_px"].isna().all()
    assert any("only 0 of 3 images have that size" in guess for guess in drafted.guesses)
    given = draft(tmp_path, site="munich", um_per_px=0.13)
    assert given.manifest.frame["um_per_px"].tolist() == [0.13] * 3


def test_patients_from_a_pattern_in_the_name(tmp_path: Path) -> None:
    for name in ("95-9-3_1", "95-9-3_2", "95-9-4_1", "odd"):
        paint(tmp_path / "basophil" / f"{name}.png")
    drafted = draft(tmp_path, site="x", options={"patient_pattern": r"([\d-]+)_\d+\.png$"})
    assert drafted.manifest.frame["patient"].tolist() == ["95-9-3", "95-9-3", "95-9-4", None]
    assert "patient ids for 3 of 4 images (2 patients); the other 1 are split by image" in drafted.guesses


def test_official_splits_and_missing_files_are_said(tmp_path: Path) -> None:
    paint(tmp_path / "1.png")
    write(tmp_path / "labels.csv", b"file,label,split\n1.png,Blast,train\n2.png,LYMPHOCYTES,test\n")
    drafted = draft(tmp_path, site="x")
    frame = drafted.manifest.frame
    assert frame["label"].tolist() == ["blast", "lymphocyte"]
    assert frame["sha256"].isna().tolist() == [False, True]
    assert "the source's own split is kept: train 1, test 1" in drafted.guesses
    assert any("lists 1 files that are not there" in guess for guess in drafted.guesses)


def test_progress_ends_complete(tmp_path: Path) -> None:
    for i in range(3):
        paint(tmp_path / "basophil" / f"{i}.png")
    events: list[Event] = []
    draft(tmp_path, site="x", report=events.append)
    assert (events[-1].done, events[-1].total) == (3, 3)


def test_drafting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for i in range(9):
        paint(tmp_path / "data" / ("basophil", "monocyte")[i % 2] / f"{i}.png", shade=i)
    for name in ("a.csv", "b.csv"):
        draft(tmp_path / "data", site="x").manifest.write(tmp_path / name)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_tree_of_sites_one_draft_each_and_refusals_with_reasons(tmp_path: Path) -> None:
    paint(tmp_path / "Mulago Hospital" / "neutrophil" / "1.png")
    paint(tmp_path / "lagos" / "train" / "basophil" / "1.png")
    paint(tmp_path / "export" / "SNE_1.png")
    paint(tmp_path / "fields" / "Original_Images" / "1.png")
    (tmp_path / "empty").mkdir()
    tree = draft_tree(tmp_path)
    assert {name: len(d.manifest) for name, d in tree.drafts.items()} == {
        "mulago-hospital": 1,
        "lagos": 1,
        "export": 1,
    }
    assert set(tree.refused) == {"fields", "empty"}
    assert "holds no image" in tree.refused["empty"].message
    assert tree.manifest.sites == ["export", "lagos", "mulago-hospital"]
    assert all(file.is_file() for file in tree.manifest.files())


@pytest.mark.parametrize(
    "names",
    [
        ["neutrophil/1.png", "odd/2.png"],
        ["Train/neutrophil/1.png", "TestB/basophil/2.png"],
        ["Patient_01/Signed slides/Monocyte/1.png", "Patient_02/Signed slides/Monocyte/1.png"],
        ["SNE_1.png", "more/LY_2.png"],
        ["type a/1.png", "type b/1.png"],
    ],
)
def test_one_site_is_recognised_as_one(tmp_path: Path, names: list[str]) -> None:
    root = tmp_path / "Only One"
    for name in names:
        paint(root / name)
    assert find_sites(root) == {"only-one": root}
    assert find_sites(tmp_path) == {"only-one": root}


def test_a_tree_without_any_site_says_why(tmp_path: Path) -> None:
    paint(tmp_path / "fields" / "1.png")
    with pytest.raises(DataError, match=r"holds no site that can be read\..*no source recognises"):
        draft_tree(tmp_path)


def test_folder_links_in_circles_end(tmp_path: Path) -> None:
    paint(tmp_path / "lagos" / "basophil" / "1.png")
    (tmp_path / "lagos" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert find_sites(tmp_path) == {"lagos": tmp_path / "lagos"}


def test_site_names_are_valid() -> None:
    assert site_name("Dataset 1") == "dataset-1"
    assert site_name("××") == "site"


@pytest.mark.shared
def test_barcelona(shared_data: Path) -> None:
    drafted = draft(shared_data / "cells" / "PBC_dataset_normal_DIB", site="barcelona")
    frame = drafted.manifest.frame
    prefixes = dict.fromkeys(["BA", "BNE", "EO", "ERB", "LY", "MMY", "MO", "MY", "PLATELET", "PMY", "SNE"], 250)
    assert Counter(frame["source_label"]) == {**prefixes, "IG": 50, "NEUTROPHIL": 50}
    assert set(frame["um_per_px"]) == {0.1}
    assert set(frame["source"]) == {"pbc"}
    assert frame["label"].notna().all()
    assert frame["width"].notna().all()
    assert drafted.skipped.keys() == {"not an image (.md)"}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "counts"),
    [
        ("segmentation_WBC/Dataset 1", (176, 53, 48, 22, 1)),
        ("segmentation_WBC/Dataset 2", (33, 37, 15, 12, 3)),
        ("bccd_crops", (207, 33, 20, 88, 3)),
    ],
)
def test_the_other_labs(shared_data: Path, folder: str, counts: tuple[int, ...]) -> None:
    frame = draft(shared_data / "cells" / folder, site="x").manifest.frame
    names = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
    assert Counter(frame["label"]) == dict(zip(names, counts, strict=True))
    assert frame["um_per_px"].isna().all()


@pytest.mark.shared
def test_the_folder_of_all_labs(shared_data: Path) -> None:
    assert set(find_sites(shared_data / "cells")) == {
        *("pbc_dataset_normal_dib", "bccd_crops", "bccd_fields"),
        *("segmentation_wbc-dataset-1", "segmentation_wbc-dataset-2"),
    }
