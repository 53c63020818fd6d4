"""Sites on other machines, behind a link: the same round loop, with deadlines.

Answers are handed to the loop in the study's order of sites, whatever the order in which they come: sums of floats
depend on it. One that came out of order waits on disk, so memory does not grow with the sites.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from morphfed.core.errors import FederationError, LinkError
from morphfed.core.files import storage_error
from morphfed.core.progress import Event, Reporter, silent
from morphfed.core.types import Failure, Tensors, Upload
from morphfed.federation.transports.base import Metrics, Note
from morphfed.federation.transports.link import Link, Presence
from morphfed.federation.transports.parcel import Parcel, ParcelError, digest, pack, unpack, with_head
from morphfed.federation.transports.patience import Clock, Patience
from morphfed.federation.transports.reading import (
    NotUsableError,
    are_numbers,
    clock_time,
    kind_of,
    read_claims,
    read_row,
    read_upload,
    span,
)
from morphfed.federation.transports.standing import Fault, Look, Observer, Standing

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")

ECHOED = ("study", "unit", "site", "round", "nonce")
"""What of a question's head its answer repeats."""

_QUICK = 0.08  # seconds before the first look

ANSWER, REFUSAL, NEED = "answer", "refusal", "need"
"""Kinds of answers: what was asked for; why not, in words; the site has not the download that was named."""


@dataclass
class _Asked:
    """A question on its way to a site."""

    site: str
    parcel: Parcel
    ticket: str
    sent: str = ""
    posted: float = 0.0
    answer: Path | None = None
    answered: float | None = None
    failed: str = ""

    @property
    def open(self) -> bool:
        return self.answer is None and not self.failed


@dataclass
class _Held:
    """What is known of a site.

    Attributes:
        download: digest of the last one that it has confirmed.
        absent: given up in this round for want of a connection.
        ledger: its ledger's last hash, as it told it.
        fault, why: what was wrong with its last answer.
        sent, received: bytes of parcels.
    """

    download: str = ""
    absent: bool = False
    ledger: str = ""
    fault: Fault = ""
    why: str = ""
    sent: int = 0
    received: int = 0


class Remote:
    """The round loop's contact with sites over a network.

    Args:
        sites: in the study's order.
        link: carries parcels.
        about: goes with every question: the study's hash, the unit, the version.
        quorum: share of the sites that a round needs; 0: none has to be there.
        limit: bytes of the largest answer's tensors.
        spool: folder for answers that wait for their turn; emptied at the start.
        patience, clock: how long is waited.
        report, task: progress.
        observe: is shown how the sites stand, at every look.
    """

    def __init__(
        self,
        sites: Sequence[str],
        link: Link,
        about: Mapping[str, Any],
        *,
        quorum: float,
        limit: int,
        spool: Path,
        patience: Patience | None = None,
        clock: Clock | None = None,
        report: Reporter = silent,
        task: str = "rounds",
        observe: Observer | None = None,
    ) -> None:
        self._names, self._link, self._about = tuple(sites), link, dict(about)
        self._needed = max(1, math.ceil(quorum * len(self._names))) if quorum else 0
        self._limit, self._spool = limit, spool
        self._patience, self._clock = patience or Patience(), clock or Clock()
        self._report, self._task, self._observe = report, task, observe
        self._held = {name: _Held() for name in self._names}
        self._late: dict[str, str] = {}
        self._done: set[str] = set()
        self._counts: list[int] | None = None
        self._best = 0
        self._state_of: int | None = None
        spool.mkdir(parents=True, exist_ok=True)
        for left in spool.glob("*.answer"):
            left.unlink()

    @property
    def sites(self) -> Sequence[str]:
        """Names in the study's order."""
        return self._names

    @property
    def ledgers(self) -> dict[str, str]:
        """By site, the last hash of its ledger as it came with its last answer."""
        return {name: held.ledger for name, held in self._held.items() if held.ledger}

    # ── what the round loop asks ────────────────────────────────────────────────────────────────────────────
    def gather(self, network: str, wait: float, each: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Wait until every site is ready for the unit; go on with a quorum when time is up.

        Args:
            network: digest of the unit's initial network, which each site compares with its own.
            wait: seconds.
            each: site → what the question's head says to it alone.

        Raises:
            FederationError: too few are there; says of each missing site why.
        """
        end, said = self._clock.now() + wait, dict.fromkeys(self._names, "")
        asked = {
            one.site: one for one in self._ask("hello", {"network": network}, dict.fromkeys(self._names), own=each)
        }
        again: dict[str, float] = {}
        told = self._clock.now()
        while said and self._clock.now() < end:
            if self._clock.now() - told >= self._patience.tell:
                told = self._clock.now()
                ready = len(self._names) - len(said)
                waiting = f"waiting for {', '.join(said)} until {clock_time(end)}"
                text = f"start: {ready} of {len(self._names)} sites ready, {waiting}"
                self._report(Event(self._task, text=text, level="info"))
            self._collect(list(asked.values()))
            for site in list(said):
                if asked[site].answer is not None:
                    why = self._ready(asked[site])
                    if not why:
                        del said[site]
                        continue
                    if why != said[site]:
                        self._warn(f"{why} It is asked again until {clock_time(end)}.")
                    said[site], again[site] = why, self._clock.now() + self._patience.again
                    asked[site] = replace(asked[site], answer=None, ticket="")
                elif not asked[site].ticket and self._clock.now() >= again.get(site, 0.0):
                    self._look_for_restarts([asked[site]])
            self._show("start", list(asked.values()), lambda one: end if one.site in said else None)
            if said:
                self._look_for_restarts([one for one in asked.values() if one.ticket])
                self._clock.sleep(self._patience.poll)
        self._late |= {asked[site].ticket: f"start: the answer of site '{site}'" for site in said if asked[site].ticket}
        missing = [why or f"Site '{site}': not connected{self._last_seen(site)}." for site, why in said.items()]
        for why in missing:
            self._warn(why)
        if len(self._names) - len(missing) < self._needed:
            raise FederationError(
                f"{len(self._names) - len(missing)} of {len(self._names)} sites are ready, {self._needed} are needed. "
                + " ".join(missing),
                fix="mend what is said of those sites and start again; nothing was trained.",
            )

    def _ready(self, one: _Asked) -> str:
        """Why a site is not ready; empty: it is."""
        try:
            self._read(one)
        except NotUsableError as cause:
            return f"Site '{one.site}': {cause}."
        return ""

    def train(self, round_number: int, rounds: int, downloads: Mapping[str, Tensors]) -> Iterator[Upload | Failure]:
        """One answer a site, in the order of ``downloads``."""
        for held in self._held.values():
            held.absent = False
        asked = self._ask("train", {"round": round_number, "rounds": rounds}, downloads)
        total, done = rounds * len(self._names), (round_number - 1) * len(self._names)
        self._report(Event(self._task, done, total, f"round {round_number}/{rounds}"))
        for one in self._answers(asked, f"round {round_number}"):
            done += 1
            self._report(Event(self._task, done, total, f"round {round_number}/{rounds} · {one.site}"))
            if one.failed:
                yield Failure(one.site, round_number, one.failed)
                continue
            try:
                answer = self._read(one)
                yield read_upload(answer)
            except NotUsableError as cause:
                yield Failure(one.site, round_number, f"Site '{one.site}': {cause}.")

    def exchange(
        self,
        step: str,
        round_number: int,
        rounds: int,
        asked: Mapping[str, Mapping[str, Any]],
        downloads: Mapping[str, Tensors],
    ) -> Iterator[Note | Failure]:
        """One step of a secure sum, in the order of ``asked``."""
        if step == "keys":
            for held in self._held.values():
                held.absent = False
        head = {"round": round_number, "rounds": rounds, "step": step, "state": self._state_of}
        going = {site: downloads.get(site) for site in asked}
        what = f"round {round_number}, secure sum, {step}"
        self._report(Event(self._task, (round_number - 1) * len(self._names), rounds * len(self._names), what))
        for one in self._answers(self._ask("secure", head, going, own=asked), what):
            if one.failed:
                yield Failure(one.site, round_number, one.failed)
                continue
            try:
                answer = self._read(one)
                yield Note(one.site, read_claims(answer), answer.tensors)
            except NotUsableError as cause:
                yield Failure(one.site, round_number, f"Site '{one.site}': {cause}.")

    def evaluate(self, round_number: int, downloads: Mapping[str, Tensors]) -> dict[str, Metrics]:
        """Validation metrics of the sites that answer; the others are named in a warning."""

        def judged(site: str, answer: Parcel) -> dict[str, Metrics]:
            found: Any = answer.head.get("validation")
            if not are_numbers(found) or set(found) - {site}:
                raise NotUsableError("its validation is not made of numbers of its own")
            return {where: {str(k): float(v) for k, v in m.items()} for where, m in found.items()}

        what = f"round {round_number}, judging"
        found: dict[str, Metrics] = {}
        for metrics in self._all("evaluate", {"round": round_number}, downloads, what, judged).values():
            found |= metrics
        return found

    def class_counts(self) -> dict[str, NDArray[np.int64]]:
        """Training images of each class, of the sites that answer."""
        found = self._all("counts", {}, dict.fromkeys(self._names), "class counts", read_row("counts"))
        return {site: row.astype(np.int64) for site, row in found.items()}

    def use_class_counts(self, counts: NDArray[np.int64]) -> None:
        """Sent with every further question, so that a restarted site has them too."""
        self._counts = counts.tolist()

    def validation_sums(
        self,
        statistic: str,
        round_number: int,
        downloads: Mapping[str, Tensors],
        at: NDArray[np.float64],
        *,
        temperature: float = 1.0,
        views: Literal[1, 8] = 1,
    ) -> dict[str, NDArray[np.float64]]:
        """Rows of sums of the sites that answer."""
        head = {
            "statistic": statistic,
            "round": round_number,
            "at": at.tolist(),
            "temperature": temperature,
            "views": views,
            "state": self._state_of,
        }
        return self._all("sums", head, downloads, statistic, read_row("sums"))

    def site_states(self) -> dict[str, Tensors]:
        """None: private state never leaves a site; each keeps its own, round by round."""
        return {}

    def load_site_states(self, states: Mapping[str, Tensors]) -> None:
        """Nothing to do: a site takes its own state of the round that a question names."""

    def keep(self, best_round: int) -> None:
        """Tell the sites, with the next question, which round's private state must not be dropped."""
        self._best = best_round

    def finish(self, downloads: Mapping[str, Tensors], *, use: int, over: bool) -> None:
        """Give each site the unit's model, for its own use.

        Args:
            downloads: site → the chosen model's travelling tensors.
            use: the round that it is of.
            over: whether this was the last unit.
        """
        self._all("finish", {"use": use, "over": over}, downloads, "the end", lambda site, answer: None)

    def ask(
        self,
        kind: str,
        head: Mapping[str, Any],
        downloads: Mapping[str, Tensors | None],
        read: Callable[[str, Parcel], T],
        *,
        what: str,
        each: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, T]:
        """Ask something outside the rounds; sites that give nothing usable are named in a warning and left out.

        Args:
            kind: of question.
            head: what it says.
            downloads: site → tensors that go with it; None: nothing.
            read: takes a site's answer; raises :class:`NotUsableError`.
            what: is being done, for people.
            each: site → what the head says to it alone.
        """
        return self._all(kind, head, downloads, what, read, each)

    def use_state_of(self, round_number: int) -> None:
        """Sums that follow are of the private state of this round."""
        self._state_of = round_number

    # ── questions and answers ───────────────────────────────────────────────────────────────────────────────
    def _ask(
        self,
        kind: str,
        head: Mapping[str, Any],
        downloads: Mapping[str, Tensors | None],
        own: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> list[_Asked]:
        """Post one question a site; ``own`` is added to the head of a site's."""
        common = {**self._about, **head, "best": self._best}
        if self._counts is not None:
            common["class_counts"] = self._counts
        written, packed, digested = b"", None, ""  # of the site before: most get the same download
        asked = []
        for site, download in downloads.items():
            tensors = None if download is None else tuple(id(t) for t in download.values())
            if download is not None and tensors != packed:
                written, packed = pack(Parcel("download", {}, download)), tensors
                digested = digest(written)
            named = "" if download is None else digested
            head = {**common, **(own or {}).get(site, {}), "site": site, "download": named}
            one = _Asked(site, Parcel(kind, head, download or {}), "", named)
            asked.append(self._post(one, whole=self._held[site].download != named, written=written))
        return asked

    def _post(self, one: _Asked, *, whole: bool, written: bytes = b"") -> _Asked:
        """Leave a question; ``written``: its download as a parcel, if that is at hand."""
        # A site has to repeat a number that only its own question holds: nobody else can answer for it.
        one.parcel = replace(one.parcel, head={**one.parcel.head, "nonce": secrets.token_hex(16)})
        head = {**one.parcel.head, "whole": whole}
        if whole and written and one.parcel.tensors:
            content = with_head(written, head, kind=one.parcel.kind)
        else:
            content = pack(Parcel(one.parcel.kind, head, one.parcel.tensors if whole else {}))
        one.ticket = self._link.post(one.site, content, lifetime=self._patience.deadline)
        one.posted = self._clock.now()
        if one.ticket:
            self._held[one.site].sent += len(content)
        return one

    def _all(
        self,
        kind: str,
        head: Mapping[str, Any],
        downloads: Mapping[str, Tensors | None],
        what: str,
        read: Callable[[str, Parcel], T],
        each: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, T]:
        """What the sites answer, in order; those that give nothing usable are named and left out."""
        found: dict[str, T] = {}
        for one in self._answers(self._ask(kind, head, downloads, own=each), what):
            if one.failed:
                self._warn(f"{what}: {one.failed}")
                continue
            try:
                found[one.site] = read(one.site, self._read(one))
            except NotUsableError as cause:
                self._warn(f"{what}: Site '{one.site}': {cause}.")
        return found

    def _answers(self, asked: list[_Asked], what: str) -> Iterator[_Asked]:
        """Every question once, in order, when it is answered or given up."""
        started = self._clock.now()
        deadline, absent = self._patience.deadline, self._patience.absent
        told, following, pause = started, iter(asked), _QUICK
        waiting = next(following, None)
        while waiting is not None:
            self._collect(asked)
            self._look_for_restarts(asked)
            self._give_up(asked, started, deadline, absent, what)
            self._show(what, asked, lambda one: self._until(one, asked, started) if one.open else None)
            while waiting is not None and not waiting.open:
                yield waiting
                waiting = next(following, None)
            if waiting is None:
                return
            if self._clock.now() - told >= self._patience.tell:
                told = self._clock.now()
                self._tell(asked, started, what)
            self._clock.sleep(pause := min(1.1 * pause, self._patience.poll))

    def _collect(self, asked: list[_Asked]) -> None:
        mine = {one.ticket: one for one in asked if one.open and one.ticket}
        for ticket, content in self._link.take([*mine, *self._late]):
            if ticket in self._done:
                self._warn(f"an answer came twice ({ticket[:12]}); the second was not used.")
                continue
            self._done.add(ticket)
            if ticket in self._late:
                late = self._late.pop(ticket)
                if content is not None:  # else its question has outlived its lifetime
                    self._warn(f"{late} came after it was given up; it was not used.")
                continue
            one = mine.get(ticket)
            if one is None:
                self._warn(f"an answer to no question came ({ticket[:12]}); it was not used.")
            elif content is None:
                one.ticket = ""
                here = self._link.presence().get(one.site)
                if here and here.connected:  # otherwise the question was, and it is asked when it is back
                    self._warn(f"the answer of site '{one.site}' was lost on its way; it is asked again.")
            else:
                self._keep(one, content)

    def _keep(self, one: _Asked, content: bytes) -> None:
        """Spool an answer, or ask again with the download that the site has not."""
        self._held[one.site].received += len(content)
        if kind_of(content) == NEED and one.sent:
            self._held[one.site].download = ""
            self._post(one, whole=True)
            return
        path = self._spool / f"{one.site}-{len(self._done)}.answer"
        try:
            path.write_bytes(content)
        except OSError as cause:
            raise storage_error(path, cause) from cause
        one.answer, one.answered = path, self._clock.now()
        self._held[one.site].absent = False

    def _look_for_restarts(self, asked: list[_Asked]) -> None:
        """A site that was started anew after its question was posted may have lost it with its memory."""
        if not any(one.open for one in asked):
            return
        presence = self._link.presence()
        for one in asked:
            here = presence.get(one.site)
            if not one.open or here is None or not here.connected:
                continue
            if not one.ticket:
                self._post(one, whole=self._held[one.site].download != one.sent)
            elif here.since is not None and here.since > one.posted and not self._link.coming(one.ticket):
                self._warn(f"site '{one.site}' was started again at {clock_time(here.since)}; it is asked again.")
                self._late[one.ticket] = f"an earlier answer of site '{one.site}'"
                self._post(one, whole=self._held[one.site].download != one.sent)

    def _give_up(self, asked: list[_Asked], started: float, deadline: float, absent: float, what: str) -> None:
        now = self._clock.now()
        enough = sum(one.answer is not None for one in asked) >= self._needed
        presence: Mapping[str, Presence] | None = None
        for one in asked:
            if not one.open:
                continue
            held = self._held[one.site]
            if now - started >= deadline:
                one.failed = f"Site '{one.site}': no answer in {span(now - started)}{self._last_seen(one.site)}."
            elif enough or held.absent:
                presence = self._link.presence() if presence is None else presence
                here = presence.get(one.site, Presence(False))
                gone = now - max(started, here.seen or 0.0)
                if not here.connected and (gone >= absent or held.absent):
                    held.absent = True
                    one.failed = f"Site '{one.site}': not connected{self._last_seen(one.site, presence)}."
            if one.failed:
                held.fault, held.why = "missed", one.failed
            if one.failed and one.ticket:
                self._late[one.ticket] = f"{what}: the answer of site '{one.site}'"

    def _tell(self, asked: list[_Asked], started: float, what: str) -> None:
        """Such as: round 7: 4 of 5 sites back, waiting for kampala, last seen 14:02, goes on without it at 14:20."""
        presence = self._link.presence()
        back = sum(one.answer is not None for one in asked)
        parts = []
        for one in asked:
            if one.open:
                here = presence.get(one.site, Presence(False))
                end = self._until(one, asked, started, presence)
                state = "connected" if here.connected else self._last_seen(one.site, presence).removeprefix(", ")
                parts.append(f"{one.site}, {state}, goes on without it at {clock_time(end)}")
        text = f"{what}: {back} of {len(asked)} sites back, waiting for {'; '.join(parts)}"
        self._report(Event(self._task, text=text, level="info"))

    def _until(
        self, one: _Asked, asked: list[_Asked], started: float, presence: Mapping[str, Presence] | None = None
    ) -> float:
        """When a step goes on without an answer that has not come."""
        here = (self._link.presence() if presence is None else presence).get(one.site, Presence(False))
        end = started + self._patience.deadline
        if not here.connected and sum(other.answer is not None for other in asked) >= self._needed:
            end = min(end, max(started, here.seen or 0.0) + self._patience.absent)
        return end

    def _show(self, step: str, asked: list[_Asked], until: Callable[[_Asked], float | None]) -> None:
        """Let the observer have a look."""
        if self._observe is None:
            return
        with suppress(LinkError):  # the next question meets it too, and deals with it
            presence, questions = self._link.presence(), {one.site: one for one in asked}
            sites = {}
            for name, here in presence.items():
                if name not in self._held:  # no part of this contact, but who watches wants to know
                    sites[name] = Standing(here.connected, here.seen)
            for name, held in self._held.items():
                here, one = presence.get(name, Presence(False)), questions.get(name)
                sites[name] = Standing(
                    here.connected,
                    here.seen,
                    one.posted if one is not None and one.ticket else None,
                    None if one is None else one.answered,
                    None if one is None else until(one),
                    held.fault,
                    held.why,
                    held.sent,
                    held.received,
                    held.ledger,
                )
            self._observe(Look(self._clock.now(), step, sites))

    def _last_seen(self, site: str, presence: Mapping[str, Presence] | None = None) -> str:
        found = (self._link.presence() if presence is None else presence).get(site)
        return f", last seen {clock_time(found.seen)}" if found and found.seen else ", never seen"

    def _read(self, one: _Asked) -> Parcel:
        """A spooled answer, checked to be one to this question.

        Raises:
            NotUsableError: it is none; says why.
        """
        held = self._held[one.site]
        try:
            answer = self._checked(one)
        except NotUsableError as cause:
            held.fault, held.why = cause.fault, str(cause)
            raise
        held.fault, held.why = "", ""
        held.download = one.sent or held.download
        held.ledger = str(answer.head.get("ledger", ""))[:64]
        return answer

    def _checked(self, one: _Asked) -> Parcel:
        assert one.answer is not None
        content = one.answer.read_bytes()
        one.answer.unlink()
        try:
            answer = unpack(content, limit=self._limit)
        except ParcelError as cause:
            raise NotUsableError(f"its answer cannot be read: {cause}") from cause
        if answer.kind == REFUSAL:
            why = str(answer.head.get("why", "it does not say why"))[:500]
            raise NotUsableError(f"it refuses: {why}", fault="refused")
        if answer.kind != ANSWER:
            raise NotUsableError(f"its answer is of the kind '{answer.kind[:40]}'")
        for key in ECHOED:
            if answer.head.get(key) != one.parcel.head.get(key):
                given = str(answer.head.get(key))[:40]
                raise NotUsableError(f"its answer is for the {key} '{given}', expected '{one.parcel.head.get(key)}'")
        return answer

    def _warn(self, text: str) -> None:
        self._report(Event(self._task, text=text, level="warning"))
