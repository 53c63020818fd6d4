"""All checks of one machine, in an order in which each may rely on those before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from morphfed.core.check import Check
from morphfed.core.config import read_toml, validate
from morphfed.core.errors import ConfigError, MorphfedError
from morphfed.deploy.bundle import NAMES, SECRETS, read_bundle
from morphfed.deploy.checkup import certificates, line, machine
from morphfed.deploy.checkup.line import Target, UnreachedError
from morphfed.deploy.checkup.registration import registration
from morphfed.deploy.provision import FEDERATION, STUDY, SiteSettings, read_settings

if TYPE_CHECKING:
    from morphfed.deploy.checkup.needs import Needs

SLOW = 1800.0
"""Seconds for the transfers of a round from which on there is a warning."""


def run(path: Path) -> Iterator[Check]:
    """Check a machine.

    Args:
        path: a join bundle (.zip) or a site's folder; at the coordinator the federation's folder.

    Raises:
        ConfigError: it is none of these.
    """
    if (path / FEDERATION).is_file():
        yield from _coordinator(path)
    elif (path / SECRETS / "site.toml").is_file():
        yield from _site(path / SECRETS, path)
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="morphfed-") as unpacked:
            content = read_bundle(path)
            for name in NAMES:
                # The folder is this user's only, and gone in a moment.
                (Path(unpacked) / name).write_bytes(content[name])
            yield from _site(Path(unpacked), None, beside=path.parent)
    else:
        raise ConfigError(
            f"{path} is no join bundle, no site's folder and no federation's folder.",
            fix="name the .zip that the coordinator gave you, the folder that `site join` uses, or at the coordinator "
            "the folder that `federation init` wrote.",
        )


def _site(secrets: Path, folder: Path | None, *, beside: Path | None = None) -> Iterator[Check]:
    settings = validate(SiteSettings, read_toml(secrets / "site.toml"), where="site.toml")
    yield machine.versions(settings.version)
    yield machine.telemetry()
    yield certificates.at_site(secrets)
    target = Target(settings.host, settings.port, secrets / "ca.crt", secrets / "site.crt", secrets / "site.key")
    reached = False
    try:
        yield from line.checks(target)
        reached = True
    except UnreachedError as cause:
        yield cause.check
    if reached:
        yield _key(target, folder)
    yield from _study(secrets / STUDY, folder or beside or Path(), settings, target if reached else None)
    if folder is not None:
        yield _approval(folder, settings)


def _key(target: Target, folder: Path | None) -> Check:
    """Registration, unless this site's own process is connected: it would be disturbed."""
    if folder is None:
        return registration(target, alone=False)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return Check("key", "PASS", "not tried: `morphfed site join` runs here, and its log says whether it is let in")
    try:
        return registration(target, alone=True)
    finally:
        lock.release()


def _study(file: Path, folder: Path, settings: SiteSettings, target: Target | None) -> Iterator[Check]:
    """Disk and time for the study."""
    try:
        needs = _needs(file)
    except (MorphfedError, ImportError, OSError) as cause:
        yield _unknown("disk", cause)
        needs = None
    if needs is not None:
        yield machine.disk(folder, needs.site, "models and at most so much private state, beside the prepared images")
    if target is not None:
        try:
            yield speed(*line.upload_speed(target), needs)
        except UnreachedError as failed:
            yield failed.check


def speed(rate: float, moved: int, needs: Needs | None) -> Check:
    """A measured speed, and what it means for the study's rounds."""
    found = f"{rate / 1e6:.3g} Mbit/s up, measured with {moved >> 10} KiB"
    fix = "send fewer bytes: federation.upload and federation.download in the study (docs/how-to/send-less.md)."
    seconds = 0.0
    if needs is not None:
        seconds = needs.round_seconds(rate)
        took = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
        found += (
            f"; a round moves {needs.download / 1e6:.3g} MB here and {needs.upload / 1e6:.3g} MB back: about {took} if "
            "the way here is as fast (it cannot be measured through the proxy)"
        )
    if rate < line.SLOWEST:
        return Check("speed", "FAIL", f"{found}; below {line.SLOWEST / 1e6:g} Mbit/s rounds are not known to work", fix)
    return Check("speed", "WARN", found, fix) if seconds > SLOW else Check("speed", "PASS", found)


def _needs(file: Path) -> Needs:
    from morphfed.deploy.agreed import load_agreed
    from morphfed.deploy.checkup.needs import needs_of

    return needs_of(load_agreed(file))


def _unknown(name: str, cause: Exception) -> Check:
    said = cause.message if isinstance(cause, MorphfedError) else str(cause)
    fix = cause.fix if isinstance(cause, MorphfedError) else "run `morphfed doctor`."
    return Check(name, "WARN", f"what the study needs is not known: {said}", fix)


def _approval(folder: Path, settings: SiteSettings) -> Check:
    if (folder / "approved" / f"{settings.study}.json").is_file():
        return Check("approval", "PASS", f"the study {settings.study[:12]} is approved here")
    return Check(
        "approval",
        "WARN",
        f"the study {settings.study[:12]} is not approved here, so it will be refused",
        f"morphfed site review {folder / SECRETS / STUDY}, then morphfed site approve with --folder {folder}",
    )


def _coordinator(folder: Path) -> Iterator[Check]:
    settings = read_settings(folder)
    yield machine.versions()
    yield machine.telemetry()
    yield from certificates.at_coordinator(folder)
    yield machine.inner_port(settings.inner_port)
    target = Target(settings.host, settings.port, (folder / "coordinator" / "ca.crt").resolve())
    try:
        yield from line.checks(target)
    except UnreachedError as cause:
        yield _seen_from_inside(target, cause.check)
    try:
        needs = _needs(folder / STUDY)
    except (MorphfedError, ImportError, OSError) as cause:
        yield _unknown("disk", cause)
    else:
        yield machine.disk(folder / "run", needs.coordinator, "models, checkpoints and the messages of a round")


def _seen_from_inside(target: Target, failed: Check) -> Check:
    """Many networks do not lead a machine's outside name back to itself: then the proxy itself is looked at."""
    if failed.name not in ("name", "port"):
        return failed
    try:
        found = list(line.checks(replace(target, host="localhost")))
    except UnreachedError:
        return failed
    if any(check.status == "FAIL" for check in found):
        return failed
    return Check(
        failed.name,
        "WARN",
        f"{failed.found}; on this machine itself the proxy answers as it should",
        "many networks do not lead a machine to its own outside name; let a site run `morphfed doctor --federation`.",
    )
