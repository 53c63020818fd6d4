"""The adapter to Flower, over a Grid in memory that makes real Flower messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

if find_spec("flwr") is None:  # not importorskip: the adapter sets what Flower reads when it is imported
    pytest.skip("the extra 'flower' is not installed", allow_module_level=True)

from morphfed.core.errors import LinkError
from morphfed.federation.transports.flower import LARGEST, SMALLEST, calls, messages
from morphfed.federation.transports.flower.calls import Retry, as_link_errors
from morphfed.federation.transports.flower.fleet import FleetLine
from morphfed.federation.transports.flower.grid import GridLink
from morphfed.federation.transports.flower.superlink import WholeBodies
from morphfed.federation.transports.parcel import Parcel, pack

# isort: split
import httpx
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.task_identity import TaskIdentity

MIB = 1 << 20
NODES = {"kampala": 11, "lagos": 12}


class MemoryGrid:
    """Keeps pushed messages; replies are given by the test."""

    def __init__(self) -> None:
        self.pushed: dict[str, Message] = {}
        self.replies: dict[str, Message] = {}
        self.begun, self.slow = set[str](), set[str]()
        self.online = dict.fromkeys(NODES.values(), "2026-01-01T10:00:00+00:00")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            self.pushed[message.metadata.message_id] = message
            found.append(message.metadata.message_id)
        return found

    def announced(self, tickets: Iterable[str]) -> list[tuple[str, str]]:
        found = [name for name in tickets if name in self.replies and name not in self.begun]
        self.begun |= set(found)
        return [(name, name) for name in found]

    def arrived(self, tree: str) -> bool | None:
        return False if tree in self.slow else True if tree in self.replies else None

    def fetch(self, tree: str) -> Message:
        return self.replies.pop(tree)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=number, last_activated_at=at) for number, at in self.online.items()]


@pytest.fixture
def grid() -> MemoryGrid:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 5, 1, 3
    return MemoryGrid()


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 17])
def test_bytes_survive_the_way_through_flowers_objects(size: int, grid: MemoryGrid) -> None:
    content = bytes(i % 251 for i in range(size))
    message = Message(messages.wrap(content), dst_node_id=11, message_type=messages.TYPE)
    message.metadata.__dict__["_message_id"] = message.object_id
    objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    tree = get_object_tree(message)
    assert set(messages.objects_of(tree)) == set(objects)
    assert max(len(part) for part in objects.values()) < MIB + 200  # small enough for a slow link
    found = messages.read_message(tree.object_id, dict(objects))
    assert messages.unwrap(found) == content


def test_what_pieces_add_up_to_is_known_before_they_are_put_together(grid: MemoryGrid) -> None:
    """Five equal pieces travel once; together they are five times as long."""
    message = Message(messages.wrap(bytes(5 * MIB)), dst_node_id=11, message_type=messages.TYPE)
    objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    assert sum(map(len, objects.values())) < 2 * MIB
    assert 0 <= messages.inflated(objects) - 5 * MIB < 1000
    piece = max(objects, key=lambda name: len(objects[name]))
    with pytest.raises(ValueError, match="damaged"):
        messages.inflated({name: content for name, content in objects.items() if name != piece})


def test_more_than_can_be_expected_is_not_fetched_to_its_end() -> None:
    fetched = []

    def pull(name: str) -> bytes:
        fetched.append(name)
        return bytes(100)

    pull_at_most = messages.bounded(pull, 250)
    with pytest.raises(messages.TooLargeError):
        list(map(pull_at_most, "abcdefgh"))
    assert fetched == ["a", "b", "c"]


def test_a_question_goes_to_the_sites_node_and_its_answer_comes_back(grid: MemoryGrid) -> None:
    link = GridLink(grid, NODES)  # type: ignore[arg-type]
    ticket = link.post("lagos", b"question", lifetime=600)
    sent = grid.pushed[ticket]
    assert sent.metadata.dst_node_id == 12
    assert messages.unwrap(sent) == b"question"
    assert list(link.take([ticket])) == []
    grid.replies[ticket] = _reply(sent, messages.wrap(b"answer"))
    assert list(link.take([ticket])) == [(ticket, b"answer")]


def _reply(to: Message, content: RecordDict | Error, by: int | None = None) -> Message:
    reply = Message(content, reply_to=to)
    if by is not None:
        reply.metadata.__dict__["_src_node_id"] = by
    return reply


def test_nothing_is_left_for_a_site_that_is_not_there(grid: MemoryGrid) -> None:
    del grid.online[12]
    assert GridLink(grid, NODES).post("lagos", b"question", lifetime=600) == ""  # type: ignore[arg-type]
    assert not grid.pushed


def test_a_question_that_was_not_taken_is_made_anew(grid: MemoryGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    link = GridLink(grid, NODES)  # type: ignore[arg-type]

    def refuse(messages: object) -> None:
        raise ObjectPushError("object", 5, "session")

    with monkeypatch.context() as once:
        once.setattr(grid, "push_messages", refuse)
        assert link.post("lagos", b"question", lifetime=600) == ""
    assert link.post("lagos", b"question", lifetime=600)


def test_another_sites_node_cannot_answer(grid: MemoryGrid) -> None:
    link = GridLink(grid, NODES)  # type: ignore[arg-type]
    ticket = link.post("lagos", b"question", lifetime=600)
    grid.replies[ticket] = _reply(grid.pushed[ticket], messages.wrap(b"answer"), by=11)
    assert list(link.take([ticket])) == [(ticket, None)]


def test_who_sends_slowly_holds_nobody_up(grid: MemoryGrid) -> None:
    """Flower's own way of pulling would wait for all objects of the first answer."""
    link = GridLink(grid, NODES)  # type: ignore[arg-type]
    slow, quick = (link.post(site, b"question", lifetime=600) for site in ("lagos", "kampala"))
    for ticket in (slow, quick):
        grid.replies[ticket] = _reply(grid.pushed[ticket], messages.wrap(ticket.encode()))
    grid.slow.add(slow)
    assert list(link.take([slow, quick])) == [(quick, quick.encode())]
    assert [link.coming(ticket) for ticket in (slow, quick)] == [True, False]
    assert list(link.take([slow])) == []
    grid.slow.clear()
    assert list(link.take([slow])) == [(slow, slow.encode())]


def test_an_answer_that_stops_on_its_way_is_lost(grid: MemoryGrid) -> None:
    link = GridLink(grid, NODES)  # type: ignore[arg-type]
    ticket = link.post("lagos", b"question", lifetime=600)
    grid.replies[ticket] = _reply(grid.pushed[ticket], messages.wrap(b"answer"))
    grid.slow.add(ticket)
    assert list(link.take([ticket])) == []
    grid.slow.clear()
    del grid.replies[ticket]  # as Flower deletes it, three minutes after its last object
    assert list(link.take([ticket])) == [(ticket, None)]


def test_the_tensors_of_a_download_are_the_same_objects_for_every_site(grid: MemoryGrid) -> None:
    """Their names differ in length, so a cut of the whole bytes at fixed places would share none."""
    weights = {"w": torch.randn(3 * MIB // 4), "b": torch.randn(7)}
    sent = []
    for site in ("ki", "kampala-general"):
        content = pack(Parcel("train", {"site": site, "nonce": site * 3}, weights))
        message = Message(messages.wrap(content), dst_node_id=11, message_type=messages.TYPE)
        sent.append({name: len(part.deflate()) for name, part in get_all_nested_objects(message).items()})
        assert messages.unwrap(message) == content
    shared = set(sent[0]) & set(sent[1])
    assert sum(sent[0][name] for name in shared) > 3 * MIB
    assert sum(size for name, size in sent[0].items() if name not in shared) < 2000


def test_a_connection_that_is_torn_in_its_handshake_is_made_again() -> None:
    """Python calls it an SSL error; so it is when nginx is killed, or a link cut."""
    torn = [httpx.ConnectError("EOF occurred in violation of protocol (_ssl.c:1007)")]

    def call() -> str:
        if torn:
            raise torn.pop()
        return "there"

    assert Retry(5.0).invoke(call) == "there"


def test_clocks_that_differ_are_named_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower says 401, whether the key or the clock is wrong; the proxy's answer is dated."""
    refusal = _status(401)
    refusal.response.headers["date"] = "Thu, 01 Jan 2026 10:00:00 GMT"
    for ahead, words in ((600, "10 minutes ahead of"), (30, "30 seconds ahead of"), (-900, "15 minutes behind")):
        monkeypatch.setattr(calls, "_now", lambda ahead=ahead: 1767261600.0 + ahead)
        with pytest.raises(LinkError, match=words) as raised, as_link_errors("fl.example.org:443"):
            raise refusal
        assert "set the clock" in raised.value.fix
    monkeypatch.setattr(calls, "_now", lambda: 1767261602.0)
    with pytest.raises(LinkError, match="answers 401") as raised, as_link_errors("fl.example.org:443"):
        raise refusal
    assert "key" in raised.value.fix


@pytest.mark.parametrize("what", ["error", "nothing", "other record", "other kind"])
def test_what_is_no_parcel_counts_as_lost(what: str, grid: MemoryGrid) -> None:
    link = GridLink(grid, NODES)  # type: ignore[arg-type]
    ticket = link.post("kampala", b"question", lifetime=600)
    content: RecordDict | Error = {
        "error": Error(2, "node unavailable"),
        "nothing": RecordDict(),
        "other record": RecordDict({"frame": ConfigRecord({"content": b"x"})}),
        "other kind": RecordDict({"else": messages.wrap(b"x")["frame"]}),
    }[what]
    grid.replies[ticket] = _reply(grid.pushed[ticket], content)
    assert list(link.take([ticket])) == [(ticket, None)]


def test_presence_is_what_the_server_has_heard(grid: MemoryGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    link = GridLink(grid, NODES)  # type: ignore[arg-type]
    monkeypatch.setattr("morphfed.federation.transports.flower.grid._LOOK", 0.0)
    before = time.time()
    del grid.online[12]
    found = link.presence()
    assert found["kampala"].connected
    assert found["kampala"].since == 1767261600.0  # 2026-01-01 10:00 UTC
    assert not found["lagos"].connected
    assert found["lagos"].seen is None
    grid.online = {}
    gone = link.presence()["kampala"]
    assert not gone.connected
    assert gone.seen is not None
    assert before <= gone.seen <= time.time()


def _status(code: int, text: str = "") -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://x")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(code, text=text, request=request))


def test_a_call_is_tried_again_while_the_network_is_away_and_not_after_a_refusal() -> None:
    tried: list[float] = []

    def fails(cause: Exception, times: int) -> str:
        tried.append(0)
        if len(tried) <= times:
            raise cause
        return "done"

    assert Retry(5).invoke(fails, httpx.ConnectError("refused"), 2) == "done"
    tried.clear()
    assert Retry(5).invoke(fails, _status(502), 1) == "done"
    for cause in (_status(401), _status(404), httpx.ConnectError("certificate verify failed")):
        tried.clear()
        with pytest.raises(httpx.HTTPError):
            Retry(5).invoke(fails, cause, 9)
        assert len(tried) == 1
    tried.clear()
    with pytest.raises(httpx.ConnectError):
        Retry(0.3).invoke(fails, httpx.ConnectError("refused"), 10**6)


@pytest.mark.parametrize(
    ("cause", "fix"),
    [
        (_status(401, "no"), "the key is not this site's"),
        (_status(412, "Failed to activate SuperNode"), "within a minute"),
        (_status(400), "expired"),
        (_status(413), "client_max_body_size"),
        (_status(502, "<html><h1>502 Bad Gateway</h1></html>"), "is not running"),
        (_status(500), "coordinator's log"),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]"), "clock is wrong"),
        (httpx.ConnectTimeout("timed out"), "firewall"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_failures_say_what_to_do(cause: Exception, fix: str) -> None:
    with pytest.raises(LinkError) as raised, as_link_errors("fl.example.org:443"):
        raise cause
    assert "fl.example.org:443" in raised.value.message
    assert fix in raised.value.fix
    assert "<" not in raised.value.message


def _through(bodies: WholeBodies, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is sent for a request that comes as these messages."""
    sent: list[dict[str, Any]] = []
    coming = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(dict(message))

    asyncio.run(bodies({"type": "http"}, receive, send))
    return sent


def test_the_server_gets_a_body_in_one_piece_and_the_end_of_the_connection_after_it() -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([dict(await receive()), dict(await receive())])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    pieces = [{"type": "http.request", "body": bytes([n]) * 70_000, "more_body": n < 3} for n in range(4)]
    sent = _through(WholeBodies(app), [*pieces, {"type": "http.disconnect"}])
    assert seen[0] == {"type": "http.request", "body": b"".join(p["body"] for p in pieces), "more_body": False}
    assert seen[1]["type"] == "http.disconnect"
    assert [m["status"] for m in sent] == [200]


def test_the_server_refuses_a_body_that_is_too_large_and_forgets_one_that_was_cut_off() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("was asked")

    endless = [{"type": "http.request", "body": b"x" * 600, "more_body": True} for _ in range(3)]
    assert _through(WholeBodies(app, limit=1000), endless)[0]["status"] == 413
    assert _through(WholeBodies(app), [endless[0], {"type": "http.disconnect"}]) == []


def test_the_pieces_of_an_upload_are_as_large_as_the_link_deserves() -> None:
    line = FleetLine.__new__(FleetLine)
    line._piece = 0
    assert not line._adapt(1000, 0.01)  # too little to tell
    assert line._piece == 0
    for rate, piece in ((25_000, SMALLEST), (200_000, 500_000), (10_000_000, LARGEST)):
        assert line._adapt(100 * rate, 100.0)
        assert line._piece == piece
