"""``morphfed data init`` and ``morphfed data check``, through the command line's own entry point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from morphfed.cli import call
from morphfed.data.manifest import Manifest
from morphfed.data.synthetic import PRESETS, write_films

SITES = [PRESETS[name].model_copy(update={"image_px": 64, "um_per_px": 0.4}) for name in ("alder", "dogwood")]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    write_films(tmp_path / "films", SITES, {"neutrophil": 12, "monocyte": 12}, seed=1, patients=4)
    return tmp_path / "films"


def test_init_then_check(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "manifest.parquet"
    assert call(["data", "init", str(films), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "alder: 24 images" in said
    assert "monocyte 12, neutrophil 12" in said or "neutrophil 12, monocyte 12" in said
    assert said.endswith(f"next: morphfed data check {out}\n")
    frame = Manifest.read(out).frame
    assert len(frame) == 48
    assert set(frame["patient"]) == {f"{site.name}-P{n:02d}" for site in SITES for n in range(4)}
    assert set(frame["um_per_px"]) == {0.4}

    figure = tmp_path / "colours.png"
    assert call(["data", "check", str(out), "--classes", "neutrophil, monocyte", "--figure", str(figure)]) == 0
    said = capsys.readouterr().out
    assert "48 images at 2 sites (alder 24, dogwood 24): 0 errors" in said
    assert said.splitlines()[-1].startswith("next: ")
    assert figure.is_file()


def test_json_is_the_only_thing_on_stdout(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "manifest.csv"
    call(["data", "init", str(films / "alder"), "--site", "a", "--um-per-px", "0.3", "--out", str(out)])
    (films / "alder/monocyte/P00_0000.jpg").write_bytes(b"")
    capsys.readouterr()
    assert call(["data", "check", str(out), "--json", "--min-per-class", "20"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == "errors"
    assert {"unreadable", "small-class"} <= {finding["code"] for finding in report["findings"]}
    assert call(["data", "check", str(out), "--classes", "neutrophil,monocyte"]) == 3
    assert "next: mend the errors" in capsys.readouterr().out


def test_init_keeps_what_a_person_may_have_edited(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "manifest.csv"
    out.write_text("mine")
    assert call(["data", "init", str(films), "--out", str(out)]) == 3
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert call(["data", "init", str(films), "--out", str(out), "--force"]) == 0
    assert len(Manifest.read(out)) == 48


def test_what_was_left_out_is_said(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (films / "alder/labels.csv").unlink()
    (films / "alder/neutrophil").rename(films / "alder/neutrofilz")
    (films / "alder/notes.txt").write_text("x")
    call(["data", "init", str(films / "alder"), "--site", "a", "--out", str(tmp_path / "m.csv")])
    said = capsys.readouterr().out
    assert "'neutrofilz' 12" in said
    assert "notes.txt" in said


def test_mistakes_have_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["data", "init", str(tmp_path / "nowhere"), "--out", str(tmp_path / "m.csv")]) == 3
    assert call(["data", "check", str(tmp_path / "m.csv")]) == 3
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("fix:") == 2


def test_init_passes_options_on_to_the_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lab").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "lab" / "1.png")
    (tmp_path / "lab" / "a.csv").write_text("file,kind,second\n1.png,lymphocyte,monocyte\n")
    out = tmp_path / "m.csv"
    asked = ["--option", "path_column=file", "--option", "label_column=second"]
    assert call(["data", "init", str(tmp_path / "lab"), "--source", "table", *asked, "--out", str(out)]) == 0
    assert ",monocyte," in out.read_text()
    assert call(["data", "init", str(tmp_path / "lab"), "--option", "table", "--out", str(tmp_path / "n.csv")]) == 2
    assert "not NAME=VALUE" in capsys.readouterr().err
