"""``morphfed slides``: from drawing to features on the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from morphfed.cli import call

pytest.importorskip("openslide")
pytest.importorskip("h5py")
pytest.importorskip("imagecodecs")


def test_from_drawing_to_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides, tiles, features = (str(tmp_path / name) for name in ("s", "t", "f"))
    assert call(["slides", "synthesise", "tumour", slides, "--slides", "2", "--side-um", "512"]) == 0
    assert "next: morphfed slides tile" in capsys.readouterr().out
    tile = ["slides", "tile", slides, "--out", tiles, "--magnification", "10", "--tile-px", "64"]
    assert call(tile) == 0
    said = capsys.readouterr().out
    assert "8 slides: 8 done" in said
    assert "not slides: 8 .png, 1 .csv" in said
    embed = ["slides", "embed", tiles, "--encoder", "resnet10t", "--weights", "none", "--out", features]
    embed += ["--image-size", "32", "--device", "cpu"]
    assert call(embed) == 0
    said = capsys.readouterr().out
    assert "8 slides: 8 done" in said
    assert "× 512 features" in said
    assert "weights are random" in said
    assert len(list((tmp_path / "f" / "h5_files").glob("*.h5"))) == 8
    # Again: nothing is done twice; a broken slide is named and changes the exit code.
    (tmp_path / "s" / "broken.svs").write_bytes(b"x")
    assert call(tile) == 1
    said = capsys.readouterr().out
    assert "9 slides: 8 kept, 1 failed" in said
    assert "broken: failed: Slide" in said
    assert call(embed) == 0
    assert "8 kept" in capsys.readouterr().out
    with (tmp_path / "t" / "slides.csv").open(encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)].count("failed") == 1


def test_heads_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["list", "heads"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("abmil", "clam_sb", "dsmil", "gated_abmil", "max", "mean", "transmil"))
    assert call(["show", "gated_abmil"]) == 0
    said = capsys.readouterr().out
    assert "788,739 (embedding 524,800, attention 262,913, classifier 1,026)" in said
    assert "attention = 256    # L, width" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tile", "s", "--um-per-px", "0.5", "--magnification", "20"], "say the same"),
        (["tile", "s", "--slide-um-per-px", "300"], "expected 0.05 to 20"),
        (["tile", "s", "--magnification", "0"], "--magnification is 0"),
        (["tile", "s", "--overlap-px", "256"], "overlap_px must be below"),
        (["embed", "t", "--encoder", "resnet10t", "--weights", "none", "--batch-size", "0"], "--batch-size is 0"),
        (["embed", "t", "--encoder", "resnet10", "--weights", "none"], "Did you mean"),
        (["synthesise", "tumour", "s", "--slides", "1"], "expected at least 2"),
    ],
)
def test_wrong_settings_are_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["slides", *arguments]) == 2
    assert words in capsys.readouterr().err
