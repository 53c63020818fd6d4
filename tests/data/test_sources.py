"""Each adapter on a small tree with the faults that such trees have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from morphfed.core.errors import DataError
from morphfed.data.sources import SOURCES, Folder, Note, Record, Skipped


def plant(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not looked at by adapters")
    return root


def read(
    name: str, root: Path, options: Mapping[str, str] | None = None
) -> tuple[list[Record], dict[str, str], list[str]]:
    """Records, skipped file → reason, notes."""
    items = list(SOURCES[name]().records(Folder.scan(root), options or {}))
    records = [i for i in items if isinstance(i, Record)]
    skipped = {i.path.relative_to(root).as_posix(): i.reason for i in items if isinstance(i, Skipped)}
    return records, skipped, [i.text for i in items if isinstance(i, Note)]


def labels(records: Iterable[Record], root: Path) -> dict[str, str]:
    return {r.path.relative_to(root).as_posix(): r.source_label for r in records}


def detected(root: Path) -> dict[str, float]:
    folder = Folder.scan(root)
    return {name: kind().detect(folder) for name, kind in SOURCES.items()}


def winner(root: Path) -> str:
    rated = detected(root)
    return max(rated, key=lambda name: rated[name])


def test_registry_has_the_five_and_a_base_for_prefixes() -> None:
    assert {"folders", "table", "pbc", "cellavision", "segmentation_wbc", "bccd_crops"} <= set(SOURCES.names())
    for name, kind in SOURCES.items():
        assert kind.name == name
        assert kind.title
        assert kind.layout


def test_scan_sorts_images_from_litter_and_says_why(tmp_path: Path) -> None:
    plant(
        tmp_path,
        *("a/1.JPG", "a/2.TIFF", "a/Thumbs.db", "a/._1.JPG", "__MACOSX/a/1.JPG", "a/.hidden.png"),
        *("notes.txt", "labels.CSV", ".cache/3.png"),
    )
    folder = Folder.scan(tmp_path)
    assert [p.name for p in folder.images] == ["1.JPG", "2.TIFF"]
    assert [p.name for p in folder.tables] == ["labels.CSV"]
    assert Counter(s.reason for s in folder.skipped) == {
        "left by macOS (__MACOSX, ._*)": 2,
        "left by Windows (Thumbs.db, desktop.ini)": 1,
        "hidden": 2,
        "not an image (.txt)": 1,
    }


def test_scan_follows_a_link_once_and_never_in_circles(tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "basophil/1.png")
    site = tmp_path / "site"
    site.mkdir()
    (site / "cells").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (site / "again").symlink_to(site, target_is_directory=True)
    folder = Folder.scan(site)
    assert [p.relative_to(site).as_posix() for p in folder.images] == ["cells/basophil/1.png"]
    assert [s.reason for s in folder.skipped] == ["link to a folder that was read already"]


def test_scan_refuses_what_is_no_folder(tmp_path: Path) -> None:
    plant(tmp_path, "x.png")
    for path, message in ((tmp_path / "x.png", "is a file"), (tmp_path / "absent", "does not exist")):
        with pytest.raises(DataError, match=message):
            Folder.scan(path)


def test_folders_by_class_nested_twice_and_inside_splits(tmp_path: Path) -> None:
    plant(
        tmp_path,
        *("train/Neutrophil/1.png", "Test-A/Basophil/2.png", "val/Basophil/Basophil/3.png"),
        *("BAS/0001-1000/BAS_1.jpg", "stray.png", "Patient_07/Signed slides/Lymphocyte/4.jpg"),
    )
    records, skipped, _ = read("folders", tmp_path)
    assert labels(records, tmp_path) == {
        "BAS/0001-1000/BAS_1.jpg": "0001-1000",  # BAS is LMU's code; most folders here speak everyday English
        "Patient_07/Signed slides/Lymphocyte/4.jpg": "Lymphocyte",
        "Test-A/Basophil/2.png": "Basophil",
        "train/Neutrophil/1.png": "Neutrophil",
        "val/Basophil/Basophil/3.png": "Basophil",
    }
    assert skipped == {"stray.png": "in no class folder"}
    assert [r.split for r in records] == [None, None, "test", "train", "validation"]
    assert [r.patient for r in records] == [None, "Patient_07", None, None, None]


def test_folders_finds_the_class_above_a_range_of_numbers(tmp_path: Path) -> None:
    plant(tmp_path, "bone/BAS/0001-1000/BAS_1.jpg", "bone/PLM/0001-1000/PLM_1.jpg", "bone/PEB/1.jpg")
    records, _, _ = read("folders", tmp_path)
    assert [r.source_label for r in records] == ["BAS", "PEB", "PLM"]


def test_folders_needs_a_name_that_says_something(tmp_path: Path) -> None:
    assert detected(plant(tmp_path / "a", "images/1.png", "images/2.png"))["folders"] == 0
    assert detected(plant(tmp_path / "b", "1.png"))["folders"] == 0
    assert detected(plant(tmp_path / "c", "monocytes/1.png"))["folders"] == pytest.approx(0.7)
    assert detected(plant(tmp_path / "d", "typ-a/1.png", "typ-b/2.png"))["folders"] == pytest.approx(0.3)


def test_pbc_needs_its_own_folders_and_prefixes(tmp_path: Path) -> None:
    pbc = plant(
        tmp_path / "p" / "PBC_dataset_normal_DIB",
        *("ig/MMY_1.jpg", "ig/MY_2.jpg", "ig/PMY_3.jpg", "neutrophil/SNE_4.jpg", "lymphocyte/LY_5.jpg"),
    )
    assert winner(pbc) == winner(pbc.parent) == "pbc"
    records, _, _ = read("pbc", pbc)
    assert sorted(r.source_label for r in records) == ["LY", "MMY", "MY", "PMY", "SNE"]
    flat = plant(tmp_path / "flat", "MMY_1.jpg", "SNE_4.jpg", "LY_5.jpg")
    assert winner(flat) == "cellavision"
    assert detected(flat)["pbc"] == 0


def test_cellavision_agreeing_folders_yield_to_the_finer_prefix(tmp_path: Path) -> None:
    agreeing = plant(tmp_path / "a", "neutrophils/SNE_1.jpg", "neutrophils/BNE_2.jpg", "monocyte/MO_3.jpg")
    assert winner(agreeing) == "cellavision"


def test_cellavision_contradicting_folders_are_a_draw(tmp_path: Path) -> None:
    folder = plant(tmp_path, "blast/MO_1.jpg", "monocyte/MO_2.jpg", "lymphocyte/LY_3.jpg")
    rated = detected(folder)
    assert rated["cellavision"] == pytest.approx(rated["folders"])


def test_cellavision_skips_names_without_a_prefix(tmp_path: Path) -> None:
    records, skipped, _ = read("cellavision", plant(tmp_path, "SNE_1.jpg", "XYZ_2.jpg", "overview.jpg"))
    assert [r.source_label for r in records] == ["SNE", "XYZ"]
    assert skipped == {"overview.jpg": "no prefix in the file name"}


def segmentation(root: Path, number: int, rows: str, files: Iterable[str]) -> Path:
    root.mkdir(exist_ok=True)
    (root / f"Class Labels of Dataset {number}.csv").write_text(f"image ID,class label\n{rows}", encoding="utf-8")
    return plant(root / f"Dataset {number}", *files)


def test_segmentation_wbc_takes_no_mask_and_keeps_a_missing_image(tmp_path: Path) -> None:
    folder = segmentation(tmp_path / "s", 1, "1,2\n2,1\n3,5\n", ["001.bmp", "001.png", "002.BMP", "009.bmp"])
    assert winner(folder) == "segmentation_wbc"
    records, skipped, notes = read("segmentation_wbc", folder)
    assert labels(records, folder) == {"001.bmp": "2", "002.BMP": "1", "003.bmp": "5"}
    assert skipped == {
        "001.png": "mask of nucleus and cytoplasm",
        "009.bmp": "not listed in Class Labels of Dataset 1.csv",
    }
    assert notes == ["Class Labels of Dataset 1.csv lists image 3, which does not exist; its row is kept"]


def test_segmentation_wbc_parent_needs_to_know_which(tmp_path: Path) -> None:
    segmentation(tmp_path, 1, "1,2\n", ["001.bmp"])
    segmentation(tmp_path, 2, "1,3\n", ["001.bmp"])
    with pytest.raises(DataError, match="holds 2 data sets"):
        read("segmentation_wbc", tmp_path)
    records, skipped, _ = read("segmentation_wbc", tmp_path, {"dataset": "2"})
    assert labels(records, tmp_path) == {"Dataset 2/001.bmp": "3"}
    assert skipped == {"Dataset 1/001.bmp": "not in Dataset 2"}
    with pytest.raises(DataError, match="no data set 3"):
        read("segmentation_wbc", tmp_path, {"dataset": "3"})


def test_segmentation_wbc_damaged_table_names_the_row(tmp_path: Path) -> None:
    folder = segmentation(tmp_path, 1, "1,2\ntwo,1\n", ["001.bmp"])
    with pytest.raises(DataError, match=r"row 3: 'two,1'"):
        read("segmentation_wbc", folder)


def test_bccd_crops_of_one_field_share_it(tmp_path: Path) -> None:
    plant(tmp_path, "neutrophil/BloodImage_00008_1.jpg", "eosinophil/BloodImage_00008_2.jpg")
    plant(tmp_path, "monocyte/BloodImage_00009_1.jpg")
    assert winner(tmp_path) == "bccd_crops"
    records, _, _ = read("bccd_crops", tmp_path)
    assert {r.source_label: r.slide for r in records} == {
        "neutrophil": "BloodImage_00008",
        "eosinophil": "BloodImage_00008",
        "monocyte": "BloodImage_00009",
    }


def table(root: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text.encode(encoding))
    return root


def test_table_reads_paths_patients_splits_and_scale(tmp_path: Path) -> None:
    plant(tmp_path, "img/1.png", "img/2.png", "img/spare.png")
    table(tmp_path, "image_name;cell_type;patient_id;split;mpp\nimg\\1.png;Blast;007;val;0.1\n2;LY;;test;\n")
    assert winner(tmp_path) == "table"
    records, skipped, notes = read("table", tmp_path)
    assert records == [
        Record(tmp_path / "img/1.png", "Blast", "007", None, 0.1, "validation"),
        Record(tmp_path / "img/2.png", "LY", None, None, None, "test"),
    ]
    assert skipped == {"img/spare.png": "not listed in labels.csv"}
    assert "path from 'image_name', label from 'cell_type', patient from 'patient_id'" in notes[0]


def test_table_loses_no_row(tmp_path: Path) -> None:
    plant(tmp_path, "1.png", "2.png", "3.png", "4.png")
    rows = ["1.png,a", "gone.png,a", "2.png,", "3.png,a", "3.png,b", "4.png,a", "4.png,a", ",a", "", "2.png,"]
    table(tmp_path, "file,label\n" + "\n".join(rows) + "\n")
    records, skipped, notes = read("table", tmp_path)
    assert labels(records, tmp_path) == {"1.png": "a", "gone.png": "a", "4.png": "a"}
    assert skipped == {
        "2.png": "no label in labels.csv",
        "3.png": "different labels in labels.csv",
        "4.png": "listed again in labels.csv",
    }
    assert "labels.csv lists 1 files that are not there; their rows are kept, without size and hash" in notes
    assert "labels.csv has 1 rows that name no file; they are left out" in notes


def test_table_with_a_foreign_split_column_says_that_it_is_not_used(tmp_path: Path) -> None:
    plant(tmp_path, "1.png", "2.png")
    records, _, notes = read("table", table(tmp_path, "file,label,set\n1.png,a,train\n2.png,a,fold B\n"))
    assert [r.split for r in records] == [None, None]
    assert any("split not used, because 'fold B'" in note for note in notes)


def test_table_windows_text_and_quoted_names(tmp_path: Path) -> None:
    plant(tmp_path, "Höhe, 1.png")
    records, _, _ = read("table", table(tmp_path, 'Datei,Art\n"Höhe, 1.png",Stab\n', encoding="cp1252"), {
        "table": "labels.csv", "path_column": "Datei", "label_column": "Art",
    })  # fmt: skip
    assert labels(records, tmp_path) == {"Höhe, 1.png": "Stab"}


def test_table_takes_the_one_that_says_more_and_asks_when_equal(tmp_path: Path) -> None:
    plant(tmp_path, "1.png")
    table(tmp_path, "path,label\n1.png,a\n", "plain.csv")
    table(tmp_path, "path\tlabel\tpatient\n1.png\tb\tP1\n", "full.tsv")
    records, skipped, _ = read("table", tmp_path)
    assert (records[0].source_label, records[0].patient) == ("b", "P1")
    assert skipped == {"plain.csv": "another table"}
    table(tmp_path, "path,label\n1.png,c\n", "full.tsv")
    with pytest.raises(DataError, match=r"several tables: full\.tsv, plain\.csv"):
        read("table", tmp_path)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("file,colour\n1.png,a\n", {}, "no table with a path and a label"),
        ("file,colour\n1.png,a\n", {"table": "labels.csv"}, "has no label column: it has 'file', 'colour'"),
        ("file,kind\n1.png,a\n", {"label_column": "kin"}, r"no column 'kin'\. Did you mean 'kind'"),
        ("file,label\n1.png,a,b\n", {}, "row 2: 3 cells"),
        ("file,label,mpp\n1.png,a,thin\n", {}, "row 2: 'thin' is not a number"),
        ("file,label\n1.png,a\n", {"table": "label.csv"}, r"Did you mean 'labels\.csv'"),
    ],
)
def test_table_faults_are_named(tmp_path: Path, text: str, options: dict[str, str], message: str) -> None:
    plant(tmp_path, "1.png")
    with pytest.raises(DataError, match=message):
        read("table", table(tmp_path, text), options)


def test_table_that_finds_no_file_is_not_chosen(tmp_path: Path) -> None:
    plant(tmp_path, "BloodImage_00000.png")
    assert detected(table(tmp_path, ",Image,Category\n,0,NEUTROPHIL\n"))["table"] == 0


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("PBC_dataset_normal_DIB", "pbc"),
        ("segmentation_WBC/Dataset 1", "segmentation_wbc"),
        ("segmentation_WBC/Dataset 2", "segmentation_wbc"),
        ("bccd_crops", "bccd_crops"),
    ],
)
def test_real_layouts_have_one_clear_reader(shared_data: Path, folder: str, source: str) -> None:
    rated = detected(shared_data / "cells" / folder)
    others = [confidence for name, confidence in rated.items() if name != source]
    assert rated[source] > max(others) + 0.1


def test_a_missing_file_is_not_replaced_by_one_of_the_same_name_in_another_folder(tmp_path: Path) -> None:
    for folder in ("neutrophil", "lymphocyte"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "lymphocyte" / "P00_0000.jpg")
    (tmp_path / "labels.csv").write_text(
        "path,label\nneutrophil/P00_0000.jpg,neutrophil\nlymphocyte/P00_0000.jpg,lymphocyte\n"
    )
    rows = [r for r in SOURCES["table"]().records(Folder.scan(tmp_path), {}) if isinstance(r, Record)]
    found = {str(r.path.relative_to(tmp_path)): r.source_label for r in rows}
    assert found == {"neutrophil/P00_0000.jpg": "neutrophil", "lymphocyte/P00_0000.jpg": "lymphocyte"}


def test_images_and_masks_in_two_folders(tmp_path: Path) -> None:
    plant(
        tmp_path, "images/Patient_01/a.jpg", "masks/Patient_01/a_mask.png", "images/Patient_02/a.tif",
        "masks/Patient_02/A.png", "images/b.png", "masks/c.png", "overview.png", "images/Patient_02/a.bmp",
        "masks/Patient_01/a.png", "notes.csv",
    )  # fmt: skip
    assert winner(tmp_path) == "image_masks"
    records, skipped, notes = read("image_masks", tmp_path)
    found = {r.path.relative_to(tmp_path).as_posix(): r for r in records}
    assert set(found) == {"images/Patient_01/a.jpg", "images/Patient_02/a.bmp", "images/b.png"}
    assert {r.source_label for r in records} == {"image"}
    assert found["images/Patient_01/a.jpg"].mask == tmp_path / "masks/Patient_01/a.png"
    assert found["images/Patient_01/a.jpg"].patient == "Patient_01"
    assert found["images/Patient_02/a.bmp"].mask == tmp_path / "masks/Patient_02/A.png"
    assert found["images/b.png"].mask is None
    assert skipped == {
        "notes.csv": "table, not an image",
        "overview.png": "in neither the images' folder nor the masks'",
        "images/Patient_02/a.tif": "another image has this name with another suffix",
        "masks/Patient_01/a_mask.png": "mask of an image that has another",
        "masks/c.png": "mask without an image",
    }
    assert "2 of 3 images have a mask of the same name" in notes
    assert any("a.jpg has 2 masks (a.png and a_mask.png); the first is taken" in note for note in notes)


def test_folders_of_images_and_masks_by_other_names(tmp_path: Path) -> None:
    plant(tmp_path, "raw/train/neutrophil/1.png", "outlines/train/neutrophil/1.png", "raw/test/monocyte/2.png")
    records, _, _ = read("image_masks", tmp_path, {"images": "raw", "masks": "outlines"})
    assert [(r.source_label, r.split, r.mask is not None) for r in records] == [
        ("monocyte", "test", False),
        ("neutrophil", "train", True),
    ]


def test_masks_of_the_public_set(tmp_path: Path) -> None:
    plant(tmp_path, "Dataset 1/001.bmp", "Dataset 1/001.png", "Dataset 1/002.bmp")
    (tmp_path / "Class Labels of Dataset 1.csv").write_text("image ID,class label\n1,1\n2,2\n")
    records, _, _ = read("segmentation_wbc", tmp_path / "Dataset 1")
    assert [r.mask and r.mask.name for r in records] == ["001.png", None]
    assert SOURCES["segmentation_wbc"].mask_values == {"nucleus": 255, "cytoplasm": 128}
