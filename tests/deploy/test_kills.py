"""Each process of a federation is killed at random moments; started again, every run ends with the right model.

An hour long: `make test-network-slow`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("flwr") is None:  # not importorskip: the adapter sets what Flower reads when it is imported
    pytest.skip("the extra 'flower' is not installed", allow_module_level=True)
pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.machines import NGINX, Machines

from morphfed.core.files import read_json, sha256_file
from morphfed.experiment.runner import Options, run_study
from morphfed.privacy.ledger import verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt install nginx; or NGINX=PATH)"),
]

UNIT = Path("units/fedavg/all/seed-0")
SITES = ("alder", "birch")
VICTIMS = ("alder", "coordinator", "server", "nginx")
RUNS = -(-int(os.environ.get("MORPHFED_KILLS", "20")) // len(VICTIMS))
ROUNDS = 16


@pytest.fixture(scope="module")
def study(drawn: Path, tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    shutil.copytree(drawn, folder / "films")
    (folder / "study.toml").write_text(
        tiny_text.replace("rounds = 3", f"rounds = {ROUNDS}").replace("resnet10t", "test_resnet")
    )
    return folder / "study.toml"


@pytest.fixture(scope="module")
def right(study: Path) -> list[str]:
    """The model files of a run in one process."""
    return _models(run_study(study, Options(study.parent / "runs")).run)


@pytest.fixture(scope="module")
def machines(study: Path) -> Iterator[Machines]:
    """Sites that stay from run to run. None may be left out of a round: it waits as long as it takes."""
    made = Machines(study, study.parent / "m", waits={"gather": 900, "absent": 900})
    made.folder.mkdir()
    made.init()
    for site in SITES:
        made.prepare(site)
        made.join(site, "--stay")
    yield made
    made.stop()


def _models(run: Path) -> list[str]:
    return [sha256_file(run / UNIT / f"{name}.safetensors") for name in ("best", "last")]


def _asked(machines: Machines) -> int:
    """How often birch was asked to train."""
    return machines.log("birch").count("train ")


def _until_asked(machines: Machines, before: int) -> None:
    end = time.monotonic() + 900
    while _asked(machines) == before:
        assert time.monotonic() < end, machines.log("coordinator") + machines.log("birch")
        time.sleep(0.05)


def _kill(machines: Machines, victim: str) -> None:
    """Kill it, and start it again as a service manager would."""
    if victim == "server":
        os.kill(machines.server(), signal.SIGKILL)  # the coordinator starts it again
        return
    machines.kill(victim)
    if victim == "nginx":
        machines.serve()
    elif victim == "coordinator":
        machines.coordinate()
    else:
        machines.join(victim, "--stay")


@pytest.mark.parametrize("number", range(RUNS))
def test_each_process_is_killed_in_a_run_which_ends_with_the_right_model(
    number: int, machines: Machines, right: list[str]
) -> None:
    """In an order and at moments drawn from the run's number, each after the round before has gone on."""
    draw = random.Random(number)
    began, length, before = time.monotonic(), 10.0, _asked(machines)
    shutil.rmtree(machines.folder / "fed/run", ignore_errors=True)
    machines.coordinate()
    for victim in draw.sample(VICTIMS, len(VICTIMS)):
        _until_asked(machines, before)
        start, before = time.monotonic(), _asked(machines)
        _until_asked(machines, before)
        length = time.monotonic() - start  # of a round, on this machine and now
        moment = draw.uniform(0.0, 1.5 * length)
        time.sleep(moment)
        assert machines.running["coordinator"].poll() is None, "it had ended before"
        before = _asked(machines)
        _kill(machines, victim)
        print(f"run {number}: {victim} killed {moment:.1f} s after a round of {length:.1f} s had begun")
    assert machines.wait("coordinator", 1800) == 0
    assert _models(machines.folder / "fed/run") == right
    unit = read_json(machines.folder / "fed/run" / UNIT / "unit.json")
    assert [entry["round"] for entry in unit["history"]] == list(range(1, ROUNDS + 1))
    assert unit["rejected"] == []
    for site in SITES:
        assert verify(machines.folder / site / "ledger.jsonl").sound
    print(f"run {number}: the right model after {time.monotonic() - began:.0f} s")
