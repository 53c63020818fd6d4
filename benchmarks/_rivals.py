"""Other frameworks, each in an environment of its own below ``.bench/``, never in ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from _table import NotMeasuredError

PROJECT = Path(__file__).resolve().parents[1]
CACHE = PROJECT / ".bench"
SCRIPTS = Path(__file__).resolve().parent / "rivals"
REQUIREMENTS = {"flwr": "flwr[simulation]>=1.41,<1.43", "nvflare": "nvflare>=2.9,<2.10"}

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONWARNINGS": "ignore",
}
"""Nothing is sent anywhere, and no time is lost on trying."""


def environment(name: str) -> Path:
    """The interpreter of a rival's environment, made on first use.

    Raises:
        NotMeasuredError: it cannot be installed here.
    """
    folder = CACHE / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    requirement = REQUIREMENTS[name]
    mark = f"{requirement}, compiled"  # as scripts/setup does it for us
    if ready.is_file() and ready.read_text() == mark and python.exists():
        return python
    print(f"installing {requirement} in {folder.relative_to(PROJECT)}", file=sys.stderr, flush=True)
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv:
        steps = [
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), requirement],
        ]
    else:
        steps = [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement],
        ]
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=900)
        except (OSError, subprocess.TimeoutExpired) as cause:
            raise NotMeasuredError(f"{requirement} could not be installed: {cause}") from cause
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NotMeasuredError(f"{requirement} could not be installed: {last[:120]}")
    ready.write_text(mark)
    return python


def variables() -> dict[str, str]:
    """Environment variables for a rival's processes; ours must not reach them."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, **QUIET, "FLWR_HOME": str(CACHE / "flwr-home")}


def versions() -> str:
    """Versions of the rivals that are installed, for the table's first line."""
    found = ""
    for name in REQUIREMENTS:
        for info in (CACHE / name).glob(f"lib/python*/site-packages/{name}-*.dist-info"):
            found += f", {info.name.removesuffix('.dist-info').replace('-', ' ')}"
    return found
