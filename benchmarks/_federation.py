"""A federation over nginx, TLS and keys on this machine, with stub or real sites, watched from outside."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from _table import NotMeasuredError

if TYPE_CHECKING:
    from tests.machines import Machines

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the machines of the tests are those that are measured

UNIT = Path("units/fedavg/all/seed-0")
_TICK = os.sysconf("SC_CLK_TCK")

STUDY = """\
name = "timing"
seeds = [0]
classes = ["neutrophil", "lymphocyte"]
[sites]
{sites}
[data]
root = "films"
image_size = 32
field_um = 20.0
check = false
[model]
name = "{model}"
tune = "{tune}"
weights = "{weights}"
[train]
lr = 1e-3
batch_size = 8
precision = "fp32"
[federation]
rounds = {rounds}
{federation}
[arms.fedavg]
[evaluation]
resamples = 100
[compute]
device = "cpu"
threads = 1
"""


def study(
    model: str, sites: Sequence[str], rounds: int, *, tune: str = "full", weights: str = "none", federation: str = ""
) -> str:
    """A study file."""
    places = "\n".join(f'{site} = {{ path = "{site}" }}' for site in sites)
    return STUDY.format(sites=places, model=model, tune=tune, weights=weights, rounds=rounds, federation=federation)


def needs() -> None:
    """Raises NotMeasuredError where a federation cannot be run."""
    if sys.platform != "linux":
        raise NotMeasuredError("processes are watched on Linux only")
    if find_spec("flwr") is None or find_spec("cryptography") is None:
        raise NotMeasuredError("flwr >= 1.41 is not installed; see `make test-network`")
    if not (os.environ.get("NGINX") or shutil.which("nginx")):
        raise NotMeasuredError("0 of 1 nginx found; install it, or set NGINX=PATH")


@dataclass
class Seen:
    """What was seen of a process.

    Attributes:
        cpu: seconds of processor time.
        peak: resident bytes at most.
    """

    cpu: float = 0.0
    peak: int = 0


@dataclass
class Watch:
    """Looks at processes until it is closed; those that end keep what was last seen."""

    folder: Path
    seen: dict[str, Seen] = field(default_factory=dict)
    disk: int = 0
    _pids: dict[str, int] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def begin(self, pids: dict[str, int]) -> None:
        """Watch these from now on."""
        self._pids |= pids
        if len(self._pids) == len(pids):
            threading.Thread(target=self._look, daemon=True).start()

    def close(self) -> None:
        """No further look."""
        self._stop.set()

    def _look(self) -> None:
        while not self._stop.wait(0.3):
            for name, pid in self._pids.items():
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                    stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                peak = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
                if peak:
                    self.seen[name] = Seen((int(stat[11]) + int(stat[12])) / _TICK, peak[0])
            files = (path for path in self.folder.glob("run/flower/flower.db*"))
            self.disk = max(self.disk, sum(path.stat().st_size for path in files if path.exists()))


@dataclass(frozen=True)
class Rounds:
    """A federation that ran to its end.

    Attributes:
        seconds: of each round, from one question to train to the next at the first site; the last one's is not known.
        seen: by process.
        disk: most bytes that Flower's server kept.
        cpu: processor time of all processes per round, over the rounds between the first and the last.
        sent: bytes of the parcels that reached the first site, by round.
    """

    seconds: list[float]
    seen: dict[str, Seen]
    disk: int
    cpu: float
    sent: dict[int, int]


@contextmanager
def machines(text: str, *, host: str = "localhost") -> Iterator[Machines]:
    """A federation's folder with nginx running."""
    from tests.machines import Machines

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "study.toml").write_text(text)
        made = Machines(here / "study.toml", here / "m", host=host)
        made.folder.mkdir()
        try:
            made.init()
            yield made
        finally:
            made.stop()


def stubs(made: Machines, sites: Sequence[str], processes: int = 1) -> list[str]:
    """Start sites that train nothing; returns the names of their processes."""
    names = []
    for number in range(processes):
        names.append(f"stubs{number}")
        command = [sys.executable, str(Path(__file__).with_name("_stub_sites.py")), "fed", *sites[number::processes]]
        made.start_command(names[-1], command)
    return names


def events(made: Machines, name: str) -> list[dict]:
    """What a stub process has told."""
    lines = made.log(name).splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]


def idle(text: str, sites: Sequence[str], *, processes: int = 1, timeout: float = 1800) -> Rounds:
    """Run a study over stub sites."""
    needs()
    with machines(text) as made:
        names = stubs(made, sites, processes)
        made.coordinate()
        watch = Watch(made.folder / "fed")
        watch.begin({"coordinator": made.running["coordinator"].pid, **{n: made.running[n].pid for n in names}})
        end = time.monotonic() + 300
        while not (server := made.server()):
            if made.running["coordinator"].poll() is not None or time.monotonic() > end:
                raise NotMeasuredError(f"the coordinator did not start: {made.log('coordinator')[-300:]}")
            time.sleep(0.2)
        nginx = subprocess.run(["pgrep", "-P", str(made.running["nginx"].pid)], capture_output=True, text=True)
        watch.begin({"server": server, "nginx": int(nginx.stdout.split()[0])})
        marks: dict[int, float] = {}
        while made.running["coordinator"].poll() is None:
            for event in events(made, names[0]):
                if event["kind"] == "train" and event["round"] not in marks:
                    marks[event["round"]] = sum(seen.cpu for seen in watch.seen.values())
            if time.monotonic() > end + timeout:
                raise NotMeasuredError("it did not end")
            time.sleep(0.5)
        watch.close()
        if made.running["coordinator"].returncode:
            raise NotMeasuredError(f"the coordinator failed: {made.log('coordinator')[-300:]}")
        told = [e for e in events(made, names[0]) if e["kind"] == "train" and e["site"] == sites[0]]
        times = [e["time"] for e in told]
        sent: dict[int, int] = {}
        for event in events(made, names[0]):
            if event["site"] == sites[0] and event["round"]:
                sent[event["round"]] = sent.get(event["round"], 0) + event["bytes"]
        first, last = min(marks), max(marks)
        cpu = (marks[last] - marks[first]) / max(1, last - first)
        return Rounds([b - a for a, b in pairwise(times)], watch.seen, watch.disk, cpu, sent)


def told(found: Rounds) -> str:
    """For a look."""
    seen = ", ".join(f"{n} {s.peak / 2**20:.0f} MiB {s.cpu:.1f} s" for n, s in found.seen.items())
    each = " ".join(f"{s:.2f}" for s in found.seconds)
    middle = statistics.median(found.seconds)
    return f"{middle:.2f} s ({each}); processor {found.cpu:.2f} s a round; disk {found.disk / 2**20:.0f} MiB; {seen}"
