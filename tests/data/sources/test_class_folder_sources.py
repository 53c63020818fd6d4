"""Sets with a folder for each class: LMU, MLL23, INT-20, Bodzas, bone marrow, Hehr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from morphfed.data.drafting import draft, find_sites

MACOS = "left by macOS (__MACOSX, ._*)"


def test_lmu_as_published_and_as_mirrored(tree: Any) -> None:
    site = tree("AML-Cytomorphology_LMU").plant(
        *("BAS/BAS_0001.tiff", "BAS/BAS_0002 (2021_05_21 20_42_39 UTC).tiff", "NGS/NGS_8484.TIF", "PMB/PMB_0018.tiff"),
        *("__MACOSX/BAS/._BAS_0001.tiff", "KSC/._KSC_0001.tiff", "LYA/Thumbs.db", "overview.tiff", "annotations.dat"),
    )
    assert site.winner() == "lmu"
    found = site.read("lmu")
    assert found.nodes == {
        "BAS/BAS_0001.tiff": "basophil",
        "BAS/BAS_0002 (2021_05_21 20_42_39 UTC).tiff": "basophil",
        "NGS/NGS_8484.TIF": "neutrophil_segmented",
        "PMB/PMB_0018.tiff": "promyelocyte_atypical",
    }
    assert set(found.column("patient").values()) == {None}
    assert found.skipped == {
        "__MACOSX/BAS/._BAS_0001.tiff": MACOS,
        "KSC/._KSC_0001.tiff": MACOS,
        "LYA/Thumbs.db": "left by Windows (Thumbs.db, desktop.ini)",
        "annotations.dat": "not an image (.dat)",
        "overview.tiff": "in no class folder",
    }


def test_lmu_mirror_leaves_out_the_augmented_copies(tree: Any) -> None:
    site = tree("mirror").plant(
        *("data/data/MYO/MYO_0001.tiff", "data/data/MYO/MYO_0002.tiff", "data/augmented/MYO/MYO_0001_90.tiff"),
        "data/data/augmented/EOS/EOS_0001.tiff",
    )
    assert site.winner() == "lmu"
    found = site.read("lmu")
    assert found.labels == {"data/data/MYO/MYO_0001.tiff": "MYO", "data/data/MYO/MYO_0002.tiff": "MYO"}
    assert list(found.skipped.values()) == ["augmented copy"] * 2


def test_lmu_rgba_tiff_has_its_published_scale(tmp_path: Path) -> None:
    file = tmp_path / "lmu" / "LYT" / "LYT_0001.tiff"
    file.parent.mkdir(parents=True)
    Image.new("RGBA", (400, 400), (90, 30, 120, 255)).save(file)
    drafted = draft(tmp_path / "lmu", site="munich")
    row = drafted.manifest.frame.iloc[0]
    assert (row["source"], row["label"], row["width"]) == ("lmu", "lymphocyte_typical", 400)
    assert abs(1 / row["um_per_px"] - 13.8) < 0.05  # px/µm as published


def test_lmu_and_bone_marrow_share_codes_and_are_told_apart_by_their_numbers(tree: Any) -> None:
    codes = ("BAS", "EOS", "LYT", "MON")
    assert tree("a").plant(*(f"{c}/{c}_0001.tiff" for c in codes)).winner() == "lmu"
    assert tree("b").plant(*(f"{c}/0001-1000/{c}_00001.jpg" for c in codes)).winner() == "bmc"


def test_bone_marrow_finds_the_class_above_the_range(tree: Any) -> None:
    site = tree("bone_marrow_cell_dataset").plant(
        *("MYB/5001-6000/MYB_05527.jpg", "ABE/ABE_00001.jpg", "NIF/0001-1000/NIF_00007.JPG", "FGC/1-9/FGC_00001.jpg"),
        "PEB/Thumbs.db",
    )
    assert site.winner() == "bmc"
    found = site.read("bmc")
    assert found.nodes == {
        "MYB/5001-6000/MYB_05527.jpg": "myelocyte",  # damaged as published; the data check opens it and says so
        "ABE/ABE_00001.jpg": "eosinophil_abnormal",
        "NIF/0001-1000/NIF_00007.JPG": "unknown",
        "FGC/1-9/FGC_00001.jpg": "promyelocyte_atypical",
    }


def test_mll23_nested_once_or_twice_with_suffixes_in_any_case(tree: Any) -> None:
    site = tree("MLL23").plant(
        *("basophil/basophil/basophil_0001.TIF", "hairy_cell/hairy_cell_3265.tif", "normoblast/normoblast_0001.tiff"),
        *("promyelocyte_atypical/promyelocyte_atypical/promyelocyte_atypical_0001.TIF", "basophil.zip"),
        *("__MACOSX/basophil/._basophil_0001.TIF", "README.md", "metadata.csv"),
    )
    assert site.winner() == "mll23"
    found = site.read("mll23")
    assert found.nodes == {
        "basophil/basophil/basophil_0001.TIF": "basophil",
        "hairy_cell/hairy_cell_3265.tif": "hairy_cell",
        "normoblast/normoblast_0001.tiff": "erythroblast",
        "promyelocyte_atypical/promyelocyte_atypical/promyelocyte_atypical_0001.TIF": "promyelocyte_atypical",
    }
    assert found.skipped == {
        "basophil.zip": "not an image (.zip)",
        "__MACOSX/basophil/._basophil_0001.TIF": MACOS,
        "README.md": "not an image (.md)",
        "metadata.csv": "table, not an image",
    }


def test_files_named_by_somebody_else_in_folders_with_everyday_names_are_not_mll23(tree: Any) -> None:
    site = tree("ours").plant("basophil/0001.tif", "monocyte/0001.tif", "lymphocyte/0002.tif")
    assert site.winner() == "folders"


def test_int20_folders(tree: Any) -> None:
    site = tree("INT-20").plant("01-NORMO/a.tif", "17-Kernschatten/b.tif", "22-Atyp-PMYEL/22-Atyp-PMYEL/c.TIF", "d.tif")
    assert site.winner() == "int20"
    found = site.read("int20")
    assert list(found.nodes.values()) == ["erythroblast", "smudge", "promyelocyte_atypical"]
    assert found.skipped == {"d.tif": "in no class folder"}


def test_bodzas_spelling(tree: Any) -> None:
    site = tree("bodzas").plant(
        *("Labelled/Basophile/1.bmp", "Labelled/Neutrophile Band/2.BMP", "Labelled/Neutrophile Segment/3.bmp"),
        *("Labelled/Normoblast/4.bmp", "Labelled/Lymphoblast/5.bmp", "Unlabelled/6.bmp"),
    )
    assert site.winner() == "bodzas"
    found = site.read("bodzas")
    assert list(found.nodes.values()) == [
        *("basophil", "lymphoblast", "neutrophil_banded", "neutrophil_segmented", "erythroblast"),
    ]
    assert found.skipped == {"Unlabelled/6.bmp": "in no class folder"}
    assert tree("plain").plant("Basophile/1.bmp", "Eosinophile/2.bmp").winner() == "folders"


def test_hehr_has_patients_and_no_cell_types(tree: Any) -> None:
    site = tree("data").plant(
        *("control/ABF/image_1.tif", "control/ABF/image_2.tif", "PML_RARA/AEC/image_1.tif"),
        *("metadata.csv", "NPM1/image_9.tif"),
    )
    assert site.winner() == "hehr"
    found = site.read("hehr")
    assert found.column("patient") == {
        "control/ABF/image_1.tif": "ABF",
        "control/ABF/image_2.tif": "ABF",
        "PML_RARA/AEC/image_1.tif": "AEC",
    }
    assert set(found.nodes.values()) == {None}
    assert found.skipped == {
        "NPM1/image_9.tif": "not in a DIAGNOSIS/PATIENT folder",
        "metadata.csv": "table, not an image",
    }
    assert find_sites(site.root) == {"data": site.root}


def test_hehr_draft_says_why_its_labels_are_no_cell_types(tmp_path: Path) -> None:
    file = tmp_path / "set" / "PML_RARA" / "AEC" / "image_1.tif"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(file)
    drafted = draft(tmp_path / "set", site="mll")
    assert drafted.unmapped == {"PML_RARA": 1}
    said = "label 'PML_RARA' is mapped to no cell type: The patient's genetic diagnosis, not what the cell is."
    assert said in drafted.guesses
