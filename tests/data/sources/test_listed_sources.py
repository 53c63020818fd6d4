"""Sets whose labels or splits stand in tables or JSON: Chula, WBCBench, WBCAtt, Raabin, LISC."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from morphfed.core.errors import ConfigError, DataError

CHULA = """\
Order.jpg,Original name(label machine),Summary by 5 experts
000001.jpg,SNE,SNE\t
000002.jpg,MO,Monocyte\x20
000003.jpg,BL,Myeolblast
000004.jpg,EO,Eosinophill
000005.jpg,VLY,Atypical lymphocyte/Lymphocyte
000006.jpg,PMY,LQI
000007.jpg,BNE,
000008.jpg,BA,Basophil
"""


@pytest.fixture
def chula(tree: Any) -> Any:
    site = tree("Chula").plant(*(f"00000{i}.jpg" for i in range(1, 8)), "000099.jpg")
    return site.plant("labels.csv", text=CHULA)


def test_chula_experts_with_their_typos(chula: Any) -> None:
    assert chula.winner() == "chula"
    found = chula.read("chula")
    assert found.nodes == {
        "000001.jpg": "neutrophil_segmented",
        "000002.jpg": "monocyte",
        "000003.jpg": "myeloblast",
        "000004.jpg": "eosinophil",
        "000005.jpg": "lymphocyte",
        "000006.jpg": "artefact",
        "000008.jpg": "basophil",
    }
    assert found.skipped == {"000007.jpg": "no label of the experts", "000099.jpg": "not listed in labels.csv"}
    assert found.notes == ["labels.csv lists 1 pictures that are not there; their rows are kept"]


def test_chula_machine_labels(chula: Any) -> None:
    found = chula.read("chula", {"label": "machine"})
    assert found.labels["000005.jpg"] == "VLY"
    assert found.nodes["000007.jpg"] == "neutrophil_banded"
    with pytest.raises(ConfigError, match="label = 'both'"):
        chula.read("chula", {"label": "both"})


@pytest.fixture
def wbcbench(tree: Any) -> Any:
    site = tree("wbc-bench-2026").plant(
        *("phase1/00001.jpg", "phase2/train/00001.jpg", "phase2/eval/00007.jpg", "phase2/test/00009.jpg", "demo.jpg")
    )
    site.plant("phase1_label.csv", text="ID,labels,split\n00001.jpg,SNE,phase1_train\n")
    site.plant("phase2_train.csv", text=",ID,labels,split\n0,00001.jpg,PLY,phase2_train\n1,00002,BL,phase2_train\n")
    site.plant("phase2_eval.csv", text="ID,labels,split\n00007.jpg,VLY,phase2_eval\n")
    return site.plant("phase2_test.csv", text="ID,labels,split\n00009.jpg,,\n")


def test_wbcbench_equal_names_in_two_phases_stay_apart(wbcbench: Any) -> None:
    assert wbcbench.winner() == "wbcbench"
    found = wbcbench.read("wbcbench")
    assert {path: (found.nodes[path], r.split) for path, r in found.records.items()} == {
        "phase1/00001.jpg": ("neutrophil_segmented", "train"),
        "phase2/train/00001.jpg": ("prolymphocyte", "train"),
        "phase2/train/00002.jpg": ("blast", "train"),
        "phase2/eval/00007.jpg": ("lymphocyte_atypical", "validation"),
    }
    assert found.skipped == {"phase2/test/00009.jpg": "no label published", "demo.jpg": "in none of the tables"}
    assert found.notes == ["the tables list 1 pictures that are not there; labelled rows are kept"]
    assert set(wbcbench.read("wbcbench", {"use_split": "no"}).column("split").values()) == {None}


def test_wbcatt_gives_pbc_its_official_split(tree: Any) -> None:
    site = tree("data").plant(
        *(f"PBC_dataset_normal_DIB/{n}.jpg" for n in ("neutrophil/BNE_7323", "neutrophil/SNE_1", "basophil/BA_2")),
        *(f"PBC_dataset_normal_DIB/{n}.jpg" for n in ("ig/MMY_3", "ig/PMY_5", "lymphocyte/LY_4")),
    )
    assert site.winner() == "pbc"
    header = "img_name,label,cell_size,path\n"
    rows = {
        "train": "BNE_7323.jpg,Neutrophil,big,PBC_dataset_normal_DIB/neutrophil/BNE_7323.jpg\n",
        "val": "SNE_1.jpg,Neutrophil,big,PBC_dataset_normal_DIB/neutrophil/SNE_1.jpg\n",
        "test": "LY_4.jpg,Lymphocyte,small,PBC_dataset_normal_DIB/lymphocyte/LY_4.jpg\n"
        "MO_9.jpg,Monocyte,small,PBC_dataset_normal_DIB/monocyte/MO_9.jpg\n",
    }
    for part, text in rows.items():
        site.plant(f"submission/pbc_attr_v1_{part}.csv", text=header + text)
    site.plant("submission/re-annotation/pbc_attr_reannotations.csv", text=header)
    found = site.read("wbcatt")
    root = "PBC_dataset_normal_DIB/"
    assert {path.removeprefix(root): (found.nodes[path], r.split) for path, r in found.records.items()} == {
        "neutrophil/BNE_7323.jpg": ("neutrophil_banded", "train"),
        "neutrophil/SNE_1.jpg": ("neutrophil_segmented", "validation"),
        "lymphocyte/LY_4.jpg": ("lymphocyte_typical", "test"),
    }
    assert Counter(found.skipped.values()) == {"not listed by WBCAtt": 3, "another table": 1}
    assert found.notes == ["WBCAtt lists 1 pictures that are not there"]


def test_wbcatt_tables_make_its_source_the_surer_one(tree: Any) -> None:
    names = [f"neutrophil/{p}_{i}.jpg" for i in range(5) for p in ("BNE", "SNE")]
    site = tree("both").plant(*(f"PBC_dataset_normal_DIB/{name}" for name in names))
    for part in ("train", "val", "test"):
        rows = "".join(f"{n.split('/')[1]},Neutrophil,PBC_dataset_normal_DIB/{n}\n" for n in names)
        site.plant(f"submission/pbc_attr_v1_{part}.csv", text="img_name,label,path\n" + rows)
    assert site.winner() == "wbcatt"


def test_raabin_folders_with_their_split_and_the_smear_in_the_name(tree: Any) -> None:
    site = tree("Raabin").plant(
        *(
            "Train/Neutrophil/95-9-3-4_30_1.jpg",
            "Train/Neutrophil/95-9-3-4_31_2.jpg",
            "Test-A/Basophil/95-8-1-1_1_1.jpg",
        ),
        *("TestB/Lymphocyte/97-1-2-3_7_1.JPG", "TestB/Monocyte/Thumbs.db"),
    )
    assert site.winner() == "raabin"
    found = site.read("raabin")
    assert {path: (found.nodes[path], r.slide, r.split) for path, r in found.records.items()} == {
        "Train/Neutrophil/95-9-3-4_30_1.jpg": ("neutrophil", "95-9-3-4", "train"),
        "Train/Neutrophil/95-9-3-4_31_2.jpg": ("neutrophil", "95-9-3-4", "train"),
        "Test-A/Basophil/95-8-1-1_1_1.jpg": ("basophil", "95-8-1-1", "test"),
        "TestB/Lymphocyte/97-1-2-3_7_1.JPG": ("lymphocyte", "97-1-2-3", "test"),
    }
    assert set(found.column("patient").values()) == {None}
    assert found.notes == [
        "slide from the file name for 4 images: a guess, what its parts mean is not published",
    ]


def packed(site: Any, names: dict[str, dict[str, int]], missing: int = 0) -> Any:
    for part, labels in names.items():
        site.plant(*(f"{part}/{name}" for name in list(labels)[missing:]))
        site.plant(f"{part}.json", text=json.dumps(labels))
    return site


def test_raabin_json_codes(tree: Any) -> None:
    site = packed(
        tree("x"), {"Train": {"95-9-3-4_30_1.jpg": 1, "95-9-3-4_30_2.jpg": 2}, "Test": {"95-8-1-1_1_1.jpg": 5}}
    )
    site.plant("Train/95-0-0-0_1_1.jpg")
    assert site.winner() == "raabin"
    found = site.read("raabin")
    assert {path: (found.nodes[path], r.slide, r.split) for path, r in found.records.items()} == {
        "Train/95-9-3-4_30_1.jpg": ("neutrophil", "95-9-3-4", "train"),
        "Train/95-9-3-4_30_2.jpg": ("lymphocyte", "95-9-3-4", "train"),
        "Test/95-8-1-1_1_1.jpg": ("basophil", "95-8-1-1", "test"),
    }
    assert found.skipped["Train/95-0-0-0_1_1.jpg"] == "not listed in Train.json or Test.json"


def test_lisc_is_packed_alike_and_told_by_its_name(tree: Any) -> None:
    names = {"Train": {"1.bmp": 3, "2.bmp": 4, "9.bmp": 1}, "Test": {"3.bmp": 5, "8.bmp": 2}}
    site = packed(tree("LISC"), names, missing=1)
    assert site.winner() == "lisc"
    found = site.read("lisc")
    assert {path: (found.nodes[path], r.split) for path, r in found.records.items()} == {
        "Train/2.bmp": ("eosinophil", "train"),
        "Train/9.bmp": ("neutrophil", "train"),
        "Test/8.bmp": ("lymphocyte", "test"),
    }
    assert sorted(found.notes) == [
        "Test.json lists 1 images that are not there",
        "Train.json lists 1 images that are not there",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"1.bmp": 6}', r"'1\.bmp' has the code 6"), ("[1]", "no object"), ("{", "cannot be read as JSON")],
)
def test_damaged_json_is_named(tree: Any, text: str, message: str) -> None:
    site = tree("LISC").plant("Train/1.bmp").plant("Train.json", text=text)
    with pytest.raises(DataError, match=message):
        site.read("lisc")


def test_lisc_without_its_files_says_what_to_do(tree: Any) -> None:
    with pytest.raises(DataError, match="use the source folders"):
        tree("LISC").plant("Neutrophil/1.bmp").read("lisc")
