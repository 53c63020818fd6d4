"""SIGKILL at exact moments, the same command again: the same model bytes as an uninterrupted run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from morphfed.core.files import sha256_file

# Each script arms one trap, then runs the command line as a user would.
TRAPS = {
    "in the cache, between a segment and its commit": """
from morphfed.data import segments
real = segments.write_json
segments.write_json = lambda *a: kill() if calls("commit") == 1 else real(*a)
""",
    "in a round, in the middle of a site's training": """
from morphfed.training.trainer import Trainer
real = Trainer._check
def check(self, *a, **k):
    if calls("step") == 11: kill()
    return real(self, *a, **k)
Trainer._check = check
""",
    "while writing a checkpoint, before its commit": """
from morphfed.federation import checkpoint
real = checkpoint.write_json
checkpoint.write_json = lambda *a: kill() if calls("commit") == 2 else real(*a)
""",
    "while writing a file, before the rename": """
import pathlib
real = pathlib.Path.replace
def replace(self, target):
    if "coordinator" in str(target) and calls("rename") == 2: kill()
    return real(self, target)
pathlib.Path.replace = replace
""",
    "while writing the final models": """
from morphfed.models import weights
real = weights.save
def save(path, *a):
    if path.name == "best.safetensors": kill()
    return real(path, *a)
weights.save = save
""",
    "while writing the results": """
from morphfed.experiment import runner
real = runner.write_json
runner.write_json = lambda path, value: kill() if path.name == "results.json" else real(path, value)
""",
}

PRELUDE = """
import os, signal, sys
from collections import Counter
counted = Counter()
def calls(name):
    counted[name] += 1
    return counted[name]
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
"""

RUN = "\nfrom morphfed.cli import call\nsys.exit(call(sys.argv[1:]))\n"


def _morphfed(study: Path, trap: str = "", *more: str) -> int:
    command = [
        sys.executable,
        "-c",
        PRELUDE + trap + RUN,
        "run",
        str(study),
        "--runs",
        str(study.parent / "runs"),
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode not in (0, -signal.SIGKILL):
        pytest.fail(done.stderr[-3000:])
    return done.returncode


def _models(study: Path) -> dict[str, str]:
    run = study.parent / "runs" / "tiny"
    return {str(p.relative_to(run)): sha256_file(p) for p in run.glob("units/*/*/*/*.safetensors")}


@pytest.fixture(scope="module")
def uninterrupted(drawn: Path, tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(drawn, folder / "films")
    (folder / "study.toml").write_text(tiny_text)
    assert _morphfed(folder / "study.toml") == 0
    found = _models(folder / "study.toml")
    assert len(found) == 2
    return found


@pytest.mark.parametrize("moment", TRAPS)
def test_killed_and_run_again(moment: str, tiny: Path, uninterrupted: dict[str, str]) -> None:
    assert _morphfed(tiny, TRAPS[moment]) == -signal.SIGKILL
    assert not (tiny.parent / "runs" / "tiny" / "results.json").exists()
    assert _morphfed(tiny) == 0
    assert _models(tiny) == uninterrupted
    assert (tiny.parent / "runs" / "tiny" / "report.html").is_file()
    assert not list((tiny.parent / "runs" / "tiny" / "units").rglob("*.part"))


def test_killed_in_the_last_fold_and_run_again(tiny: Path, uninterrupted: dict[str, str]) -> None:
    """Every site held out in turn: what is done stays, and the fold goes on to the bytes of the ordinary study."""
    more = ["holdout=each", "held_out=[]"]
    # Two steps and a last look a site, two sites, three rounds: 18 calls a fold. The 46th is in the last fold's second
    # round, at its second site.
    trap = TRAPS["in a round, in the middle of a site's training"].replace("== 11", "== 46")
    assert _morphfed(tiny, trap, *more) == -signal.SIGKILL
    run = tiny.parent / "runs" / "tiny"
    done = sorted(run.rglob("unit.json"))
    assert [p.relative_to(run).parts[1] for p in done] == ["alder", "birch"]
    before = [p.stat().st_mtime_ns for p in done]
    assert _morphfed(tiny, "", *more) == 0
    assert [p.stat().st_mtime_ns for p in done] == before
    found = {
        str(p.relative_to(run / "folds/cedar")): sha256_file(p)
        for p in run.glob("folds/cedar/units/*/*/*/*.safetensors")
    }
    assert found == uninterrupted, "the ordinary study that holds out cedar"
    assert len(list(run.glob("folds/*/report.html"))) == 3
    assert not list(run.rglob("*.part"))


def test_workers_die_with_their_parent_and_the_next_call_resumes(tiny: Path, uninterrupted: dict[str, str]) -> None:
    """The parent of a pool is killed in the middle of training; no orphan writes beside the resumed run."""
    study, run = tiny, tiny.parent / "runs" / "tiny"
    command = [sys.executable, "-c", PRELUDE + RUN, "run", str(study), "--runs", str(tiny.parent / "runs")]
    more = ["arms.fedprox={mu=0.1}", "compute.jobs=2"]
    parent = subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(run.glob("units/fedavg/all/seed-0/checkpoint/round-*.json")) and time.monotonic() < deadline:
        assert parent.poll() is None, "the study ended before it could be killed"
        time.sleep(0.02)
    children = _children(parent.pid)
    parent.kill()
    parent.wait()
    assert children
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in children)
    assert _morphfed(study, "", *more) == 0
    found = _models(study)
    assert {k: v for k, v in found.items() if k.startswith("units/fedavg")} == uninterrupted


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip("needs /proc to find the workers")
    return [int(child) for child in listed.read_text().split()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()
