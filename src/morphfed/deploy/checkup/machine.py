"""Versions, telemetry, ports and disk of this machine."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from morphfed import __version__
from morphfed.core.check import Check

PINNED = ("torch", "torchvision", "timm", "flwr", "cryptography")


def versions(wanted: str = "") -> Check:
    """Python and the libraries against what morphfed needs, and morphfed against the coordinator's.

    Args:
        wanted: the coordinator's version; empty: not told.
    """
    python = ".".join(map(str, sys.version_info[:3]))
    found = {name: _installed(name) for name in PINNED}
    shown = f"python {python}, morphfed {__version__}, " + ", ".join(f"{n} {v or 'missing'}" for n, v in found.items())
    if wanted and wanted != __version__:
        return Check(
            "versions",
            "FAIL",
            f"{shown}; the coordinator runs morphfed {wanted}",
            f"pip install 'morphfed[flower]=={wanted}'; sites and coordinator need the same.",
        )
    wrong = []
    for needed in _needed():
        name = needed.name.lower()
        have = found.get(name)
        if name in found and (have is None or not needed.specifier.contains(have, prereleases=True)):
            wrong.append(f"{name}{needed.specifier}")
    if wrong:
        fix = f"{sys.executable} -m pip install 'morphfed[flower]'"
        return Check("versions", "FAIL", f"{shown}; needed: {', '.join(wrong)}", fix)
    return Check("versions", "PASS", shown)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _needed() -> list[Requirement]:
    """What the package and its extra ``flower`` ask for."""
    found = []
    try:
        lines = requires("morphfed") or []
    except PackageNotFoundError:
        return []
    for line in lines:
        try:
            needed = Requirement(line)
        except InvalidRequirement:
            continue
        if needed.marker is None or needed.marker.evaluate({"extra": "flower"}):
            found.append(needed)
    return found


def telemetry() -> Check:
    """Whether Flower, as it runs here, keeps quiet; asked of Flower itself."""
    if find_spec("flwr") is None:
        return Check("telemetry", "WARN", "flwr is not installed", "pip install 'morphfed[flower]'")
    import morphfed.federation.transports.flower  # noqa: F401  # sets what Flower reads when it is imported

    try:
        from flwr.supercore.telemetry import FLWR_TELEMETRY_ENABLED as ENABLED
    except ImportError:
        return Check("telemetry", "WARN", "this flwr does not say whether it reports", "install flwr within the pin.")
    if str(ENABLED) != "0":
        return Check("telemetry", "FAIL", "Flower would report to its makers", "unset FLWR_TELEMETRY_ENABLED.")
    return Check("telemetry", "PASS", "off: Flower reports nothing, asks for no newer version, installs nothing")


def disk(folder: Path, needed: int, what: str) -> Check:
    """Room for what a study writes.

    Args:
        folder: where it is going to be written; it need not exist yet.
        needed: bytes.
        what: is going to be written.
    """
    here = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(here).free
    found = f"{free / 1e9:.1f} GB free at {here}, the study needs up to {needed / 1e9:.2g} GB: {what}"
    if free < needed:
        return Check("disk", "FAIL", found, "free some space, or use a folder on another disk.")
    if free < 2 * needed + 1e9:
        return Check("disk", "WARN", found, "it will be tight: twice as much and 1 GB is safer.")
    return Check("disk", "PASS", found)


def inner_port(port: int, table: Path = Path("/proc/net")) -> Check:
    """Whether Flower's server, which has no login, can be reached from this machine only."""
    open_to = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (table / name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, listening = fields[1].rpartition(":")
            if fields[3] == "0A" and int(listening, 16) == port:
                open_to.add(address)
    outside = {a for a in open_to if not a.endswith("7F") and a != "0" * 24 + "01000000"}
    if outside:
        return Check(
            "inner port",
            "FAIL",
            f"port {port} listens on other addresses than the loopback: whoever reaches it can start runs",
            f"stop what listens there; `morphfed coordinator start` opens it on 127.0.0.1 only. Close port {port} in "
            "the firewall.",
        )
    state = "open on the loopback only" if open_to else "closed: the coordinator does not run"
    return Check("inner port", "PASS", f"port {port} is {state}")
