"""Sets that tell patients: JHU, KU-Optofil, C-NMC."""

from __future__ import annotations

from typing import Any

import pytest

from morphfed.core.errors import ConfigError, DataError
from morphfed.data.drafting import find_sites


@pytest.fixture
def jhu(tree: Any) -> Any:
    return tree("Data").plant(
        *("All/Patient_00/Signed slides/Giant thrombocyte/GT_15336368.jpg",),
        *(
            "All/Patient_00/Signed slides/Eosinophils/EO_15336344.jpg",
            "All/Patient_00/Signed slides/Monocyte/Thumbs.db",
        ),
        *("All/Patient_01/run1/Signed slides/Blast, no lineage spec/BL_16234497.jpg",),
        *(
            "All/Patient_01/run1/Signed slides/Arifact/ART_1.JPG",
            "All/Patient_01/run2/Unsigned slides/SNE_16234480.jpg",
        ),
        *("All/Patient_105/Signed slides/Lymphocyte, variant/VLY_16234596.jpg", "All/Patient_105/stray.jpg"),
        *("All/Patient_105/Signed slides/loose.jpg", "master.csv"),
    )


def test_jhu_signed_slides_by_patient(jhu: Any) -> None:
    assert jhu.winner() == "jhu"
    found = jhu.read("jhu")
    short = {path.split("/")[-1]: (r.patient, r.slide, found.nodes[path]) for path, r in found.records.items()}
    assert short == {
        "GT_15336368.jpg": ("Patient_00", None, "platelet_giant"),
        "EO_15336344.jpg": ("Patient_00", None, "eosinophil"),
        "BL_16234497.jpg": ("Patient_01", "Patient_01/run1", "blast"),
        "ART_1.JPG": ("Patient_01", "Patient_01/run1", "artefact"),
        "VLY_16234596.jpg": ("Patient_105", None, "lymphocyte_atypical"),
    }
    assert {path.split("/")[-1]: reason for path, reason in found.skipped.items()} == {
        "Thumbs.db": "left by Windows (Thumbs.db, desktop.ini)",
        "SNE_16234480.jpg": "not signed by a person (to take it: unsigned = yes)",
        "stray.jpg": "not in a patient's folder of signed or unsigned slides",
        "loose.jpg": "in no class folder",
        "master.csv": "table, not an image",
    }


def test_jhu_unsigned_slides_on_request_carry_the_analysers_code(jhu: Any) -> None:
    found = jhu.read("jhu", {"unsigned": "yes"})
    path = "All/Patient_01/run2/Unsigned slides/SNE_16234480.jpg"
    assert found.labels[path] == "SNE"
    assert found.nodes[path] == "neutrophil_segmented"
    assert found.records[path].slide == "Patient_01/run2"
    with pytest.raises(ConfigError, match="unsigned = 'maybe'"):
        jhu.read("jhu", {"unsigned": "maybe"})


def test_jhu_is_one_site_not_one_a_patient(jhu: Any) -> None:
    assert list(find_sites(jhu.root).values()) == [jhu.root / "All"]


ROWS = """\
image_name,cell_type,patient_id,path,split
1.jpg,segmented_neutrophil,P01,train/segmented_neutrophil/1.jpg,train
1.jpg,blast,P02,val/blast/1.jpg,test
2.jpg,giant_platelet,P02,train/giant_platelet/2.jpg,test
3.jpg,reactive_lymphocyte,unknown,train/reactive_lymphocyte/3.jpg,train
4.jpg,basophil,P03,test/basophil/4.jpg,validation
"""


@pytest.fixture
def ku(tree: Any) -> Any:
    site = tree("ku").plant(
        *("dataset/train/Segmented Neutrophil/1.jpg", "dataset/val/Blast/1.jpg", "dataset/train/Giant Platelet/2.jpg"),
        *("dataset/train/Reactive Lymphocyte/3.jpg", "dataset/test/Basophil/5.jpg"),
    )
    without = "\n".join(line.rsplit(",", 1)[0] for line in ROWS.splitlines())
    site.plant("metadata_with_patient_level_splits.csv", text=ROWS)
    return site.plant("metadata.csv", text=without)


def test_ku_takes_the_split_by_patient_and_finds_pictures_in_another_folder(ku: Any) -> None:
    assert ku.winner() == "ku"
    found = ku.read("ku")
    assert {path: (r.patient, r.split, found.nodes[path]) for path, r in found.records.items()} == {
        "dataset/train/Segmented Neutrophil/1.jpg": ("P01", "train", "neutrophil_segmented"),
        "dataset/val/Blast/1.jpg": ("P02", "test", "blast"),
        "dataset/train/Giant Platelet/2.jpg": ("P02", "test", "platelet_giant"),
        "dataset/train/Reactive Lymphocyte/3.jpg": (None, "train", "lymphocyte_reactive"),
        "dataset/test/Basophil/4.jpg": ("P03", "validation", "basophil"),
    }
    assert found.skipped == {
        "dataset/test/Basophil/5.jpg": "not listed in metadata_with_patient_level_splits.csv",
        "metadata.csv": "another table",
    }
    assert found.notes == [
        "metadata_with_patient_level_splits.csv lists 1 pictures that are not there; their rows are kept",
        "metadata_with_patient_level_splits.csv names no patient for 1 pictures",
    ]
    assert list(find_sites(ku.root).values()) == [ku.root]


def test_ku_without_the_second_table_has_no_split(ku: Any) -> None:
    (ku.root / "metadata_with_patient_level_splits.csv").unlink()
    assert ku.winner() == "ku"
    assert set(ku.read("ku").column("split").values()) == {None}


def test_ku_damaged_table_names_what_is_wrong(ku: Any) -> None:
    ku.plant("metadata_with_patient_level_splits.csv", text=ROWS.replace("patient_id", "patientid"))
    with pytest.raises(DataError, match=r"no column 'patient_id'.*Did you mean 'patientid'"):
        ku.read("ku")
    ku.plant("metadata_with_patient_level_splits.csv", text=ROWS.replace(",validation", ",fold 3"))
    with pytest.raises(DataError, match="row 6: 'fold 3' is no split"):
        ku.read("ku")


@pytest.fixture
def cnmc(tree: Any) -> Any:
    site = tree("C-NMC").plant(
        *("C-NMC_training_data/fold_0/all/UID_11_1_1_all.bmp", "C-NMC_training_data/fold_1/hem/UID_H10_12_3_hem.bmp"),
        *("C-NMC_training_data/fold_2/all/UID_11_2_1_ALL.BMP", "C-NMC_training_data/fold_2/all/x.bmp"),
        *("C-NMC_test_prelim_phase_data/C-NMC_test_prelim_phase_data/1.bmp",),
    )
    return site.plant(
        "C-NMC_test_prelim_phase_data/C-NMC_test_prelim_phase_data_labels.csv",
        text="Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\nUID_H49_31_1_hem.bmp,2.bmp,0\n",
    )


def test_cnmc_subjects_are_in_the_names_and_in_the_table(cnmc: Any) -> None:
    assert cnmc.winner() == "cnmc"
    found = cnmc.read("cnmc")
    assert {path.split("/")[-1]: (r.source_label, r.patient, r.split) for path, r in found.records.items()} == {
        "UID_11_1_1_all.bmp": ("all", "11", None),
        "UID_H10_12_3_hem.bmp": ("hem", "H10", None),
        "UID_11_2_1_ALL.BMP": ("all", "11", None),
        "1.bmp": ("all", "57", "test"),
    }
    assert set(found.nodes.values()) == {"lymphoblast", "lymphocyte_immature"}
    assert found.skipped == {
        "C-NMC_training_data/fold_2/all/x.bmp": "neither named UID_SUBJECT_IMAGE_CELL_CLASS nor listed in the table"
    }
    assert found.notes == ["C-NMC_test_prelim_phase_data_labels.csv lists 1 images that are not there"]


def test_cnmc_parts_and_folds_are_not_sites(cnmc: Any) -> None:
    (cnmc.root / "C-NMC_training_data/fold_2/all/x.bmp").unlink()
    assert len(find_sites(cnmc.root / "C-NMC_training_data")) == 1
    assert list(find_sites(cnmc.root).values()) == [cnmc.root]


def test_cnmc_damaged_table_names_the_row(cnmc: Any) -> None:
    cnmc.plant(
        "C-NMC_test_prelim_phase_data/C-NMC_test_prelim_phase_data_labels.csv",
        text="Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,2\n",
    )
    with pytest.raises(DataError, match=r"row 2: 'UID_57_29_1_all\.bmp' with label '2'"):
        cnmc.read("cnmc")
