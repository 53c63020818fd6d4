"""A federation of real processes is watched from another one, and its machines are checked while it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("flwr") is None:  # not importorskip: the adapter sets what Flower reads when it is imported
    pytest.skip("the extra 'flower' is not installed", allow_module_level=True)
pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.deploy.test_network import machines
from tests.machines import NGINX, Machines

__all__ = ["machines"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt install nginx; or NGINX=PATH)"),
]


def state_of(machines: Machines, site: str) -> str:
    path = machines.folder / "fed/run/status.json"
    told = json.loads(path.read_text()) if path.exists() else {"sites": []}
    return str({s["name"]: s["state"] for s in told["sites"]}.get(site, ""))


def until(machines: Machines, site: str, states: set[str], seconds: float = 900) -> str:
    end = time.monotonic() + seconds
    while (state := state_of(machines, site)) not in states:
        assert time.monotonic() < end, f"{site} is {state}\n{machines.log('coordinator')}"
        time.sleep(0.3)
    keep(machines, state)
    return state


def keep(machines: Machines, name: str) -> None:
    """Copies of the document, where somebody wants to look at them."""
    if folder := os.environ.get("MORPHFED_KEEP_STATUS"):
        shutil.copy(machines.folder / "fed/run/status.json", Path(folder) / f"{name}.json")


def doctor(machines: Machines, path: str) -> dict[str, Any]:
    told = json.loads(machines.run("doctor", "--federation", path, "--json", check=False).stdout)
    return {check["name"]: check for check in told["checks"]}


def test_a_run_is_watched_and_its_machines_are_checked(machines: Machines, tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace("rounds = 3", "rounds = 8"))
    machines.waits["gather"] = 900
    machines.init()
    for site in ("alder", "birch"):
        machines.prepare(site)
    early = doctor(machines, "fed/bundles/birch.zip")
    assert (early["certificate"]["status"], early["clock"]["status"]) == ("PASS", "PASS")
    assert "not running behind its proxy" in early["key"]["found"]
    assert early["speed"]["status"] == "PASS"
    machines.start("watch", "federation", "watch", "fed")
    machines.coordinate()
    until(machines, "birch", {"away"})  # gathering, nobody is there
    assert doctor(machines, "fed/bundles/birch.zip")["key"]["status"] == "PASS"  # registered; in, and out again
    for site in ("alder", "birch"):
        machines.join(site)
    machines.until("birch", "train 2", 900)
    assert "join` runs here" in doctor(machines, "alder")["key"]["found"]
    here = doctor(machines, "fed")
    assert {here[name]["status"] for name in ("strangers", "tls", "inner port", "revoked")} == {"PASS"}
    assert "open on the loopback only" in here["inner port"]["found"]
    machines.running["birch"].send_signal(signal.SIGSTOP)
    assert until(machines, "birch", {"late", "away"}) == "late"
    until(machines, "birch", {"away"})
    machines.running["birch"].send_signal(signal.SIGCONT)
    until(machines, "birch", {"working", "connected"})
    assert machines.wait("coordinator", 900) == 0
    assert machines.wait("watch", 60) == 0
    keep(machines, "done")
    told = machines.log("watch")
    assert "fed: not started" in told
    for words in ("site birch: late since", "site birch: not connected since", "goes on without it at"):
        assert words in told
    assert "federation tiny: done" in told
    assert told.count("8 of 8 rounds done") >= 1
