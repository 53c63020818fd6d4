"""``morphfed coordinator``: what the organiser of a federation runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import cyclopts

app = cyclopts.App(name="coordinator", help="Run a federation over a network.")


@app.command
def start(folder: Path, /) -> int:
    """Start the federation, or go on with it: the same command resumes. Ends when every unit is trained.

    Args:
        folder: as `morphfed federation init` wrote it.
    """
    from morphfed.cli.display import Display
    from morphfed.deploy.coordinator import start as run

    signal.signal(signal.SIGTERM, _interrupt)  # `federation stop`, systemd
    with Display() as display:
        trained = run(folder, report=display)
    for unit in trained:
        sys.stdout.write(f"trained: {unit}\n")
    page = folder / "run" / "report.html"
    if page.is_file():
        sys.stdout.write(f"report: {page}\nnext: open it in a browser.\n")
    else:
        sys.stdout.write('no report: the study has evaluation.release = "none".\n')
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
