"""scripts/pool-splits on two small runs that are worked by hand."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morphfed.evaluation.predictions import Predictions, write_predictions

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "pool-splits"
NAMES = ("no", "yes")


def write_run(run: Path, positive: dict[str, dict[str, list[float]]], labels: list[int], bags: list[str]) -> Path:
    """Two bags a class or so at each site; ``positive`` is arm → site → probability of yes."""
    entries = []
    for arm, sites in positive.items():
        local = arm == "local"
        for place in sites if local else ["all"]:
            folder = run / "units" / arm / place / "seed-0"
            folder.mkdir(parents=True)
            found = {}
            for site, yes in sites.items():
                p = np.array(yes)
                ids = np.array([f"{site}/{bag}" for bag in bags])
                found[site] = Predictions(NAMES, ids, np.array(labels), np.stack([1 - p, p], axis=1), ids, "bag")
            write_predictions(folder / "predictions.parquet", found)
            history = [{"sites": {site: {"validation": {"balanced_accuracy": 0.75}} for site in sites}}]
            (folder / "unit.json").write_text(json.dumps({"best_round": 1, "history": history}))
            trained = [place] if local else list(sites)
            entries.append({"arm": arm, "algorithm": arm, "seed": 0, "trained_on": trained})
    (run / "results.json").write_text(json.dumps({"arms": entries}))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    first = {"local": {"a": [0.2, 0.9], "b": [0.6, 0.7]}, "fedavg": {"a": [0.1, 0.9], "b": [0.3, 0.8]}}
    second = {
        "local": {"a": [0.7, 0.9, 0.2], "b": [0.4, 0.3, 0.9]},
        "fedavg": {"a": [0.1, 0.9, 0.7], "b": [0.6, 0.1, 0.9]},
    }
    one = write_run(tmp_path / "0", first, [0, 1], ["x", "y"])
    return [one, write_run(tmp_path / "1", second, [0, 1, 1], ["x", "z", "w"])]


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *given: Any) -> str:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, given)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code in (0, None), end.value.code
    return capsys.readouterr().out


def test_matrices_add_up_and_areas_are_averaged(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = call(monkeypatch, capsys, *runs)
    assert "2 splits, seeds [0]; 8 clusters tested; tests by site: {'a': 5, 'b': 5}" in said
    rows = {cells[1].strip(): cells[2:-1] for line in said.splitlines() if len(cells := line.split("|")) == 8}
    value = {
        arm: [float(cell.split()[0]) for cell in cells] for arm, cells in rows.items() if arm in ("local", "fedavg")
    }
    # local at a: no 1 of 2 right, yes 2 of 3; at b: no 1 of 2, yes 2 of 3. Areas: a 1 and 1/2, b 1 and 1/2.
    assert value["local"] == pytest.approx([0.75, 7 / 12, 7 / 12, 0.75, 0.75], abs=6e-4)
    # fedavg at a: all right; at b: no 1 of 2, yes 2 of 3. Areas: a 1 and 1, b 1 and 1/2.
    assert value["fedavg"] == pytest.approx([0.75, (1 + 7 / 12) / 2, 7 / 12, 0.875, 0.75], abs=6e-4)
    difference = next(line for line in said.splitlines() if line.startswith("| fedavg − local"))
    assert "+0.208" in difference


def test_runs_that_differ_are_refused(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((runs[1] / "results.json").read_text())
    results["arms"] = [entry for entry in results["arms"] if entry["arm"] == "local"]
    (runs[1] / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, runs)])
    with pytest.raises(SystemExit, match="not in all of them is fedavg 0 a"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "| local |" in call(monkeypatch, capsys, *runs, "--arms", "local")
