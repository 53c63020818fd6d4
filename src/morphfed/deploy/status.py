"""``run/status.json``: what a federation over a network is doing, for `federation status`, `watch` and its page.

The coordinator writes it whole and atomically; readers need nothing else, no torch and no connection.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field

from morphfed.core.config import Config, validate
from morphfed.core.errors import StorageError
from morphfed.core.files import read_json
from morphfed.deploy.provision import read_settings

SCHEMA = 1
"""Counted up when a key is renamed, removed or comes to mean something else; new keys do not count."""

RUN, STATUS = "run", "status.json"

FRESH = 20.0
"""Seconds for which a document speaks for a coordinator whose process cannot be seen (another container)."""

SiteState = Literal["unknown", "connected", "working", "late", "away", "refused", "revoked"]
Condition = Literal["not started", "running", "killed", "done", "failed", "stopped"]


class SiteStatus(Config):
    """One site."""

    name: str
    state: SiteState = Field(
        description="connected: waits; working: answers a question; late: the others took far less time; away: not "
        "connected; refused: it said no; revoked: its certificate no longer counts"
    )
    since: AwareDatetime | None = Field(None, description="of the state; None: not known, or never connected")
    seen: AwareDatetime | None = Field(None, description="when it was last heard of")
    until: AwareDatetime | None = Field(None, description="when the step goes on without it; None: not waited for")
    answered: bool = Field(False, description="whether its answer to the step at hand is in")
    why: str = Field("", description="what was wrong with its last answer")
    loss: float | None = Field(None, description="mean training loss of its last round")
    validation: dict[str, float | None] = Field(default_factory=dict, description="of the last round that it judged")
    losses: tuple[float | None, ...] = Field((), description="training loss by round of this unit")
    scores: tuple[float | None, ...] = Field((), description="validation metric that chooses the round, by round")
    missed: int = Field(0, description="rounds of this unit without a valid upload of it")
    bytes_down: int = Field(0, description="of messages to it, since the federation began")
    bytes_up: int = Field(0, description="of messages from it, since the federation began")
    ledger: str = Field("", description="last hash of its ledger, as it told it")


class UnitStatus(Config):
    """The unit at hand, or the last one."""

    key: str
    arm: str
    seed: int
    number: int = Field(description="among the units, from 1")
    round: int = Field(description="finished rounds")
    rounds: int
    metric: str = Field(description="that chooses the round")
    best_round: int | None = None
    best_score: float | None = Field(None, description="mean over the sites")
    seconds: float = Field(0.0, description="that its finished rounds took")
    seconds_left: float | None = Field(None, description="its mean round × the rounds that are left")
    bytes_down: int = Field(0, description="of models to all sites")
    bytes_up: int = Field(0, description="of uploads from all sites")
    epsilon: float | None = Field(None, description="spent so far; None: no noise with a guarantee")
    delta: float | None = None


class UnitLine(Config):
    """A unit in the list of all."""

    key: str
    done: bool
    best_round: int | None = None
    best_score: float | None = None


class Line(Config):
    """Something that was said."""

    time: AwareDatetime
    level: Literal["info", "warning"]
    text: str


class Failure(Config):
    """Why a run ended."""

    code: str
    message: str
    fix: str


class Status(Config):
    """The document."""

    schema_version: int = SCHEMA
    federation: str
    study: str
    study_hash: str
    morphfed: str = Field(description="version that wrote it")
    pid: int = Field(description="of the coordinator")
    started: AwareDatetime
    written: AwareDatetime
    ended: Literal["done", "failed", "stopped"] | None = Field(None, description="None: it has not, or was killed")
    exit_code: int | None = Field(None, description="of `coordinator start`; None: it has not ended")
    failure: Failure | None = None
    doing: str = "starting"
    units: tuple[UnitLine, ...] = ()
    unit: UnitStatus | None = None
    sites: tuple[SiteStatus, ...] = ()
    lines: tuple[Line, ...] = ()

    @property
    def done(self) -> int:
        """Finished units."""
        return sum(unit.done for unit in self.units)


def read_status(folder: Path) -> Status | None:
    """The document of a federation; None: it was never started.

    Raises:
        ConfigError: the folder is no federation's.
        StorageError: the document is damaged, or of another version of this program.
    """
    path = folder / RUN / STATUS
    if not path.is_file():
        read_settings(folder)
        return None
    found = read_json(path)
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA:
        raise StorageError(
            f"{path} has the schema version {version!r}, this morphfed reads {SCHEMA}.",
            fix="use the version of morphfed that the coordinator runs.",
        )
    return validate(Status, found, where=str(path))


def condition(status: Status | None) -> Condition:
    """What became of the coordinator."""
    if status is None:
        return "not started"
    if status.ended is not None:
        return status.ended
    age = (datetime.now(UTC) - status.written).total_seconds()
    return "running" if alive(status.pid) or age < FRESH else "killed"


def exit_code(status: Status | None) -> int:
    """The run's, as far as it is known: 0 while it runs, 1 after a kill."""
    if status is None:
        return 0
    if status.exit_code is not None:
        return status.exit_code
    return 1 if condition(status) == "killed" else 0


def alive(pid: int) -> bool:
    """Whether this process is a running coordinator."""
    command = Path(f"/proc/{pid}/cmdline")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    try:
        return b"coordinator" in command.read_bytes()
    except OSError:  # no /proc on this system
        return not Path("/proc/self").exists()
