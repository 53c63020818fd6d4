"""Cells of a patient become a bag."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from morphfed.cli import main
from morphfed.core.errors import ConfigError, DataError
from morphfed.data.bags import files
from morphfed.data.bags.drafting import draft_bags
from morphfed.data.decode import decode
from morphfed.data.drafting import draft_tree
from morphfed.data.manifest import Manifest
from morphfed.experiment.patient_bags import Composition, Invented, patients_of


@pytest.fixture
def manifest(drawn: Path, tmp_path: Path) -> Manifest:
    return draft_tree(drawn).manifest.write(tmp_path / "cells.csv")


def test_known_patients_by_what_their_film_holds(manifest: Manifest) -> None:
    frame = manifest.frame
    found, left_out = patients_of(manifest, Composition("lymphocyte", 0.5), None)
    assert not +left_out
    assert sum(len(bag.rows) for bag in found) == len(manifest)
    assert len({(bag.site, bag.patient) for bag in found}) == len(found)
    for bag in found:
        rows = frame.iloc[bag.rows]
        assert set(rows["patient"]) == {bag.patient}
        assert (bag.label == "positive") == ((rows["label"] == "lymphocyte").mean() >= 0.5)


def test_a_diagnosis_is_the_label_of_all_cells(manifest: Manifest) -> None:
    with pytest.raises(DataError, match="has cells of 2 labels"):
        patients_of(manifest, None, None)
    one = Manifest(manifest.frame.assign(source_label="AML"), manifest.root)
    assert {bag.label for bag in patients_of(one, None, None)[0]} == {"AML"}
    nobody = Manifest(manifest.frame.assign(patient=None), manifest.root)
    with pytest.raises(DataError, match="names no patient"):
        patients_of(nobody, None, None)


def test_invented_patients_share_no_cell(manifest: Manifest) -> None:
    frame, how = manifest.frame, Invented(patients=4, cells=5, seed=3)
    found, left_out = patients_of(manifest, Composition("lymphocyte", 0.4), how)
    again, _ = patients_of(manifest, Composition("lymphocyte", 0.4), how)
    assert [bag.rows.tolist() for bag in found] == [bag.rows.tolist() for bag in again]
    every = np.concatenate([bag.rows for bag in found])
    assert len(np.unique(every)) == len(every) == 4 * 5 * 3
    assert left_out["not drawn into a patient"] == len(manifest) - len(every)
    assert Counter(bag.label for bag in found) == {"positive": 6, "negative": 6}
    for bag in found:
        share = float((frame["label"].iloc[bag.rows] == "lymphocyte").mean())
        assert share >= 0.4 if bag.label == "positive" else share <= 0.2
        assert set(frame["site"].iloc[bag.rows]) == {bag.site}
    with pytest.raises(DataError, match="a cell is in one patient only"):
        patients_of(manifest, Composition("lymphocyte", 0.4), Invented(40, 5))
    with pytest.raises(ConfigError, match="--positive"):
        patients_of(manifest, None, how)


@pytest.mark.parametrize(("cell", "share"), [("lymphocite", 0.2), ("lymphocyte", 0.0), ("lymphocyte", 1.0)])
def test_bad_compositions(cell: str, share: float) -> None:
    with pytest.raises(ConfigError):
        Composition(cell, share)


def test_the_command_writes_bags_that_a_study_reads(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bags"
    command = ["data", "bags", str(tmp_path / "cells.csv"), "--model", "resnet10t", "--weights", "none"]
    command += ["--image-size", "32", "--positive", "lymphocyte", "--compose", "4", "--cells", "5", "--share", "0.4"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--out", str(out), "--cache", str(tmp_path / "cache")])
    assert end.value.code == 0
    assert "alder: 2 negative, 2 positive" in capsys.readouterr().out
    drafted, _ = draft_bags(out / "alder", site="alder")
    assert drafted.frame["problem"].isna().all()
    assert Counter(drafted.frame["source_label"]) == {"negative": 2, "positive": 2}
    assert drafted.frame["patient"].nunique() == 4
    with (out / "alder" / "slides.csv").open() as file:
        first = next(csv.DictReader(file))
    path = out / "alder" / f"{first['slide_id']}.h5"
    assert files.facts_of(path).encoder == "resnet10t"
    assert_features(files.read(path), files.read_names(path) or [], manifest)


def assert_features(found: np.ndarray, names: list[str], manifest: Manifest) -> None:
    """The same as timm's own, of pictures resized by PIL."""
    import timm
    from PIL import Image

    assert len(names) == len(found) == 5
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=2).eval()
    mean, std = (torch.tensor(network.default_cfg[k]).reshape(3, 1, 1) for k in ("mean", "std"))
    for row, name in zip(found, names, strict=True):
        pixels = decode(manifest.file(name))
        side = min(pixels.shape[:2])
        top, left = ((n - side) // 2 for n in pixels.shape[:2])
        square = Image.fromarray(pixels[top : top + side, left : left + side])
        picture = torch.from_numpy(np.array(square.resize((32, 32), Image.Resampling.BILINEAR))).permute(2, 0, 1) / 255
        with torch.no_grad():
            expected = network.forward_head(network.forward_features(((picture - mean) / std)[None]), pre_logits=True)[
                0
            ]
        cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(row), expected, dim=0)
        assert cosine > 0.98  # the store resizes with another filter
