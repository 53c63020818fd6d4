"""The coordinator's end: questions and answers over Flower's Grid."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from morphfed.federation.transports.flower.calls import as_link_errors
from morphfed.federation.transports.flower.messages import TYPE, unwrap, wrap
from morphfed.federation.transports.link import Presence

if TYPE_CHECKING:
    from flwr.serverapp import Grid

_LOOK = 1.0  # seconds for which a look at the nodes is good


class GridLink:
    """A link over a Grid.

    Args:
        grid: connected, and of a running run.
        nodes: site → number of the node that holds this site's key.
        where: the server, for messages.
    """

    def __init__(self, grid: Grid, nodes: Mapping[str, int], *, where: str = "Flower's server") -> None:
        self._grid, self._nodes, self._where = grid, dict(nodes), where
        self._asked: dict[str, str] = {}
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
        """Pull what has arrived, ticket by ticket, so that one message at a time is in memory."""
        for ticket in [t for t in tickets if t]:
            with as_link_errors(self._where):
                found = list(self._grid.pull_messages([ticket]))
            for message in found:
                # Only the node that holds the site's key can answer for it.
                right = message.metadata.src_node_id == self._nodes[self._asked[ticket]]
                yield ticket, unwrap(message) if right else None

    def presence(self) -> Mapping[str, Presence]:
        """From the heartbeats that the server has seen."""
        if time.monotonic() - self._looked[0] < _LOOK:
            return self._looked[1]
        with as_link_errors(self._where):
            online = {node.node_id: node for node in self._grid.get_nodes()}
        now, found = time.time(), {}
        for site, number in self._nodes.items():
            node = online.get(number)
            if node is not None:
                self._seen[site] = now
            since = datetime.fromisoformat(node.last_activated_at).timestamp() if node else None
            found[site] = Presence(node is not None, self._seen.get(site), since)
        self._looked = (time.monotonic(), found)
        return found
