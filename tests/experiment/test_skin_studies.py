"""examples/skin-four-sites.toml on small trees of the published layouts: lesions, leaks, scale, plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphfed.core.errors import DataError
from morphfed.experiment.assemble import draft_sites, label_and_split, site_scales
from morphfed.experiment.plan import plan_study
from morphfed.experiment.prepare import Prepared, prepare
from morphfed.experiment.study import Study, load_study

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "skin-four-sites.toml"
PUBLISHED = {
    # The table of the published federation: train, validation and test as (nv, bkl, mel).
    "vidir_modern": ((1282, 333, 476), (183, 47, 68), (367, 95, 136)),
    "vidir_molemax": ((2604, 87, 17), (372, 12, 2), (744, 25, 5)),
    "rosendahl": ((562, 343, 239), (80, 49, 34), (161, 98, 69)),
    "msk": ((960, 178, 262), (137, 25, 37), (275, 51, 75)),
}
SMALL = {
    "data.image_size": "16",
    "compute.device": "cpu",
    "model.weights": "none",
    "data.split.copies_together": "false",
}


def test_the_counts_in_the_example_are_the_published_ones() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    for site, parts in PUBLISHED.items():
        nv, bkl, mel = (sum(part[k] for part in parts) for k in range(3))
        row = next(line for line in text.splitlines() if line.startswith(f"#   {site} "))
        numbers = [int(w.replace(",", "")) for w in row.replace("(", " ").replace(")", " ").split() if w[0].isdigit()]
        assert numbers[:4] == [nv + bkl + mel, nv, bkl, mel]
    study, arms = load_study(EXAMPLE)
    assert study.classes == ("nv", "bkl", "mel")
    assert set(study.sites) == set(PUBLISHED)
    assert study.data.field_um == 0
    assert "fedbn" in arms


def picture(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Each HAM10000 site has 12 lesions with two images and 6 with one; every third lesion of each class."""
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    number = 0
    for site in ("vidir_modern", "vidir_molemax", "rosendahl"):
        for lesion in range(18):
            for _ in range(2 if lesion < 12 else 1):
                number += 1
                rows.append(f"HAM_{site}{lesion},ISIC_{number:07d},{('nv', 'bkl', 'mel')[lesion % 3]},,,,,{site}")
                picture(tmp_path / f"HAM10000/HAM10000_images_part_{1 + number % 2}/ISIC_{number:07d}.png", number)
    rows.append("HAM_bcc,ISIC_0009999,bcc,,,,,rosendahl")
    picture(tmp_path / "HAM10000/HAM10000_images_part_1/ISIC_0009999.png", 9999)
    (tmp_path / "HAM10000" / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")
    truth = ["image_id,melanoma,seborrheic_keratosis"]
    for n in range(30):
        truth.append(f"ISIC_{5000000 + n},{('0.0,0.0', '1.0,0.0', '0.0,1.0')[n % 3]}")
        picture(tmp_path / f"ISIC-2017/ISIC-2017_Training_Data/ISIC_{5000000 + n}.png", n + 5000)
    (tmp_path / "ISIC-2017" / "ISIC-2017_Training_Part3_GroundTruth.csv").write_text("\n".join(truth) + "\n")
    return tmp_path


def load(root: Path, **more: str) -> Study:
    changes = {"data.root": str(root), **SMALL, **{key.replace("__", "."): value for key, value in more.items()}}
    return load_study(EXAMPLE, [f"{key}={value}" for key, value in changes.items()])[0]


def prepared(root: Path, study: Study) -> Prepared:
    run = root / "run"
    run.mkdir()
    return prepare(study, run, root / "cache", root)


def test_four_sites_with_lesions_on_one_side(root: Path) -> None:
    study = load(root)
    found = prepared(root, study)
    for site in ("vidir_modern", "vidir_molemax", "rosendahl"):
        parts = {name: set(images.clusters) for name, images in found.sets[site].items()}
        assert not parts["train"] & parts["test"]
        assert not parts["train"] & parts["validation"]
        info = found.info[site]
        assert (info["n"], info["patients"], info["lesions"], info["cluster_unit"]) == (30, None, 18, "lesion")
        assert "leaks" not in info
        assert sum(sum(parts.values()) for parts in info["classes"].values()) == 30
    msk = found.info["msk"]
    assert (msk["n"], msk["cluster_unit"]) == (30, "image")
    assert "lesions" not in msk
    assert [entry["source_label"] for entry in found.info["rosendahl"]["left_out"]] == ["bcc"]
    assert any(note.startswith("vidir_modern: split by lesion") for note in found.notes)
    assert "rosendahl: 31 of the 2,259 published images of rosendahl" in found.notes


def published_split(root: Path) -> None:
    """By picture: the first image of a lesion trains, the second tests, single ones validate."""
    lines = (root / "HAM10000" / "HAM10000_metadata.csv").read_text().splitlines()[1:-1]
    seen: dict[str, int] = {}
    rows = ["image,part"]
    for lesion, image in (line.split(",")[:2] for line in lines):
        seen[lesion] = seen.get(lesion, 0) + 1
        single = sum(other.startswith(f"{lesion},") for other in lines) == 1
        rows.append(f"{image},{'valid' if single else ('train', 'test')[seen[lesion] - 1]}")
    (root / "published.csv").write_text("\n".join(rows) + "\n")


def test_a_published_split_is_counted_as_leaking(root: Path) -> None:
    published_split(root)
    found = prepared(root, load(root, data__split__leaky_published="published.csv"))
    info = found.info["vidir_modern"]
    assert info["leaks"] == [{"kind": "lesion", "owners": 12, "seen": 12, "images": 12, "part": "test"}]
    assert {name: len(images) for name, images in found.sets["vidir_modern"].items()} == {
        "train": 12,
        "validation": 6,
        "test": 12,
    }
    assert "leaks" not in found.info["msk"]
    assert any("the split leaks: 12 lesions lie in both train and test" in note for note in found.notes)
    assert any(note.startswith("msk: published.csv lists none of its images") for note in found.notes)


def test_the_plan_says_it_before_anything_runs(root: Path) -> None:
    published_split(root)
    changes = {"data.root": str(root), **SMALL, "data.split.leaky_published": "published.csv", "seeds": "[0]"}
    plan = plan_study(EXAMPLE, [f"{key}={value}" for key, value in changes.items()], measure=False)
    assert plan["sites"]["rosendahl"]["test"] == 12
    assert any(note.startswith("rosendahl: the split leaks: 12 lesions") for note in plan["notes"])


def test_no_scale_is_guessed_from_lesions_and_a_tiny_field_is_refused(root: Path) -> None:
    study = load(root, data__field_um="25.0")
    manifest, _ = draft_sites(study, root)
    labelled = label_and_split(manifest, study, look=False)[0]
    scales = site_scales(labelled, study)
    assert {scale.origin for scale in scales.values()} == {"none"}
    big = load(root, data__field_um="25.0", sites__msk__um_per_px="400.0")
    manifest, _ = draft_sites(big, root)
    with pytest.raises(DataError, match=r"Site 'msk': data\.field_um = 25 µm is 0\.062 pixels there"):
        site_scales(label_and_split(manifest, big, look=False)[0], big)


@pytest.mark.shared
def test_the_real_four_sites_can_be_planned(shared_data: Path) -> None:
    changes = {f"sites.{site}.path": f"ham10000_mini/{site}" for site in ("vidir_modern", "vidir_molemax", "rosendahl")}
    changes |= {"sites.msk.path": "ham10000_mini/vienna_dias", "sites.msk.source": "ham10000"}
    changes |= {"data.root": str(shared_data / "skin"), "seeds": "[0]", **SMALL}
    plan = plan_study(EXAMPLE, [f"{key}={value}" for key, value in changes.items()], measure=False)
    counts = {
        site: (sum(s[p] for p in ("train", "validation", "test")), s["left_out"]) for site, s in plan["sites"].items()
    }
    assert counts == {"vidir_modern": (25, 7), "vidir_molemax": (120, 3), "rosendahl": (33, 12), "msk": (15, 0)}
