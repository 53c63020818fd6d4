"""The status document: what the coordinator writes of a run, and what `status` and `watch` make of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.deploy.statuses import NOW, done, failed, running, stopped
from tests.deploy.test_deployed import UNIT, Consortium

from morphfed.cli import call, watch
from morphfed.core.errors import ConfigError, StorageError
from morphfed.core.files import read_json, write_json
from morphfed.deploy.coordinator import train_over
from morphfed.deploy.deployment import Deployment
from morphfed.deploy.judging import jobs_of
from morphfed.deploy.recorder import Recorder, late_since, state_of
from morphfed.deploy.status import Status, alive, condition, exit_code, read_status
from morphfed.federation.transports.standing import Look, Standing

DEAD = 2**22 + 1  # above the largest process number of Linux


@pytest.fixture(autouse=True)
def _seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that is named in a document runs, unless it is the dead one."""
    monkeypatch.setattr("morphfed.deploy.status.alive", lambda pid: pid != DEAD)


def write(folder: Path, status: Status) -> Path:
    (folder / "federation.toml").write_text('name = "four-labs"\nhost = "x"\nport = 443\n')
    write_json(folder / "run" / "status.json", status.model_dump(mode="json"))
    return folder


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_leaves_its_figures_site_by_site(tiny: Path, tmp_path: Path) -> None:
    consortium = Consortium(tiny, tmp_path)
    folder = consortium.made.folder
    run, path = folder / "run", folder / "run/status.json"
    recorder = Recorder(folder, "tiny", consortium.agreed, run, path)
    link = consortium.link()
    job = jobs_of(consortium.agreed)[0]
    unit = job.units[0]
    recorder.begin(job)
    train_over(Deployment(link, consortium.agreed, consortium.settings, run, recorder), unit)
    recorder.finish(job)
    recorder.end("done", 0, None)
    told, kept = read_status(folder), read_json(run / UNIT / "unit.json")
    assert told is not None
    assert told.unit is not None
    assert (told.done, told.unit.round, told.unit.rounds) == (1, 3, 3)
    assert told.units[0].best_round == told.unit.best_round == kept["best_round"]
    assert (told.unit.bytes_up, told.unit.bytes_down) == (kept["bytes_up"], kept["bytes_down"])
    for site in told.sites:
        rows = [entry["sites"][site.name] for entry in kept["history"]]
        assert site.losses == pytest.approx([row["loss"] for row in rows], rel=1e-5)
        assert site.scores == pytest.approx([row["validation"][told.unit.metric] for row in rows], rel=1e-5)
        assert site.bytes_up > kept["bytes_up"] / 2  # what travelled holds the uploads
        assert site.ledger == kept["ledgers"][site.name]
    assert (condition(told), exit_code(told)) == ("done", 0)
    # A second start of the same study counts on.
    again = Recorder(folder, "tiny", consortium.agreed, run, path)
    again.write()
    carried = read_status(folder)
    assert carried is not None
    assert [s.bytes_up for s in carried.sites] == [s.bytes_up for s in told.sites]
    assert carried.units == told.units


def look(step: str = "round 3", now: float = 1000.0, **sites: Standing) -> Look:
    return Look(now, step, sites)


def test_a_site_is_late_when_it_takes_twice_as_long_as_the_others() -> None:
    quick = Standing(True, 1000.0, asked=800.0, answered=850.0)  # 50 s
    slow = Standing(True, 1000.0, asked=800.0, answered=870.0)  # 70 s; median 60 s, patience 120 s
    open_ = Standing(True, 1000.0, asked=800.0, until=4400.0)
    assert late_since(look(now=919.0, a=quick, b=slow, c=open_)) == {}
    assert late_since(look(now=921.0, a=quick, b=slow, c=open_)) == {"c": 920.0}
    # Fewer than half are back: nothing to compare with. Short rounds: half a minute at least.
    assert late_since(look(now=921.0, a=quick, b=open_, c=open_, d=open_)) == {}
    brief = Standing(True, 1000.0, asked=800.0, answered=801.0)
    assert late_since(look(now=829.0, a=brief, b=open_)) == {}
    assert late_since(look(now=831.0, a=brief, b=open_)) == {"b": 830.0}


@pytest.mark.parametrize(
    ("standing", "step", "late", "revoked", "expected"),
    [
        (Standing(True, 1.0), "round 2", None, False, "connected"),
        (Standing(True, 1.0, asked=1.0, answered=2.0), "round 2", None, False, "connected"),
        (Standing(True, 1.0, asked=1.0, until=9.0), "round 2", None, False, "working"),
        (Standing(True, 1.0, asked=1.0, until=9.0), "round 2", 5.0, False, "late"),
        (Standing(False, 1.0, asked=1.0, until=9.0), "round 2", 5.0, False, "away"),
        (Standing(False), "start", None, False, "away"),
        (Standing(False, 1.0), "round 2", None, True, "revoked"),
        (Standing(True, 1.0), "round 2", None, True, "connected"),  # nginx has not been reloaded yet
        (Standing(True, 1.0, fault="refused", why="no"), "round 2", None, False, "refused"),
        (Standing(True, 1.0, asked=1.0, until=9.0, fault="refused"), "start", None, False, "refused"),
        (Standing(True, 1.0, asked=1.0, until=9.0, fault="refused"), "round 2", None, False, "working"),
        (Standing(True, 1.0, fault="unusable", why="NaN"), "round 2", None, False, "connected"),
    ],
)
def test_one_word_for_a_site(standing: Standing, step: str, late: float | None, revoked: bool, expected: str) -> None:
    assert state_of(standing, look(step, a=standing), late, revoked) == expected


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_became_of_the_coordinator(tmp_path: Path) -> None:
    old = datetime.now(UTC) - timedelta(minutes=3)
    assert condition(None) == "not started"
    assert condition(running(pid=DEAD, written=datetime.now(UTC))) == "running"  # fresh: a process of another container
    assert condition(running(pid=DEAD, written=old)) == "killed"
    assert exit_code(running(pid=DEAD, written=old)) == 1
    assert [(condition(s), exit_code(s)) for s in (done(), failed(), stopped())] == [
        ("done", 0),
        ("failed", 6),
        ("stopped", 130),
    ]
    assert not alive(DEAD)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "coordinator"]) as other:
        end = time.monotonic() + 10
        while not alive(other.pid) and time.monotonic() < end:
            time.sleep(0.02)
        assert alive(other.pid)
        assert condition(running(pid=other.pid, written=old)) == "running"
        other.kill()
    assert not alive(other.pid)


def test_documents_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no federation's folder"):
        read_status(tmp_path)
    folder = write(tmp_path, running())
    assert read_status(folder) == running()
    path = folder / "run/status.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(StorageError, match="schema version 9"):
        read_status(folder)
    path.write_text('{"study": "of before there were versions"}')
    with pytest.raises(StorageError, match="schema version None"):
        read_status(folder)
    path.unlink()
    assert read_status(folder) is None


def test_the_commands_print_and_leave_with_the_runs_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write(tmp_path, running()))
    assert call(["federation", "watch", folder, "--once"]) == 0
    out = capsys.readouterr().out
    for words in (
        "federation four-labs: running",
        "unit 3 of 4: fedprox/all/seed-0, 7 of 20 rounds done; 2 of 4 units done",
        "best balanced_accuracy 0.831 in round 7",
        "ε 2.31 at δ 1e-05",
        "site kampala: working since",
        "site lagos: connected, answer in, balanced_accuracy",
        "site oslo: late since",
        "site quito: not connected since",
        "goes on without it at",
        "2 rounds missed",
        "98.5 MB down, 138 MB up",
        f"ledger of kampala: {'5f0c' * 16}",
    ):
        assert words in out
    assert call(["federation", "status", folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["condition"] == "running"
    assert told["schema_version"] == 1
    write(tmp_path, failed())
    assert call(["federation", "status", folder]) == 6
    out = capsys.readouterr().out
    assert "error MF050: Round 8: 1 of 4" in out
    assert "site kampala: refused" in out
    assert f"next: morphfed coordinator start {folder}" in out
    write(tmp_path, stopped())
    assert call(["federation", "status", folder]) == 0
    assert call(["federation", "watch", str(tmp_path / "not-there")]) == 2


@pytest.mark.parametrize(("end", "code"), [(done, 0), (failed, 6), (stopped, 130)])
def test_watching_ends_with_the_run_and_its_code(
    end: object, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From before the start to the end, away from a terminal: lines when something changes, and only then."""
    last = end()  # type: ignore[operator]
    folder = write(tmp_path, running())
    (folder / "run/status.json").unlink()
    first = running()
    unit, (kampala, *others) = first.unit, first.sites
    assert unit is not None
    later = running(
        unit=unit.model_copy(update={"round": 8}),
        sites=(kampala.model_copy(update={"state": "connected", "until": None}), *others),
    )
    steps = iter([first, first, later, later, last])

    def sleep(seconds: float) -> None:
        write(folder, next(steps))

    assert watch.follow(folder, json=False, sleep=sleep) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("not started")
    assert sum("federation four-labs: running" in line for line in lines) == 1
    assert sum("8 of 20 rounds done" in line and line[2] == ":" for line in lines) == 1
    assert sum("site kampala: connected" in line for line in lines) == 1
    assert any(f"federation four-labs: {last.ended}" in line for line in lines)
    assert watch.follow(folder, json=True, sleep=sleep) == code
    assert json.loads(capsys.readouterr().out)["condition"] == last.ended


def test_a_killed_coordinator_may_come_back_within_a_minute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = NOW - timedelta(minutes=3)
    folder = write(tmp_path, running(pid=DEAD, written=old))
    slept: list[float] = []
    assert watch.follow(folder, json=False, sleep=slept.append) == 1
    assert sum(slept) == pytest.approx(watch.GRACE, abs=3)
    out = capsys.readouterr().out
    assert out.count("killed: the coordinator") == 1
    assert "was connected" in out
    slept.clear()

    def comes_back(seconds: float) -> None:
        slept.append(seconds)
        write(folder, running(pid=DEAD, written=old) if len(slept) < 30 else done())

    assert watch.follow(folder, json=False, sleep=comes_back) == 0


@pytest.mark.parametrize("status", [None, running(), done(), failed()], ids=["none", "running", "done", "failed"])
def test_the_live_view_fits_a_narrow_terminal(status: Status | None, tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    for width in (80, 140):
        out = StringIO()
        Console(file=out, width=width, force_terminal=True, color_system=None).print(
            watch.view(status, tmp_path, width=width)
        )
        assert all(len(line) <= width for line in out.getvalue().splitlines())
        for site in () if status is None else status.sites:  # a row each, unbroken
            assert any(
                li.startswith(site.name) and watch.said(site, live=status is None or not status.ended) in li
                for li in out.getvalue().splitlines()
            )


def test_status_and_watch_start_without_torch(tmp_path: Path) -> None:
    folder = write(tmp_path, failed())
    program = (
        "import sys; from morphfed.cli import call\n"
        f"assert call(['federation', 'watch', {str(folder)!r}, '--once']) == 6\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
