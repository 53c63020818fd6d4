"""What a site leaves out on purpose is counted, and a slip of the pen is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from morphfed.core.errors import ConfigError, DataError
from morphfed.data.drafting import draft
from morphfed.data.leaving_out import as_text

# All 13 prefixes of PBC in its eight folders, and the size that most of their images have.
PBC = {
    **{"basophil": ["BA"], "eosinophil": ["EO"], "erythroblast": ["ERB"], "ig": ["IG", "MMY", "MY", "PMY"]},
    **{"lymphocyte": ["LY"], "monocyte": ["MO"], "neutrophil": ["BNE", "NEUTROPHIL", "SNE"], "platelet": ["PLATELET"]},
}
OTHER = {"BA", "EO", "LY", "MO", "NEUTROPHIL"}
"""Prefixes with 50 images each of another acquisition: 366 × 369 pixels."""


@pytest.fixture(scope="module")
def pbc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pbc") / "PBC_dataset_normal_DIB"
    for folder, prefixes in PBC.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "Thumbs.db").touch()
        for prefix in prefixes:
            for number in range(3):
                other = (number == 0 and prefix in OTHER) or prefix == "NEUTROPHIL"
                size = (366, 369) if other else (360, 360) if prefix == "ERB" and number == 0 else (360, 363)
                Image.new("RGB", size, (number, len(prefix), 9)).save(root / folder / f"{prefix}_{number}.jpg")
    (root / "neutrophil" / ".DS_169227.jpg").touch()
    return root


def labels(folder: Path, **options: Any) -> tuple[Counter[str], dict[str, int]]:
    drafted = draft(folder, site="barcelona", options=options)
    return Counter(drafted.manifest.frame["source_label"]), {why: len(p) for why, p in drafted.skipped.items()}


def test_pbc_as_published(pbc: Path) -> None:
    found, skipped = labels(pbc)
    assert found == dict.fromkeys([p for prefixes in PBC.values() for p in prefixes], 3)
    assert skipped == {"left by Windows (Thumbs.db, desktop.ini)": 8, "hidden": 1}
    drafted = draft(pbc, site="barcelona")
    assert drafted.manifest.frame["label"].notna().all()
    assert set(drafted.manifest.frame["source"]) == {"pbc"}
    assert set(drafted.manifest.frame["um_per_px"]) == {0.1}  # although some images have another size


def test_the_other_acquisition_can_be_left_out(pbc: Path) -> None:
    found, skipped = labels(pbc, leave_out_px="366x369")
    assert found == {p: 2 if p in OTHER else 3 for ps in PBC.values() for p in ps if p != "NEUTROPHIL"}
    assert skipped["366×369 pixels, left out as asked for"] == 4 + 3
    both, skipped = labels(pbc, leave_out_px=["366x369", "360×360"])
    assert both["ERB"] == 2
    assert skipped["360×360 pixels, left out as asked for"] == 1


def test_labels_can_be_left_out(pbc: Path) -> None:
    found, skipped = labels(pbc, leave_out_labels=["ERB", "PLATELET"])
    assert set(found) == {p for ps in PBC.values() for p in ps} - {"ERB", "PLATELET"}
    assert skipped["label 'ERB' left out as asked for"] == 3
    assert skipped["label 'PLATELET' left out as asked for"] == 3
    assert labels(pbc, leave_out_labels="ERB; PLATELET") == (found, skipped)


def test_a_label_with_a_comma_is_one_label(tmp_path: Path) -> None:
    for name in ("Blast, no lineage spec", "Lymphocyte, variant"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    found, _ = labels(tmp_path, leave_out_labels="Blast, no lineage spec")
    assert found == {"Lymphocyte, variant": 1}


def test_what_is_not_there_is_said_and_what_nobody_knows_is_refused(pbc: Path) -> None:
    guesses = draft(pbc, site="x", options={"leave_out_labels": "VLY", "leave_out_px": "10x10"}).guesses
    assert "no image is labelled 'VLY', which was to be left out" in guesses
    assert "no image is 10×10 pixels, which was to be left out" in guesses
    with pytest.raises(ConfigError, match=r"names 'ERX', which no image has\. Did you mean 'ERB'"):
        labels(pbc, leave_out_labels="ERX")
    with pytest.raises(ConfigError, match="'366' is no size"):
        labels(pbc, leave_out_px="366")


def test_leaving_everything_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "basophil").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "basophil" / "1.png")
    for options in ({"leave_out_px": "8x8"}, {"leave_out_labels": "basophil"}):
        with pytest.raises(DataError, match="every image is left out"):
            labels(tmp_path, **options)


@pytest.mark.shared
def test_the_other_acquisition_in_the_real_subset(shared_data: Path) -> None:
    folder = shared_data / "cells" / "PBC_dataset_normal_DIB"
    drafted = draft(folder, site="barcelona", options={"leave_out_px": "366x369"})
    assert len(drafted.skipped["366×369 pixels, left out as asked for"]) == 7 + 5 + 10 + 8 + 50
    assert len(drafted.manifest) == 2850 - 80


@pytest.mark.parametrize(
    ("value", "text"), [(True, "yes"), (False, "no"), (["a", "b, c"], "a; b, c"), (2, "2"), ("x", "x")]
)
def test_options_of_a_study_file_become_what_a_command_line_gives(value: object, text: str) -> None:
    assert as_text(value) == text
