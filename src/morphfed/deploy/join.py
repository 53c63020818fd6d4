"""`morphfed site join`: connect, answer questions, reconnect; for as long as the federation lasts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from morphfed.core.errors import LinkError, StorageError
from morphfed.core.memory import keep_freed_memory
from morphfed.core.progress import Event, Reporter, silent
from morphfed.deploy.bundle import SECRETS, open_bundle
from morphfed.deploy.resident import Resident
from morphfed.experiment.study import SiteConfig
from morphfed.privacy.ledger import ChainedLedger

if TYPE_CHECKING:
    from morphfed.federation.transports.flower.fleet import Credentials

_SOON, POLL = 0.08, 1.0
"""Seconds between two looks for a question: at first after an answer, since the next one often follows, and at most."""

_SHORTEST, _LONGEST = 2.0, 30.0  # seconds between two attempts to connect


_FAREWELL = 10.0
"""Seconds for which a site stays connected after its last answer: Flower's server drops the answers of who has left."""


def join(bundle: Path, folder: Path, data: SiteConfig, *, stay: bool = False, report: Reporter = silent) -> None:
    """Take part until the coordinator says that the study is over.

    Args:
        bundle: the .zip that the coordinator gave.
        folder: the site's.
        data: its images.
        stay: go on waiting for further studies when one is over.
        report: progress.

    Raises:
        ConfigError: the bundle is none, or another site's.
        StorageError: another process works in the folder, its ledger is broken, or its disk is full.
        MissingExtraError: the extra ``flower`` is not installed.
    """
    from morphfed.federation.transports.flower.fleet import Credentials

    settings = open_bundle(bundle, folder)
    here = folder / SECRETS
    credentials = Credentials(settings.host, settings.port, here / "ca.crt", here / "site.crt", here / "site.key")
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=2)
    except Timeout as cause:
        raise StorageError(
            f"Another process takes part from {folder}.", fix="wait for it, or stop it; a site has one process."
        ) from cause
    try:
        keep_freed_memory()
        ledger = ChainedLedger(folder / "ledger.jsonl")
        resident = Resident(settings.site, folder, data, ledger, report=report)
        _serve(credentials, resident, stay, report)
    finally:
        lock.release()


def _serve(credentials: Credentials, resident: Resident, stay: bool, report: Reporter) -> None:
    wait, said = _SHORTEST, ""
    while stay or not resident.over:
        began = time.monotonic()
        try:
            _connected(credentials, resident, stay, report)
        except LinkError as cause:
            if cause.message != said:  # once, not at every attempt
                said = cause.message
                report(Event("site", text=f"{cause.message} Fix: {cause.fix} Trying again.", level="warning"))
            if time.monotonic() - began > _LONGEST:
                wait = _SHORTEST
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST)


def _connected(credentials: Credentials, resident: Resident, stay: bool, report: Reporter) -> None:
    """Answer questions for as long as the connection lasts."""
    from morphfed.federation.transports.flower.fleet import FleetLine

    with FleetLine(credentials, take_over=True) as line:  # the folder is locked
        where = f"{credentials.host}:{credentials.port}"
        report(Event("site", text=f"connected to {where} as '{resident.site}'", level="info"))
        leaving: float | None = None
        pause = _SOON
        while leaving is None or time.monotonic() < leaving:
            question = line.ask(resident.limit)
            if question is None:
                time.sleep(pause := min(1.1 * pause, POLL))
            else:
                line.answer(question, resident.answer(question.content))
                if resident.failed is not None:
                    raise resident.failed
                pause = _SOON
            if stay or not resident.over:
                leaving = None
            elif leaving is None:
                leaving = time.monotonic() + _FAREWELL
