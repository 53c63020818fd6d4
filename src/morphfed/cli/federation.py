"""``morphfed federation``: set a federation over a network up, and look after it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cyclopts

app = cyclopts.App(name="federation", help="Set up a federation over a network, and see how it does.")


@app.command
def init(folder: Path, /, *, study: Path, host: str, port: int = 443, inner_port: int = 8000, days: int = 397) -> int:
    """Write keys, certificates, a join bundle for each site, services, proxy configuration and instructions.

    Args:
        folder: a new folder at the coordinator.
        study: the study file that the sites are going to train.
        host: name or address under which sites reach the coordinator.
        port: of the reverse proxy, the only one that is open to the outside.
        inner_port: of Flower's server on the loopback.
        days: that certificates of server and sites are valid.
    """
    from morphfed.deploy.provision import init as write

    made = write(folder, study, host=host, port=port, inner_port=inner_port, days=days)
    sys.stdout.write(f"study {made.agreed.study.name}, hash {made.agreed.hash}\n")
    for bundle in made.bundles:
        sys.stdout.write(f"bundle for {bundle.stem}: {bundle}\n")
    sys.stdout.write(f"certificates end on {made.until:%Y-%m-%d}\nnext: read {made.folder / 'README.md'}\n")
    return 0


@app.command
def status(folder: Path, /, *, json: bool = False) -> int:
    """Show how far a federation is, who is there, and what was said last. Leaves with 6 if it failed.

    Args:
        folder: the federation's, at the coordinator.
        json: print it as JSON.
    """
    import json as jsonlib

    from morphfed.core.files import read_json
    from morphfed.deploy.coordinator import RUN, STATUS
    from morphfed.deploy.provision import read_federation

    settings, agreed = read_federation(folder)
    path = folder / RUN / STATUS
    found: dict[str, Any] = (
        read_json(path) if path.is_file() else {"study": agreed.hash, "ended": "not started", "pid": None}
    )
    running = found["pid"] is not None and _alive(found["pid"])
    state = "running" if running else found["ended"] or "killed"
    if json:
        sys.stdout.write(jsonlib.dumps({**found, "state": state}, indent=2, ensure_ascii=False) + "\n")
        return 6 if state == "failed" else 0
    sys.stdout.write(f"federation {settings.name}: {state}\nstudy hash {found['study']}\n")
    if "units" in found:
        sys.stdout.write(f"{found['units'][0]} of {found['units'][1]} units done; {found['now']} ({found['time']})\n")
        for site, here in found["sites"].items() if running else ():
            sys.stdout.write(f"site {site}: {'connected' if here['connected'] else 'not connected'}\n")
        sys.stdout.writelines(f"  {line}\n" for line in found["lines"])
        sys.stdout.writelines(f"ledger of {site}: {head}\n" for site, head in found["ledgers"].items())
    if state == "killed":
        sys.stdout.write(f"next: morphfed coordinator start {folder}   (goes on at the last checkpoint)\n")
    return 6 if state == "failed" else 0


@app.command
def stop(folder: Path, /) -> int:
    """Stop a running coordinator; finished rounds stay, and `coordinator start` goes on from them.

    Args:
        folder: the federation's, at the coordinator.
    """
    import os
    import signal
    import time

    from morphfed.core.errors import FederationError
    from morphfed.core.files import read_json
    from morphfed.deploy.coordinator import RUN, STATUS

    path = folder / RUN / STATUS
    pid = read_json(path)["pid"] if path.is_file() else None
    if pid is None or not _alive(pid):
        raise FederationError(
            f"No coordinator runs in {folder}.", fix="`morphfed federation status` says how it ended."
        )
    os.kill(pid, signal.SIGTERM)
    for _ in range(300):
        if not _alive(pid):
            sys.stdout.write("stopped; finished rounds are saved.\n")
            return 0
        time.sleep(0.1)
    raise FederationError(f"The coordinator (process {pid}) has not stopped in 30 s.", fix=f"look at process {pid}.")


def _alive(pid: int) -> bool:
    """Whether this process is a running coordinator of this user."""
    import os

    try:
        os.kill(pid, 0)
        command = Path(f"/proc/{pid}/cmdline")
        return not command.exists() or b"coordinator" in command.read_bytes()
    except (ProcessLookupError, PermissionError):
        return False
