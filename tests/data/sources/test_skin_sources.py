"""HAM10000 by acquisition site, ISIC 2017, Fed-ISIC 2019: layouts as users have them, and their faults."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from morphfed.core.errors import ConfigError, DataError
from morphfed.data.drafting import draft
from morphfed.data.sources import fed_isic2019, ham10000, isic2017

HEAD = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
HAM = f"""\
{HEAD}
HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp,vidir_modern
HAM_0000118,ISIC_0025030,bkl,histo,80.0,male,scalp,vidir_modern
HAM_0001751,ISIC_0024698,nv,consensus,70.0,male,face,vidir_modern
HAM_0005388,ISIC_0027815,mel,histo,80.0,male,chest,rosendahl
HAM_0000999,ISIC_0030000,mel,histo,50.0,female,back,vidir_modern
"""


@pytest.fixture
def ham(tree: Any) -> Any:
    site = tree("HAM10000").plant(
        *("HAM10000_images_part_1/ISIC_0027419.jpg", "HAM10000_images_part_1/ISIC_0025030.jpg"),
        *("HAM10000_images_part_2/ISIC_0024698.jpg", "HAM10000_images_part_2/ISIC_0027815.jpg"),
        *("ham10000_images_part_2/ISIC_0027815.jpg", "ISIC2018_Task3_Test_Images/ISIC_0034524.jpg", "hmnist_8_8.csv"),
        *(f"HAM10000_segmentations_lesion_tschandl/{i}_segmentation.png" for i in ("ISIC_0025030", "ISIC_0027815")),
    )
    return site.plant("HAM10000_metadata.csv", text=HAM)


def test_one_acquisition_site_with_lesions_and_masks(ham: Any) -> None:
    assert ham.winner() == "ham10000"
    found = ham.read("ham10000", {"dataset": "vidir_modern"})
    one, two = "HAM10000_images_part_1/", "HAM10000_images_part_2/"
    assert found.nodes == {
        f"{one}ISIC_0025030.jpg": "bkl",
        f"{one}ISIC_0027419.jpg": "bkl",
        f"{two}ISIC_0024698.jpg": "nv",
    }
    assert found.column("lesion") == {
        f"{one}ISIC_0025030.jpg": "HAM_0000118",
        f"{one}ISIC_0027419.jpg": "HAM_0000118",
        f"{two}ISIC_0024698.jpg": "HAM_0001751",
    }
    masks = {Path(k).stem: v.name for k, v in found.column("mask").items() if isinstance(v, Path)}
    assert masks == {"ISIC_0025030": "ISIC_0025030_segmentation.png"}
    assert found.skipped == {
        f"{two}ISIC_0027815.jpg": "of another acquisition site (rosendahl)",
        "ham10000_images_part_2/ISIC_0027815.jpg": "a second file of the same image",
        "ISIC2018_Task3_Test_Images/ISIC_0034524.jpg": "not listed in HAM10000_metadata.csv",
        "HAM10000_segmentations_lesion_tschandl/ISIC_0027815_segmentation.png": "mask of no picture that is taken",
        "hmnist_8_8.csv": "another table",
    }
    assert found.notes == [
        "3 of the 3,363 published images of vidir_modern",
        "HAM10000_metadata lists 1 images that are not there",
    ]


def test_the_published_file_has_no_suffix_or_tabs(tree: Any) -> None:
    for name, text in (("HAM10000_metadata", HAM), ("HAM10000_metadata.tab", HAM.replace(",", "\t"))):
        site = tree(name).plant("ISIC_0024698.jpg", "ISIC_0027419.jpg").plant(name, text=text)
        found = site.read("ham10000", {"dataset": "vidir_modern"})
        assert found.labels == {"ISIC_0024698.jpg": "nv", "ISIC_0027419.jpg": "bkl"}


def test_four_sites_are_never_taken_for_one_unasked(ham: Any) -> None:
    with pytest.raises(DataError, match=r"holds 2 acquisition sites \(rosendahl 1, vidir_modern 3\)"):
        ham.read("ham10000")
    everything = ham.read("ham10000", {"dataset": "all"})
    assert len(everything.records) == 4
    assert "its acquisition sites are mixed" in everything.notes[0]
    with pytest.raises(ConfigError, match="Did you mean 'vidir_modern'"):
        ham.read("ham10000", {"dataset": "vidir_modren"})
    with pytest.raises(DataError, match=r"no image of the acquisition site vienna_dias; it has: rosendahl 1"):
        ham.read("ham10000", {"dataset": "vienna_dias"})


def test_the_copy_without_sites_says_so(tree: Any) -> None:
    text = "".join(line.rpartition(",")[0] + "\n" for line in HAM.splitlines())
    site = tree("kaggle").plant("ISIC_0024698.jpg", "ISIC_0027815.jpg").plant("HAM10000_metadata.csv", text=text)
    with pytest.raises(DataError, match="has no column 'dataset'"):
        site.read("ham10000", {"dataset": "rosendahl"})
    found = site.read("ham10000")
    assert len(found.records) == 2
    assert "its acquisition sites are mixed" in found.notes[0]


def test_a_picture_with_two_diagnoses_or_none_is_counted(tree: Any) -> None:
    rows = f"{HEAD}\nL1,ISIC_0000001,nv,,,,,rosendahl\nL1,ISIC_0000001,mel,,,,,rosendahl\n"
    rows += "L2,ISIC_0000002,,,,,,rosendahl\nL3,ISIC_0000003,nv,,,,,rosendahl\n"
    site = tree("x").plant(*(f"ISIC_000000{i}.jpg" for i in (1, 2, 3))).plant("HAM10000_metadata.csv", text=rows)
    found = site.read("ham10000")
    assert list(found.records) == ["ISIC_0000003.jpg"]
    assert found.skipped == {
        "ISIC_0000001.jpg": "different diagnoses in HAM10000_metadata.csv",
        "ISIC_0000002.jpg": "no diagnosis in HAM10000_metadata.csv",
    }


def test_folders_of_site_and_diagnosis_with_masks_beside(tree: Any) -> None:
    mini = tree("mini").plant(
        *("rosendahl/nv/ISIC_0000001.jpg", "rosendahl/bcc/ISIC_0000002.jpg", "vienna_dias/mel/ISIC_0000003.jpg"),
        *("masks/ISIC_0000002_expert.png", "rosendahl/nv/thumb.jpg"),
    )
    site = type(mini)(mini.root / "rosendahl")
    found = site.read("ham10000")
    assert found.nodes == {"nv/ISIC_0000001.jpg": "nv", "bcc/ISIC_0000002.jpg": "bcc"}
    assert found.records["bcc/ISIC_0000002.jpg"].mask == mini.root / "masks" / "ISIC_0000002_expert.png"
    assert found.skipped == {"nv/thumb.jpg": "not in folders of an acquisition site and a diagnosis"}
    assert found.notes[1].startswith("HAM10000_metadata is not there, so lesions are not known")
    chosen = mini.read("ham10000", {"dataset": "vienna_dias"})
    assert list(chosen.records) == ["vienna_dias/mel/ISIC_0000003.jpg"]
    assert chosen.skipped["masks/ISIC_0000002_expert.png"] == "mask of no picture that is taken"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("site", "labels", "masks"),
    [
        ("rosendahl", {"nv": 16, "bcc": 10, "mel": 9, "bkl": 8, "akiec": 2}, 28),
        ("vidir_modern", {"nv": 12, "mel": 8, "bkl": 5, "bcc": 3, "df": 3, "vasc": 1}, 11),
        ("vidir_molemax", {"nv": 118, "bkl": 2, "vasc": 2, "df": 1}, 99),
        ("vienna_dias", {"nv": 13, "mel": 2}, 12),
    ],
)
def test_the_four_real_sites(shared_data: Path, site: str, labels: dict[str, int], masks: int) -> None:
    folder = shared_data / "skin" / "ham10000_mini" / site
    drafted = draft(folder, site=site, masks=True)
    frame = drafted.manifest.frame
    assert set(frame["source"]) == {"ham10000"}
    assert Counter(frame["label"]) == labels
    assert not drafted.unmapped
    assert set(zip(frame["width"], frame["height"], strict=True)) == {(600, 450)}
    assert int(frame["mask"].notna().sum()) == masks
    files = [drafted.manifest.file(m) for m in frame["mask"].dropna()]
    assert all(file.is_file() for file in files)


def test_published_counts_add_up() -> None:
    assert sum(ham10000.SITES.values()) == 10015
    assert sum(fed_isic2019.CENTRES.values()) == 23247
    train_and_test = {"bcn": (9930, 2483), "vidir_molemax": (3163, 791), "vidir_modern": (2691, 672)}
    train_and_test |= {"rosendahl": (1807, 452), "msk": (655, 164), "vienna_dias": (351, 88)}
    assert {name: sum(counts) for name, counts in train_and_test.items()} == dict(fed_isic2019.CENTRES)
    assert {name: fed_isic2019.CENTRES[name] for name in ham10000.SITES} == dict(ham10000.SITES)
    assert isic2017.PUBLISHED["training"] == 374 + 254 + 1372


TRUTH_2017 = """\
image_id,melanoma,seborrheic_keratosis
ISIC_0000000,0.0,0.0
ISIC_0000002,1.0,0.0
ISIC_0000077,0.0,1.0
ISIC_0000078,0,0
"""


@pytest.fixture
def isic(tree: Any) -> Any:
    data = "ISIC-2017_Training_Data/"
    site = tree("isic2017").plant(
        *(f"{data}ISIC_00000{n}.jpg" for n in ("00", "02", "77", "99")),
        *(f"{data}ISIC_0000000_superpixels.png", "ISIC-2017_Test_v2_Data/ISIC_0012086.jpg"),
        *("ISIC-2017_Training_Part1_GroundTruth/ISIC_0000002_segmentation.png", "notes.csv"),
    )
    site.plant("ISIC-2017_Training_Part3_GroundTruth.csv", text=TRUTH_2017)
    return site.plant(
        "ISIC-2017_Test_v2_Part3_GroundTruth.csv", text="image_id,melanoma,seborrheic_keratosis\nISIC_0012086,0.0,1.0\n"
    )


def test_isic2017_takes_the_training_part(isic: Any) -> None:
    assert isic.winner() == "isic2017"
    found = isic.read("isic2017")
    data = "ISIC-2017_Training_Data/"
    assert found.nodes == {
        f"{data}ISIC_0000000.jpg": "nv",
        f"{data}ISIC_0000002.jpg": "mel",
        f"{data}ISIC_0000077.jpg": "seborrheic_keratosis",
    }
    mask = found.records[f"{data}ISIC_0000002.jpg"].mask
    assert mask is not None
    assert mask.name == "ISIC_0000002_segmentation.png"
    assert found.skipped == {
        f"{data}ISIC_0000000_superpixels.png": "superpixels, not a picture",
        f"{data}ISIC_0000099.jpg": "not listed in the ground truth",
        "ISIC-2017_Test_v2_Data/ISIC_0012086.jpg": "of the test part",
        "notes.csv": "another table",
    }
    assert found.notes[:2] == [
        "3 of the 2,000 published images of the training part",
        "ISIC-2017_Training_Part3_GroundTruth.csv lists 1 images that are not there",
    ]
    assert set(found.column("split").values()) == {None}


def test_isic2017_parts_keep_their_split(isic: Any) -> None:
    found = isic.read("isic2017", {"parts": "training; test"})
    assert Counter(r.split for r in found.records.values()) == {"train": 3, "test": 1}
    with pytest.raises(ConfigError, match="'tests' is no part"):
        isic.read("isic2017", {"parts": "tests"})
    with pytest.raises(DataError, match="no ISIC-2017_Validation_Part3_GroundTruth"):
        isic.read("isic2017", {"parts": "validation"})


def test_isic2017_refuses_a_row_of_two_classes(isic: Any) -> None:
    isic.plant("ISIC-2017_Training_Part3_GroundTruth.csv", text=TRUTH_2017 + "ISIC_0000099,1.0,1.0\n")
    with pytest.raises(DataError, match=r"row 6: melanoma '1\.0' and seborrheic_keratosis '1\.0'"):
        isic.read("isic2017")


def test_a_seborrheic_keratosis_is_a_benign_keratosis_of_the_four_sites() -> None:
    from morphfed.data.ontology import load_ontology

    ontology = load_ontology()
    classes = ontology.resolve_classes(["nv", "bkl", "mel"])
    assert ontology.to_class("seborrheic_keratosis", classes) == "bkl"
    two = ontology.resolve_classes(["benign", "malignant"])
    nodes = ("nv", "seborrheic_keratosis", "df", "vasc", "mel", "bcc", "akiec", "scc")
    assert [ontology.to_class(node, two) for node in nodes] == ["benign"] * 4 + ["malignant"] * 4


SPLIT_2019 = """\
image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK,target,center,fold,fold2
ISIC_0065613,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1,0,train,train_0
ISIC_0063710,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,2,0,test,test_0
ISIC_0012669_downsampled,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1,4,train,train_4
ISIC_0032511,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0,2,train,train_2
"""


@pytest.fixture
def fed(tree: Any) -> Any:
    raw, done = "ISIC_2019_Training_Input/", "ISIC_2019_Training_Input_preprocessed/"
    site = tree("fed").plant(
        *(f"{raw}{n}.jpg" for n in ("ISIC_0065613", "ISIC_0063710", "ISIC_0012669_downsampled")),
        *(f"{done}ISIC_0065613.jpg", f"{done}ISIC_0099999.jpg", f"{raw}ATTRIBUTION.txt"),
    )
    site.plant("train_test_split", text=SPLIT_2019)
    site.plant(
        "ISIC_2019_Training_GroundTruth.csv",
        text="image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\nISIC_0065613,0,1,0,0,0,0,0,0,0\nISIC_0063710,0,0,1,0,0,0,0,0,0\n",
    )
    return site.plant(
        "ISIC_2019_Training_Metadata.csv",
        text="image,age_approx,anatom_site_general,lesion_id,sex\nISIC_0065613,55,,BCN_1,f\nISIC_0063710,55,,BCN_1,f\n",
    )


def test_fed_isic_one_centre_with_lesions_and_no_leaking_split(fed: Any) -> None:
    assert fed.winner() == "fed_isic2019"
    found = fed.read("fed_isic2019", {"centre": "bcn"})
    raw, done = "ISIC_2019_Training_Input/", "ISIC_2019_Training_Input_preprocessed/"
    assert found.nodes == {f"{done}ISIC_0065613.jpg": "nv", f"{raw}ISIC_0063710.jpg": "bcc"}
    assert set(found.column("lesion").values()) == {"BCN_1"}
    assert set(found.column("split").values()) == {None}
    assert found.skipped == {
        f"{raw}ISIC_0065613.jpg": "a second file of the same image; the preprocessed one is taken",
        f"{raw}ISIC_0012669_downsampled.jpg": "of another centre (msk)",
        f"{done}ISIC_0099999.jpg": "not listed in train_test_split",
        f"{raw}ATTRIBUTION.txt": "not an image (.txt)",
        "train_test_split": "not an image (no suffix)",
    }
    assert found.notes == ["2 of the 12,413 published images of bcn"]


def test_fed_isic_published_split_only_when_asked_for(fed: Any) -> None:
    found = fed.read("fed_isic2019", {"centre": "0", "leaky_published_split": "yes"})
    assert {Path(p).stem: s for p, s in found.column("split").items()} == {
        "ISIC_0065613": "train",
        "ISIC_0063710": "test",
    }
    with pytest.raises(ConfigError, match="neither yes nor no"):
        fed.read("fed_isic2019", {"centre": "0", "leaky_published_split": "maybe"})


def test_fed_isic_faults(fed: Any) -> None:
    with pytest.raises(DataError, match=r"holds 2 centres \(bcn 2, msk 1\)"):
        fed.read("fed_isic2019")
    with pytest.raises(DataError, match="no image of the centre vidir_modern"):
        fed.read("fed_isic2019", {"centre": "2"})
    with pytest.raises(ConfigError, match="Did you mean 'rosendahl'"):
        fed.read("fed_isic2019", {"centre": "rosendal"})
    truth = (fed.root / "ISIC_2019_Training_GroundTruth.csv").read_text()
    fed.plant("ISIC_2019_Training_GroundTruth.csv", text=truth.replace("ISIC_0063710,0,0,1", "ISIC_0063710,0,1,0"))
    found = fed.read("fed_isic2019", {"centre": "bcn"})
    wrong = found.skipped["ISIC_2019_Training_Input/ISIC_0063710.jpg"]
    assert wrong == "NV in ISIC_2019_Training_GroundTruth.csv, BCC in train_test_split"
    fed.plant("train_test_split", text=SPLIT_2019.replace(",2,0,test,", ",9,0,test,"))
    with pytest.raises(DataError, match=r"train_test_split, row 3: target '9'"):
        fed.read("fed_isic2019", {"centre": "bcn"})
