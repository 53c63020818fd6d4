"""The demo, as a newcomer runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from morphfed.cli import call


@pytest.mark.slow
def test_demo_ends_with_a_report_and_a_second_call_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert call(["demo", "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert str(runs / "demo" / "report.html") in out
    results = json.loads((runs / "demo" / "results.json").read_text())
    by_model = {
        s["model"]: s["mean"]
        for s in results["summary"]
        if (s["scope"], s["metric"]) == ("mean_training", "balanced_accuracy")
    }
    # Five classes: chance is 0.2. The films are easy on purpose.
    assert by_model["centralised"] > 0.8
    assert by_model["fedavg"] > 0.5
    before = {p: p.stat().st_mtime_ns for p in runs.glob("demo/units/*/*/*/unit.json")}
    assert len(before) == 6
    assert call(["demo", "--runs", str(runs)]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}
