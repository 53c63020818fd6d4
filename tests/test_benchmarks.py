"""Every benchmark runs with tiny sizes and without other frameworks; its figures then mean nothing."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux only")


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(str(FOLDER))]:
        del sys.modules[name]


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", NAMES)
def test_benchmark(name: str) -> None:
    table = load("_table")
    rows = list(load(name).rows(table.Options(quick=True, rivals=False, repeats=1)))
    assert rows
    for row in rows:
        assert row.met is None, "a quick run must not claim a target"
        assert any(c.isdigit() for c in row.ours)
    assert all(row.what in table.markdown(rows) for row in rows)


def test_without_a_gpu_nothing_is_claimed_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, table = load("gpu"), load("_table")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    rows = list(gpu.rows(table.Options()))
    assert [row.what.split(", ")[1:] for row in rows] == [
        [name, "224 px", how] for name in ("ResNet-34", "DINOv2-S") for how in ("eager", "compiled")
    ]
    assert {(row.ours, row.met) for row in rows} == {("not measured: no GPU here", None)}


def test_one_file_prints_rows_for_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = load("_table")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["x", "--no-rivals", "--repeats", "3", "--json"])
    table.run(lambda options: [table.Row("µ", str(options))])
    (line,) = capsys.readouterr().out.splitlines()
    assert table.Row(**json.loads(line)) == table.Row("µ", "Options(quick=False, rivals=False, repeats=3)")


def test_table_numbers_notes_and_shows_what_was_missed() -> None:
    table = load("_table")
    rows = [
        table.Row("a", "1 s", met=True, note="why"),
        table.Row("b", "2 s", met=False, note="why"),
        table.Row("c", "3 s", note="else"),
    ]
    assert table.markdown(rows) == (
        "| what | ours | rival | ratio | target | |\n|---|---|---|---|---|---|\n"
        "| a [1] | 1 s | – | – | – | met |\n"
        "| b [1] | 2 s | – | – | – | **missed** |\n"
        "| c [2] | 3 s | – | – | – | – |\n\n"
        "1. why\n2. else\n"
    )


def test_spread() -> None:
    spread = load("_table").spread
    assert spread([0.5], "s") == "0.5 s"
    assert spread([3.0, 1.0, 2.0]) == "2 (1 – 3)"
    assert spread([1234.5, 1000.2], "MiB") == "1,117 (1,000 – 1,234) MiB"


def test_sides_take_turns_and_who_begins_changes() -> None:
    said: list[str] = []
    sides = [lambda: said.append("a") or 1.0, lambda: said.append("b") or 2.0]
    assert load("_table").alternate(sides, 2) == [[1.0, 1.0], [2.0, 2.0]]
    assert "".join(said) == "ab" + "ba" + "ab"  # the first turn is not counted


def test_peak_memory_of_this_process_is_seen_and_forgotten() -> None:
    memory = load("_memory")
    memory.forget_peak()
    before = memory.resident()
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    assert memory.peak() - before > 60 * 2**20
    del block
    memory.forget_peak()
    assert memory.peak() - before < 32 * 2**20


def test_a_watched_command_counts_its_children_and_stops_what_it_leaves() -> None:
    memory = load("_memory")
    # The grandchild leaves the session, holds 80 MiB and would sleep for a minute.
    left = "import time; b = bytearray(b'x') * (80 * 2**20); time.sleep(60)"
    code = (
        "import subprocess, sys, time;"
        f"p = subprocess.Popen([sys.executable, '-c', {left!r}], start_new_session=True,"
        " stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
        "time.sleep(2); print(p.pid)"
    )
    done = memory.watch([sys.executable, "-c", code], cwd=Path.cwd(), variables={"PATH": "/usr/bin"})
    assert done.processes == 2
    assert done.peak > 80 * 2**20
    assert 2 <= done.seconds < 30
    limit = time.monotonic() + 30
    while Path(f"/proc/{done.output.strip()}/exe").exists() and time.monotonic() < limit:
        time.sleep(0.1)
    assert time.monotonic() < limit, "the grandchild still runs"


def test_a_watched_command_that_fails_is_not_measured() -> None:
    with pytest.raises(load("_table").NotMeasuredError, match="exit code 3: why"):
        load("_memory").watch([sys.executable, "-c", "print('why'); raise SystemExit(3)"], cwd=Path.cwd(), variables={})


def test_a_rival_that_cannot_be_installed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rivals = load("_rivals")
    monkeypatch.setattr(rivals, "PROJECT", tmp_path)
    monkeypatch.setattr(rivals, "CACHE", tmp_path / ".bench")

    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "warning\nno network")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(load("_table").NotMeasuredError, match="flwr.* could not be installed: no network"):
        rivals.environment("flwr")


def test_rivals_never_see_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "src")
    found = load("_rivals").variables()
    assert "PYTHONPATH" not in found
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
