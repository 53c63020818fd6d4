"""A network in memory: what is posted is answered by desks in this process, on demand, late, twice or never."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from morphfed.core.errors import SecureSumError
from morphfed.federation.transports.desk import Desk, QuestionError
from morphfed.federation.transports.link import Presence
from morphfed.federation.transports.parcel import Parcel, pack, unpack
from morphfed.federation.transports.remote import ECHOED, REFUSAL

LIMIT = 1 << 26

Answers = Callable[[bytes], bytes]


def answers_of(desk: Desk) -> Answers:
    def answer(content: bytes) -> bytes:
        question = unpack(content, limit=LIMIT)
        try:
            return pack(desk.answer(question))
        except (QuestionError, SecureSumError) as cause:
            told = {key: question.head.get(key) for key in ECHOED}
            return pack(Parcel(REFUSAL, {**told, "why": str(cause)}))

    return answer


@dataclass
class FakeClock:
    """Jumps when it is slept on."""

    time: float = 1_000_000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class MemoryLink:
    """Sites answer when the coordinator looks, last site first, so that order is never given by the network.

    Attributes:
        desks: site → how it answers.
        change: what the network makes of an answer: (site, question, answer) → answers that arrive.
        away: sites that are not connected; they answer nothing.
    """

    desks: Mapping[str, Answers]
    clock: FakeClock
    change: Callable[[str, bytes, bytes], list[bytes | None]] = lambda site, question, answer: [answer]
    away: set[str] = field(default_factory=set)
    seen: dict[str, float] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    posted: list[tuple[str, str, bytes]] = field(default_factory=list)
    extra: list[tuple[str, bytes | None]] = field(default_factory=list)
    traffic: list[tuple[str, str, bool]] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)
    count: int = 0

    def post(self, site: str, content: bytes, *, lifetime: float) -> str:
        if site in self.away:
            return ""
        self.count += 1
        question = unpack(content, limit=LIMIT)
        self.traffic.append((site, question.kind, bool(question.tensors)))
        self.posted.append((ticket := f"ticket-{self.count}", site, content))
        return ticket

    def take(self, tickets: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        for entry in [e for e in reversed(self.posted) if e[1] not in self.away]:
            ticket, site, content = entry
            self.posted.remove(entry)
            for arrived in self.change(site, content, self.desks[site](content)):
                yield ticket, arrived
        while self.extra:
            yield self.extra.pop()

    def coming(self, ticket: str) -> bool:
        return ticket in self.begun

    def presence(self) -> dict[str, Presence]:
        return {
            name: Presence(name not in self.away, self.seen.get(name, self.clock.time), self.since.get(name))
            for name in self.desks
        }
