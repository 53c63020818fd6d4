"""The coordinator's end: questions and answers over Flower's Grid."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError

from morphfed.federation.transports.flower.calls import as_link_errors
from morphfed.federation.transports.flower.messages import TYPE, unwrap, wrap
from morphfed.federation.transports.link import Presence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flwr.proto.message_pb2 import ObjectTree
    from flwr.proto.node_pb2 import NodeInfo

_LOOK = 2.0  # seconds for which a look at the nodes is good


class Answers(Protocol):
    """Flower's Grid, with looks at answers that do not wait for those which are still on their way."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Leave messages at the server."""
        ...

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Those that are connected."""
        ...

    def announced(self, tickets: Collection[str]) -> Iterable[tuple[str, ObjectTree]]:
        """Of these messages, those for which an answer has begun to arrive, each once, and its objects."""
        ...

    def arrived(self, tree: ObjectTree) -> bool | None:
        """Whether all objects of an answer are there; None: it was given up."""
        ...

    def fetch(self, tree: ObjectTree) -> Message:
        """An answer that is there, which is then deleted at the server."""
        ...


class GridLink:
    """A link over a Grid.

    Args:
        grid: connected, and of a running run.
        nodes: site → number of the node that holds this site's key.
        where: the server, for messages.
    """

    def __init__(self, grid: Answers, nodes: Mapping[str, int], *, where: str = "Flower's server") -> None:
        self._grid, self._nodes, self._where = grid, dict(nodes), where
        self._asked: dict[str, str] = {}
        self._coming: dict[str, ObjectTree] = {}
        self._seen: dict[str, float] = {}
        self._looked = (0.0, dict[str, Presence]())

    def post(self, site: str, content: bytes, *, lifetime: float) -> str:
        """Leave a question at the server, which takes none for a site that has never connected."""
        if not self.presence()[site].connected:
            return ""
        message = Message(wrap(content), dst_node_id=self._nodes[site], message_type=TYPE, ttl=lifetime + 60)
        # An object counts as refused when its push was repeated because the first one's confirmation came too late, as
        # on a very busy machine. The question is then made anew, with another ticket.
        with as_link_errors(self._where), suppress(ObjectPushError):
            ticket = next(iter(self._grid.push_messages([message])), None) or ""
            if ticket:
                self._asked[ticket] = site
            return str(ticket)
        return ""

    def take(self, tickets: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        """Pull what has arrived whole, one message at a time in memory; who sends slowly holds nobody up."""
        if unknown := [ticket for ticket in tickets if ticket and ticket not in self._coming]:
            with as_link_errors(self._where):
                self._coming |= dict(self._grid.announced(unknown))
        for ticket in [ticket for ticket in tickets if ticket in self._coming]:
            tree, message = self._coming[ticket], None
            with as_link_errors(self._where):
                there = self._grid.arrived(tree)
                if there is False:
                    continue
                # A site that sends nonsense must not end the run: its answer is lost.
                with suppress(ObjectPullError, ValueError):
                    message = self._grid.fetch(tree) if there else None
            del self._coming[ticket]
            # Only the node that holds the site's key can answer for it.
            right = message is not None and message.metadata.src_node_id == self._nodes[self._asked[ticket]]
            yield ticket, unwrap(message) if message is not None and right else None

    def coming(self, ticket: str) -> bool:
        """Whether its first objects are at the server."""
        return ticket in self._coming

    def presence(self) -> Mapping[str, Presence]:
        """From the heartbeats that the server has seen."""
        if time.monotonic() - self._looked[0] < _LOOK:
            return self._looked[1]
        with as_link_errors(self._where):
            online = {node.node_id: node for node in self._grid.get_nodes()}
        now, found = time.time(), {}
        for site, number in self._nodes.items():
            node = online.get(number)
            if node is not None:  # each sign of life is good for twice the time between two
                last = node.online_until - 2 * node.heartbeat_interval
                self._seen[site] = last if 0 < last <= now else now
            since = datetime.fromisoformat(node.last_activated_at).timestamp() if node else None
            found[site] = Presence(node is not None, self._seen.get(site), since)
        self._looked = (time.monotonic(), found)
        return found
