"""What a network has to do for the round loop: carry bytes to a named site, bring its answer back, say who is there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Presence:
    """Whether a site can be reached.

    Attributes:
        connected: now, as far as is known.
        seen: when it was last heard of, seconds since the epoch; None: never.
        since: when it connected; a later time than before means that it was started again.
    """

    connected: bool
    seen: float | None = None
    since: float | None = None


class Link(Protocol):
    """The coordinator's end."""

    def post(self, site: str, content: bytes, *, lifetime: float) -> str:
        """Leave a question for a site; it fetches it when it can.

        Args:
            site: its name.
            content: a parcel.
            lifetime: seconds after which it need not be delivered any more.

        Returns:
            The ticket under which its answer comes; empty: the site is not connected, or the
            question was not taken; it can be posted again.

        Raises:
            LinkError: the network's middle (not the site) cannot be reached.
        """
        ...

    def take(self, tickets: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        """Answers that have arrived for these tickets, each once; None: it was lost on its way.

        An answer comes only from the site to which the question went.

        Raises:
            LinkError: as :meth:`post`.
        """
        ...

    def coming(self, ticket: str) -> bool:
        """Whether the answer to this ticket has begun to arrive; it is not lost while it goes on."""
        ...

    def presence(self) -> Mapping[str, Presence]:
        """Of every site that the federation knows."""
        ...


@dataclass(frozen=True)
class Question:
    """A question at a site.

    Attributes:
        content: a parcel.
        handle: for :meth:`Line.answer`.
    """

    content: bytes
    handle: object


class Line(Protocol):
    """A site's end."""

    def ask(self, limit: int) -> Question | None:
        """The next question, None while there is none.

        Args:
            limit: bytes; one that is longer, or damaged, comes without content.

        Raises:
            LinkError: the coordinator cannot be reached, or does not let this site in.
        """
        ...

    def answer(self, question: Question, content: bytes) -> None:
        """Send the answer to a question.

        Raises:
            LinkError: it could not be delivered.
        """
        ...
