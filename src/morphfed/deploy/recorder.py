"""Writes ``run/status.json`` while a federation is trained, at most once a second."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from morphfed import __version__
from morphfed.core.errors import MorphfedError, StorageError
from morphfed.core.files import write_json
from morphfed.core.progress import Event
from morphfed.deploy.judging import Job, jobs_of
from morphfed.deploy.status import Failure, Line, SiteState, SiteStatus, Status, UnitLine, UnitStatus, read_status
from morphfed.experiment.train_unit import is_done, read_unit

if TYPE_CHECKING:
    from morphfed.deploy.agreed import Agreed
    from morphfed.federation.loop import Progress
    from morphfed.federation.transports.standing import Look, Observer, Standing

EVERY = 1.0  # seconds between two writes
_IDLE = 5.0  # seconds between two writes when nothing but times has changed
_LINES = 40
_LATE_FACTOR, _LATE_LEAST = 2.0, 30.0


class Recorder:
    """Takes in what the coordinator sees and keeps the document up to date.

    Args:
        folder: the federation's.
        name: the federation's.
        agreed: what is trained.
        run: folder of the run.
        path: of the document.
        revoked: names the sites whose certificate no longer counts.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        agreed: Agreed,
        run: Path,
        path: Path,
        *,
        revoked: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._path, self._agreed, self._run, self._revoked = path, agreed, run, revoked
        now, moved = _now(), self._earlier(folder)
        self._status = Status(
            federation=name,
            study=agreed.study.name,
            study_hash=agreed.hash,
            morphfed=__version__,
            pid=os.getpid(),
            started=now,
            written=now,
            units=tuple(self._line(job) for job in jobs_of(agreed)),
            sites=tuple(self._fresh(site, moved) for site in agreed.everyone),
        )
        self._written, self._last = 0.0, self._status

    def _earlier(self, folder: Path) -> dict[str, tuple[int, int]]:
        """Bytes of each site that an earlier start of the same study has counted."""
        with suppress(MorphfedError):  # of another version, or damaged: counted from here on
            before = read_status(folder)
            if before is not None and before.study_hash == self._agreed.hash:
                return {site.name: (site.bytes_down, site.bytes_up) for site in before.sites}
        return {}

    def _fresh(self, site: str, moved: Mapping[str, tuple[int, int]]) -> SiteStatus:
        down, up = moved.get(site, (0, 0))
        return SiteStatus(name=site, state="unknown", bytes_down=down, bytes_up=up)

    def _line(self, job: Job) -> UnitLine:
        done = job.is_done(self._agreed, self._run)
        if job.alone or not is_done(job.units[0], self._run):
            return UnitLine(key=job.key, done=done)
        told = read_unit(job.units[0], self._run)
        return UnitLine(
            key=job.key, done=done, best_round=told.get("best_round"), best_score=_number(told.get("best_score"))
        )

    # ── what the coordinator tells ──────────────────────────────────────────────────────────────────────────
    def begin(self, job: Job) -> None:
        """A unit, or a local model at each site, begins or goes on."""
        unit = job.units[0]
        federation = self._agreed.arms[unit.arm].federation
        keys = [line.key for line in self._status.units]
        made = UnitStatus(
            key=job.key,
            arm=unit.arm,
            seed=unit.seed,
            number=keys.index(job.key) + 1,
            round=0,
            rounds=federation.rounds,
            metric=federation.select,
            delta=federation.noise.delta if federation.noise.kind == "calibrated" else None,
        )
        empty: dict[str, Any] = {"loss": None, "validation": {}, "losses": (), "scores": (), "missed": 0}
        sites = tuple(site.model_copy(update=empty) for site in self._status.sites)
        self._update(unit=made, sites=sites, doing="building the network")
        self.write()

    def event(self, event: Event) -> None:
        """Something was said."""
        if event.level == "progress":
            self._update(doing=event.text or self._status.doing)
            self.write(force=False)
            return
        level: Literal["info", "warning"] = "warning" if event.level == "warning" else "info"
        line = Line(time=_now(), level=level, text=event.text)
        self._update(lines=(*self._status.lines[1 - _LINES :], line))
        self.write()

    def observer(self) -> Observer:
        """For one contact with sites, whose bytes are counted from its beginning."""
        counted: dict[str, tuple[int, int]] = {}

        def observe(look: Look) -> None:
            moved = {}
            for name, site in look.sites.items():
                down, up = counted.get(name, (0, 0))
                moved[name] = site.sent - down, site.received - up
                counted[name] = site.sent, site.received
            self._look(look, moved)

        return observe

    def _look(self, look: Look, moved: Mapping[str, tuple[int, int]]) -> None:
        late, revoked = late_since(look), set(self._revoked())
        sites = []
        for site in self._status.sites:
            standing = look.sites.get(site.name)
            if standing is None:
                sites.append(site)
                continue
            state = state_of(standing, look, late.get(site.name), site.name in revoked)
            down, up = moved[site.name]
            told: dict[str, Any] = {
                "state": state,
                "since": self._since(site, state, standing, late.get(site.name), look.now),
                "seen": _time(standing.seen),
                "until": _time(standing.until),
                "answered": standing.answered is not None,
                "why": "" if state in ("away", "revoked") else standing.why,
                "bytes_down": site.bytes_down + down,
                "bytes_up": site.bytes_up + up,
                "ledger": standing.ledger or site.ledger,
            }
            sites.append(site.model_copy(update=told))
        self._update(sites=tuple(sites), doing=look.step)
        self.write(force=False)

    def _since(
        self, site: SiteStatus, state: SiteState, standing: Standing, late: float | None, now: float
    ) -> datetime | None:
        """When the state began: by what is known of it, else when it was first looked at."""
        if state == "late":
            return _time(late)
        if state == "working":
            return _time(standing.asked)
        if state == "away":
            return _time(standing.seen)
        return site.since if site.state == state and site.since else _time(now)

    def advanced(self, progress: Progress) -> None:
        """A round is done, or an earlier start's rounds were read."""
        unit = self._status.unit
        if unit is None:
            return
        history, rounds = progress.history, progress.round
        spent = [entry["epsilon"] for entry in history if "epsilon" in entry]
        told: dict[str, Any] = {
            "round": rounds,
            "best_round": progress.best_round or None,
            "best_score": _number(progress.best_score),
            "seconds": progress.seconds,
            "seconds_left": progress.seconds / rounds * (unit.rounds - rounds) if rounds else None,
            "bytes_down": progress.bytes_down,
            "bytes_up": progress.bytes_up,
            "epsilon": spent[-1] if spent else None,
        }
        missed = [entry["site"] for entry in progress.rejected]
        sites = tuple(_with_history(site, history, unit.metric, missed) for site in self._status.sites)
        self._update(unit=unit.model_copy(update=told), sites=sites)
        self.write()

    def told(self, ledgers: Mapping[str, str]) -> None:
        """The last hashes of the sites' ledgers."""
        sites = (site.model_copy(update={"ledger": ledgers.get(site.name, site.ledger)}) for site in self._status.sites)
        self._update(sites=tuple(sites))

    def finish(self, job: Job) -> None:
        """A job is done and written, as far as sites were there."""
        lines = tuple(self._line(job) if line.key == job.key else line for line in self._status.units)
        self._update(units=lines)
        unit = self._status.unit
        if job.alone and unit is not None and unit.key == job.key:  # its rounds were at the sites
            self._update(unit=unit.model_copy(update={"round": unit.rounds}))
        self.write()

    def end(self, ended: Literal["done", "failed", "stopped"], exit_code: int, cause: BaseException | None) -> None:
        """The run is over."""
        failure = None
        if isinstance(cause, MorphfedError):
            failure = Failure(code=cause.code, message=cause.message, fix=cause.fix)
        elif cause is not None and ended == "failed":
            failure = Failure(code="MF000", message=f"{type(cause).__name__}: {cause}", fix="read the log; report it.")
        waited = tuple(site.model_copy(update={"until": None}) for site in self._status.sites)
        self._update(ended=ended, exit_code=exit_code, failure=failure, doing="", sites=waited)
        self.write()

    def _update(self, **told: Any) -> None:
        self._status = self._status.model_copy(update=told)

    def write(self, *, force: bool = True) -> None:
        """Write the document.

        Raises:
            StorageError: the disk is full or read-only.
        """
        age = time.monotonic() - self._written
        if not force and (age < EVERY or (age < _IDLE and _same(self._status, self._last))):
            return
        self._written, self._last = time.monotonic(), self._status
        self._update(written=_now())
        write_json(self._path, self._status.model_dump(mode="json"))


def end_quietly(recorder: Recorder, ended: Literal["failed", "stopped"], code: int, cause: BaseException) -> None:
    """Write how a run ended; a full disk must not hide the reason why it did."""
    with suppress(StorageError):
        recorder.end(ended, code, cause)


def late_since(look: Look) -> dict[str, float]:
    """Sites that take more than twice as long as the others did (median), and half a minute at least; since when.

    At least half of the sites that were asked have to be back, or there is nothing to compare with.
    """
    asked = [s for s in look.sites.values() if s.asked is not None or s.until is not None]
    took = [s.answered - s.asked for s in look.sites.values() if s.answered is not None and s.asked is not None]
    if 2 * len(took) < len(asked) or not took:
        return {}
    patience = max(_LATE_FACTOR * statistics.median(took), _LATE_LEAST)
    ends = {name: s.asked + patience for name, s in look.sites.items() if s.asked is not None and s.until is not None}
    return {name: end for name, end in ends.items() if look.now > end}


def state_of(standing: Standing, look: Look, late: float | None, revoked: bool) -> SiteState:
    """One word for a site."""
    if not standing.connected:
        return "revoked" if revoked else "away"
    waiting = standing.until is not None and standing.asked is not None
    # At the start a site that refuses is asked again every few seconds: it has not changed its mind yet.
    if standing.fault == "refused" and (not waiting or look.step == "start"):
        return "refused"
    if late is not None:
        return "late"
    return "working" if waiting else "connected"


def _with_history(site: SiteStatus, history: list[dict[str, Any]], metric: str, missed: Collection[str]) -> SiteStatus:
    """A site with its figures, round by round."""
    own: list[Mapping[str, Any]] = [entry["sites"].get(site.name, {}) for entry in history]
    losses = tuple(_number(entry.get("loss")) for entry in own)
    judged = [entry["validation"] for entry in own if entry.get("validation")]
    told: dict[str, Any] = {
        "losses": losses,
        "loss": next((loss for loss in reversed(losses) if loss is not None), None),
        "scores": tuple(_number(entry.get("validation", {}).get(metric)) for entry in own),
        "validation": {key: _number(value) for key, value in judged[-1].items()} if judged else {},
        "missed": sum(name == site.name for name in missed),
    }
    return site.model_copy(update=told)


def _same(left: Status, right: Status) -> bool:
    """Whether two documents differ in nothing but when sites were heard of."""

    def plain(status: Status) -> list[SiteStatus]:
        return [site.model_copy(update={"seen": None}) for site in status.sites]

    return left.doing == right.doing and left.lines == right.lines and plain(left) == plain(right)


def _number(value: Any) -> float | None:
    """Six digits are plenty to look at; JSON has no NaN."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(round(seconds), UTC)
