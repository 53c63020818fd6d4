"""BloodMNIST, BCCD and LeukemiaAttri become one picture a cell and a table; nothing is lost unsaid."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from morphfed.cli.data import unpack as command
from morphfed.core.errors import ConfigError, DataError
from morphfed.data.decode import decode
from morphfed.data.drafting import draft
from morphfed.data.unpack import unpack
from morphfed.data.unpack.cells import square


def field(height: int = 48, width: int = 64) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Every pixel tells where it is: red its row, green its column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("box", "margin", "corner", "side"),
    [
        ((20, 10, 30, 20), 0.0, (10, 20), 10),
        ((20, 10, 30, 16), 0.0, (8, 20), 10),  # wider than high: the middle stays, 13 - 5
        ((20, 10, 30, 20), 0.1, (9, 19), 12),
        ((0, 0, 10, 10), 0.5, (0, 0), 20),  # moved inwards
        ((54, 38, 64, 48), 0.5, (28, 44), 20),
        ((0, 0, 64, 20), 0.0, (0, 8), 48),  # never more than the shorter side
    ],
)
def test_square(box: tuple[float, ...], margin: float, corner: tuple[int, int], side: int) -> None:
    cut = square(field(), box, margin)  # type: ignore[arg-type]
    assert cut is not None
    assert cut.shape == (side, side, 3)
    assert tuple(cut[0, 0, :2]) == corner


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (70, 5, 80, 9), (-9, 5, 0, 9), (5, 50, 9, 60)])
def test_square_refuses_a_box_without_area_or_outside(box: tuple[float, ...]) -> None:
    assert square(field(), box, 0.0) is None  # type: ignore[arg-type]


def bloodmnist(file: Path, side: int = 28, n: tuple[int, int, int] = (9, 2, 3)) -> dict[str, Any]:
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in zip(("train", "val", "test"), n, strict=True):
        arrays[f"{part}_images"] = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count, dtype=np.uint8) % 8)[:, None]
    np.savez_compressed(file, **arrays)
    return arrays


@pytest.mark.parametrize("side", [28, 64])
def test_bloodmnist_pixels_labels_splits_and_scale(tmp_path: Path, side: int) -> None:
    arrays = bloodmnist(tmp_path / "bloodmnist.npz", side)
    done = unpack("bloodmnist", tmp_path / "bloodmnist.npz", tmp_path / "out")
    assert done.labels == {"basophil": 4, "eosinophil": 3, "erythroblast": 2, **dict.fromkeys(
        ("ig", "lymphocyte", "monocyte", "neutrophil", "platelet"), 1)}  # fmt: skip
    drafted = draft(tmp_path / "out", site="barcelona")
    frame = drafted.manifest.frame.set_index("path")
    assert set(frame["source"]) == {"bloodmnist"}
    assert Counter(frame["split"]) == {"train": 9, "validation": 2, "test": 3}
    assert frame["um_per_px"].tolist() == pytest.approx([20 / side] * 14)  # 200 px of 0.1 µm in every picture
    assert frame.loc["ig/train_00003.png", "label"] == "immature_granulocyte"
    assert np.array_equal(decode(tmp_path / "out/ig/train_00003.png"), arrays["train_images"][3])
    assert np.array_equal(decode(tmp_path / "out/erythroblast/test_00002.png"), arrays["test_images"][2])


def test_bloodmnist_faults_are_named(tmp_path: Path) -> None:
    good = bloodmnist(tmp_path / "a.npz")
    for change, message in (
        ({"val_labels": None}, "no array 'val_labels'"),
        ({"train_images": np.zeros((9, 28, 28), np.uint8)}, r"train_images is uint8 \(9, 28, 28\)"),
        ({"test_labels": np.full((3, 1), 8)}, r"test_labels does not hold a number of 0 … 7"),
    ):
        np.savez(tmp_path / "b.npz", **{k: v for k, v in {**good, **change}.items() if v is not None})
        with pytest.raises(DataError, match=message):
            unpack("bloodmnist", tmp_path / "b.npz", tmp_path / "out")
    (tmp_path / "c.npz").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"c\.npz cannot be read as \.npz"):
        unpack("bloodmnist", tmp_path / "c.npz", tmp_path / "out")
    with pytest.raises(DataError, match=r"name the \.npz file itself"):
        unpack("bloodmnist", tmp_path, tmp_path.parent / "elsewhere")


def test_the_archive_itself_is_no_site_and_says_what_to_do(tmp_path: Path) -> None:
    bloodmnist(tmp_path / "bloodmnist.npz")
    with pytest.raises(DataError, match="morphfed data unpack bloodmnist"):
        draft(tmp_path, site="x")


def voc(*boxes: tuple[str, int, int, int, int]) -> str:
    objects = "".join(
        f"<object><name>{n}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for n, x0, y0, x1, y1 in boxes
    )
    return f"<annotation><filename>BloodImage_00000.jpg</filename>{objects}</annotation>"


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    root = tmp_path / "BCCD"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    annotations = {
        0: voc(("WBC", 10, 10, 30, 30), ("RBC", 40, 10, 50, 20), ("Platelets", 2, 2, 6, 6), ("RBC", 5, 5, 5, 9)),
        1: voc(("WBC", 10, 10, 30, 30), ("WBC", 40, 10, 60, 30)),
        2: voc(("WBC", 10, 10, 30, 30)),
        4: voc(("WBC", 10, 10, 30, 30)),
        5: voc(("WBC", 10, 10, 30, 30), ("WBC", 40, 10, 60, 30)),  # two white cells, one type: whose is it?
    }
    for number, text in annotations.items():
        (root / "Annotations" / f"BloodImage_{number:05d}.xml").write_text(text)
    for number in (0, 1, 2, 3, 5):
        Image.fromarray(field()).save(root / "JPEGImages" / f"BloodImage_{number:05d}.png")
    (root / "labels.csv").write_text(
        ',Image,Category\n,0,NEUTROPHIL\n,1,"NEUTROPHIL, EOSINOPHIL"\n,2,\n,4,BASOPHIL\n,5,MONOCYTE\n'
    )
    (root / "ImageSets/Main/train.txt").write_text("BloodImage_00000\n")
    (root / "ImageSets/Main/test.txt").write_text("BloodImage_00001\n")
    return root


def test_bccd_boxes_become_cells_of_their_field(fields: Path, tmp_path: Path) -> None:
    done = unpack("bccd", fields, tmp_path / "out", margin=0.0)
    assert done.labels == {"NEUTROPHIL": 1, "RBC": 1, "Platelets": 1, "WBC": 5}
    assert done.skipped == {
        "box without area, or outside its field": 1,
        "annotation without a field": 1,
        "field without an annotation": 1,
    }
    frame = draft(tmp_path / "out", site="x").manifest.frame.set_index("path")
    assert {path: (r["label"], r["slide"], r["split"]) for path, r in frame.iterrows()} == {
        "NEUTROPHIL/BloodImage_00000_box0.png": ("neutrophil", "BloodImage_00000", "train"),
        "RBC/BloodImage_00000_box1.png": ("erythrocyte", "BloodImage_00000", "train"),
        "Platelets/BloodImage_00000_box2.png": ("platelet", "BloodImage_00000", "train"),
        "WBC/BloodImage_00001_box0.png": ("leukocyte", "BloodImage_00001", "test"),
        "WBC/BloodImage_00001_box1.png": ("leukocyte", "BloodImage_00001", "test"),
        "WBC/BloodImage_00002_box0.png": ("leukocyte", "BloodImage_00002", None),
        "WBC/BloodImage_00005_box0.png": ("leukocyte", "BloodImage_00005", None),
        "WBC/BloodImage_00005_box1.png": ("leukocyte", "BloodImage_00005", None),
    }
    assert set(frame["source"]) == {"bccd"}
    cut = decode(tmp_path / "out/RBC/BloodImage_00000_box1.png")
    assert np.array_equal(cut, field()[10:20, 40:50])


def test_bccd_fields_are_refused_as_they_are(fields: Path) -> None:
    with pytest.raises(DataError, match="morphfed data unpack bccd"):
        draft(fields, site="x")


def test_bccd_damaged_annotation_is_named(fields: Path, tmp_path: Path) -> None:
    (fields / "Annotations/BloodImage_00002.xml").write_text(voc(("WBC", 1, 2, 3, 4)).replace("<xmax>3", "<xmax>wide"))
    with pytest.raises(DataError, match=r"BloodImage_00002\.xml is no Pascal VOC annotation"):
        unpack("bccd", fields, tmp_path / "out")
    assert not (tmp_path / "out" / "bccd.csv").exists()  # what was written is not taken for complete


def test_a_label_of_a_foreign_file_stays_below_the_folder(fields: Path, tmp_path: Path) -> None:
    (fields / "Annotations/BloodImage_00002.xml").write_text(voc(("../../evil", 1, 2, 9, 9), ("..", 1, 2, 9, 9)))
    unpack("bccd", fields, tmp_path / "out")
    assert (tmp_path / "out/evil/BloodImage_00002_box0.png").is_file()
    assert (tmp_path / "out/unnamed/BloodImage_00002_box1.png").is_file()


@pytest.fixture
def subset(tmp_path: Path) -> Path:
    root = tmp_path / "H_100X_C1"
    names = ["None", "Myeloblast", "Neutrophil"]
    for part, patient in (("train", "12"), ("test", "40")):
        (root / "Images" / part).mkdir(parents=True)
        (root / "json_labels").mkdir(exist_ok=True)
        Image.fromarray(field()).save(root / "Images" / part / f"{patient}_3_AML.png")
        content = {
            "images": [{"id": 7, "file_name": f"{patient}_3_AML.png"}, {"id": 8, "file_name": f"{patient}_4_AML.png"}],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 12, 8, 8]},
                {"id": 2, "image_id": 7, "category_id": 0, "bbox": [30.0, 20.0, 6.0, 4.0]},
                {"id": 3, "image_id": 8, "category_id": 2, "bbox": [1, 1, 5, 5]},
                {"id": 4, "image_id": 7, "category_id": 2, "bbox": [1, 1, 0, 5]},
            ],
        }
        (root / "json_labels" / f"{part}.json").write_text(json.dumps(content))
    return root


def test_leukemiaattri_boxes_patients_fields_and_split(subset: Path, tmp_path: Path) -> None:
    done = unpack("leukemiaattri", subset, tmp_path / "out", margin=0.0)
    assert done.labels == {"Myeloblast": 2, "None": 2}
    assert done.skipped == {"field that is not there, or there twice": 2, "box without area, or outside its field": 2}
    drafted = draft(tmp_path / "out", site="lahore")
    frame = drafted.manifest.frame.set_index("path")
    row = frame.loc["Myeloblast/test_40_3_AML_box0.png"]
    assert (row["label"], row["patient"], row["slide"], row["split"]) == ("myeloblast", "40", "40_3_AML", "test")
    assert np.array_equal(decode(tmp_path / "out/Myeloblast/train_12_3_AML_box0.png"), field()[12:20, 10:18])
    assert drafted.unmapped == {"None": 2}
    assert any(
        "label 'None' is mapped to no cell type: A cell of none of the set's types" in g for g in drafted.guesses
    )


def test_leukemiaattri_wants_one_subset(subset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="morphfed data unpack leukemiaattri"):
        draft(subset, site="x")
    other = tmp_path / "L_40X_C2" / "json_labels"
    other.mkdir(parents=True)
    (other / "train.json").write_text("{}")
    with pytest.raises(DataError, match=r"2 files train\.json.*name one sub-set"):
        unpack("leukemiaattri", tmp_path, tmp_path.parent / "elsewhere")
    with pytest.raises(DataError, match="its YOLO labels alone are not read"):
        unpack("leukemiaattri", subset / "Images", tmp_path / "out")
    with pytest.raises(DataError, match=r"train\.json is no COCO file: 'categories'"):
        unpack("leukemiaattri", other.parent, tmp_path / "out")


def test_unpacking_twice_or_into_the_source_is_refused(fields: Path, tmp_path: Path) -> None:
    unpack("bccd", fields, tmp_path / "out")
    with pytest.raises(DataError, match=r"bccd\.csv exists already"):
        unpack("bccd", fields, tmp_path / "out")
    with pytest.raises(DataError, match="lies inside"):
        unpack("bccd", fields, fields / "cells")
    with pytest.raises(DataError, match="does not exist"):
        unpack("bccd", tmp_path / "nowhere", tmp_path / "other")
    with pytest.raises(ConfigError, match=r"Did you mean 'bccd'"):
        unpack("bcd", fields, tmp_path / "other")
    with pytest.raises(ConfigError, match="margin"):
        unpack("bccd", fields, tmp_path / "other", margin=-0.5)


def test_a_folder_without_cells_writes_no_table(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.xml annotation"):
        unpack("bccd", tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "BloodImage_00000.xml").write_text(voc())
    with pytest.raises(DataError, match="There is no cell to write .*1 × annotation without a field"):
        unpack("bccd", tmp_path / "empty", tmp_path / "out")


def test_command_says_what_was_written(fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("bccd", fields, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "bccd: 8 pictures" in said
    assert "skipped 1: box without area" in said
    assert f"next: morphfed data init {tmp_path / 'out'} --source bccd" in said


@pytest.mark.shared
def test_the_real_fields_of_bccd(shared_data: Path, tmp_path: Path) -> None:
    """A tenth of them: 367 fields would take half a minute."""
    source = shared_data / "cells" / "bccd_fields"
    some = tmp_path / "some"
    for number in range(36):
        for part, suffix in (("Annotations", "xml"), ("Original_Images", "jpg")):
            file = source / part / f"BloodImage_{number:05d}.{suffix}"
            if file.exists():
                (some / part).mkdir(parents=True, exist_ok=True)
                (some / part / file.name).symlink_to(file)
    (some / "labels.csv").symlink_to(source / "labels.csv")
    done = unpack("bccd", some, tmp_path / "out")
    written = sum(
        (some / "Annotations" / f.name).read_text().count("<object>") for f in (some / "Annotations").iterdir()
    )
    assert done.labels.total() + done.skipped["box without area, or outside its field"] == written
    assert done.labels["NEUTROPHIL"] > 10
    frame = draft(tmp_path / "out", site="bccd").manifest.frame
    assert frame["label"].notna().all()
    assert (frame["width"] == frame["height"]).all()
