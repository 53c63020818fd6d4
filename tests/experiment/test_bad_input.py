"""Everything that sites really bring: a clear error or a counted warning, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from morphfed.cli import call
from morphfed.core.errors import ConfigError, DataError, StorageError
from morphfed.experiment.prepare import prepare
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import load_study


def _prepare(study: Path, *overrides: str) -> Any:
    found, _ = load_study(study, overrides)
    return prepare(found, study.parent / "run", study.parent / "cache", study.parent)


def _first(study: Path, site: str = "alder", label: str = "neutrophil") -> Path:
    return sorted((study.parent / "films" / site / label).glob("*.jpg"))[0]


def _left_out(prepared: Any, site: str = "alder") -> dict[str, int]:
    return {entry["why"]: entry["n"] for entry in prepared.info[site]["left_out"]}


@pytest.mark.parametrize("fault", ["truncated", "empty", "text", "vanished"])
def test_an_unreadable_file_is_left_out_counted_and_named(tiny: Path, fault: str) -> None:
    path = _first(tiny)
    content = path.read_bytes()
    if fault == "vanished":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[: len(content) // 3], "empty": b"", "text": b"not an image"}[fault])
    prepared = _prepare(tiny)
    assert _left_out(prepared) == {"the file cannot be read": 1}
    assert prepared.info["alder"]["unreadable"] == [path.name]
    assert sum(len(part) for part in prepared.sets["alder"].values()) == 27
    assert prepared.info["alder"]["n"] == 27


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P"])
def test_other_modes_are_converted_and_used(tiny: Path, mode: str) -> None:
    path = _first(tiny)
    grey = np.asarray(Image.open(path).convert("L"))
    png = path.with_suffix(".png")
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 257).save(png)
    else:
        Image.open(path).convert(mode).save(png)
    path.unlink()
    table = path.parent.parent / "labels.csv"
    table.write_text(table.read_text().replace(f"neutrophil/{path.name}", f"neutrophil/{png.name}"))
    prepared = _prepare(tiny)
    assert _left_out(prepared) == {}
    assert prepared.info["alder"]["n"] == 28


def test_an_empty_site_is_named(tiny: Path) -> None:
    shutil.rmtree(tiny.parent / "films" / "birch")
    (tiny.parent / "films" / "birch").mkdir()
    with pytest.raises(DataError, match="'birch'"):
        _prepare(tiny)


def test_a_site_that_is_not_there_is_named(tiny: Path) -> None:
    with pytest.raises(DataError, match=r"Site 'alder': the folder .*nowhere does not exist"):
        _prepare(tiny, "sites.alder.path='nowhere'")


def test_a_site_without_the_studys_classes_is_named(tiny: Path) -> None:
    with pytest.raises(DataError, match=r"Site 'alder': none of its images has a label .*\(monocyte, basophil\)"):
        _prepare(tiny, "classes=['monocyte','basophil']")


def _drop_class(study: Path, site: str, label: str, keep: int) -> None:
    folder = study.parent / "films" / site
    table = (folder / "labels.csv").read_text().splitlines()
    rows = [row for row in table[1:] if f"{label}/" in row]
    gone = set(rows[keep:])
    (folder / "labels.csv").write_text("\n".join(r for r in table if r not in gone) + "\n")
    for row in gone:
        (folder / row.split(",")[0]).unlink()


def test_a_site_with_one_class_trains_and_is_judged(tiny: Path) -> None:
    _drop_class(tiny, "alder", "neutrophil", 0)
    done = run_study(tiny, Options(tiny.parent / "runs", overrides=["federation.rounds=1"]))
    results = json.loads(done.results.read_text())
    site = results["arms"][0]["sites"]["alder"]
    assert site["classes_present"] == ["lymphocyte"]
    assert site["metrics"]["auroc"]["value"] is None
    assert site["metrics"]["balanced_accuracy"]["value"] is not None
    assert done.report.is_file()


def test_a_class_with_one_image_is_trained_on_and_said(tiny: Path) -> None:
    _drop_class(tiny, "alder", "neutrophil", 1)
    prepared = _prepare(tiny)
    assert prepared.info["alder"]["classes"]["neutrophil"] == {"train": 1, "validation": 0, "test": 0}
    assert any("neutrophil" in note and "alder" in note for note in prepared.notes)


def test_an_unknown_label_is_counted_not_dropped_silently(tiny: Path) -> None:
    table = tiny.parent / "films" / "alder" / "labels.csv"
    table.write_text(table.read_text().replace(",neutrophil,", ",neutrofhil cell,", 2))
    prepared = _prepare(tiny)
    assert _left_out(prepared) == {"label 'neutrofhil cell' is not in the ontology": 2}


def test_the_same_picture_at_two_sites_is_found_by_the_check(tiny: Path) -> None:
    shutil.copy(_first(tiny, "cedar"), _first(tiny, "alder"))
    done = run_study(tiny, Options(tiny.parent / "runs", overrides=["federation.rounds=1", "data.check=true"]))
    findings = json.loads(done.results.read_text())["data"]["check"]["findings"]
    found = [f for f in findings if "sites" in f["message"] and f["count"] >= 1 and f["examples"]]
    assert any("alder" in " ".join([f["message"], *f["examples"]]) for f in found), findings


def test_a_nan_loss_names_the_site_and_the_other_units_go_on(tiny: Path) -> None:
    overrides = ["arms.wild={algorithm='fedavg', train={lr=1e30, optimizer='sgd', warmup=0}, federation={quorum=1.0}}"]
    done = run_study(tiny, Options(tiny.parent / "runs", overrides=[*overrides, "federation.rounds=1"]))
    assert list(done.failed) == ["wild/all/seed-0"]
    assert "Site 'alder', round 1: the training loss stopped being finite" in done.failed["wild/all/seed-0"]
    results = json.loads(done.results.read_text())
    assert [a["arm"] for a in results["arms"]] == ["fedavg"]
    assert results["failed"][0]["unit"] == "wild/all/seed-0"


def test_a_full_disk_stops_with_a_clear_error_and_the_same_command_goes_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from morphfed.models import weights

    real, saved = weights.save, []

    def save(path: Path, *more: Any) -> None:
        saved.append(path)
        if len(saved) == 3:
            from morphfed.core.files import storage_error

            raise storage_error(path, OSError(errno.ENOSPC, "No space left on device"))
        real(path, *more)

    options = Options(tiny.parent / "runs")
    with monkeypatch.context() as patched:
        patched.setattr(weights, "save", save)
        with pytest.raises(StorageError, match="The disk is full"):
            run_study(tiny, options)
    assert list((tiny.parent / "runs/tiny/units/fedavg/all/seed-0/checkpoint").glob("round-*.json"))
    assert run_study(tiny, options).report.is_file()


def test_a_read_only_run_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **keys: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere, so permissions alone would not do
    with pytest.raises(StorageError, match="cannot be written: read-only file system"):
        run_study(tiny, Options(tiny.parent / "runs"))


def test_other_settings_in_the_same_folder_are_refused(tiny: Path) -> None:
    run_study(tiny, Options(tiny.parent / "runs", overrides=["federation.rounds=1"]))
    with pytest.raises(ConfigError, match=r"other settings: .*rounds: 1 → 2"):
        run_study(tiny, Options(tiny.parent / "runs", overrides=["federation.rounds=2"]))


def test_two_processes_in_one_run_folder(tiny: Path) -> None:
    from filelock import FileLock

    run = tiny.parent / "runs" / "tiny"
    run.mkdir(parents=True)
    with FileLock(run / ".lock"), pytest.raises(StorageError, match="Another morphfed process works in"):
        run_study(tiny, Options(tiny.parent / "runs"))


def test_damaged_prepared_data_is_noticed(tiny: Path) -> None:
    _prepare(tiny)
    path = tiny.parent / "run" / "prepared.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StorageError, match=r"prepared\.parquet is damaged"):
        _prepare(tiny)


class TestCommandLine:
    """No traceback, the right exit code, the fix on stderr."""

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (["run", "nowhere.toml"], 2, "does not exist"),
            (["run"], 2, "STUDY"),
            (["rnu"], 2, "run"),
            (["run", "x.toml", "--rnus", "a"], 2, "--runs"),
            (["report", "nowhere"], 7, "not finished"),
            (["show", "fedpox"], 2, "Did you mean 'fedprox'"),
            (["list", "algoritms"], 2, "algorithms"),
        ],
    )
    def test_mistakes(self, arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert call(arguments) == code
        out = capsys.readouterr()
        assert said in out.err + out.out
        assert "Traceback" not in out.err

    def test_lists(self, capsys: pytest.CaptureFixture[str]) -> None:
        for kind, name in (
            ("algorithms", "fedprox"),
            ("sources", "pbc"),
            ("classes", "promyelocyte"),
            ("models", "resnet34"),
        ):
            assert call(["list", kind]) == 0
            assert name in capsys.readouterr().out
        for name in ("fedprox", "pbc", "promyelocyte", "resnet10t"):
            assert call(["show", name]) == 0
            assert name in capsys.readouterr().out
        assert call(["show", "qfedavg"]) == 0
        assert "\n  lipschitz = …    # L; " in capsys.readouterr().out  # a key without a default
