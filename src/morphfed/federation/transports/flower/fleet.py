"""A site's end: Flower's Fleet interface, without Flower's node process and without any app."""

from __future__ import annotations

import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.app import Message
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_objects, push_objects
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from morphfed.core.errors import LinkError
from morphfed.federation.transports.flower import LARGEST, SMALLEST
from morphfed.federation.transports.flower.calls import Retry, as_link_errors
from morphfed.federation.transports.flower.messages import (
    TooLargeError,
    bounded,
    inflated,
    objects_of,
    read_message,
    surely,
    unwrap,
    wrap,
)
from morphfed.federation.transports.link import Question
from morphfed.federation.transports.parcel import HEAD_BYTES

if TYPE_CHECKING:
    from types import TracebackType

HEARTBEAT = 20
"""Seconds within which the server can expect a sign of life; it calls a site gone after twice as long without one."""

_BEAT = 12.0  # seconds between two of them
_BRIEF = 30.0  # seconds for which asking is tried again before the connection is made anew
_CALL = 20.0  # seconds without a byte after which a call is given up
_TRANSFER = 150.0  # the same while an object is sent: what the kernel has taken may still have to cross a slow link
_FIRST_PIECE = 1 << 18
_PIECE_SECONDS = 5.0  # that an object of the next upload may take, at the rate of the last one
_SLOWER = 8.0  # times that a link may be slower up than down: the first upload has no other measure


@dataclass(frozen=True)
class Credentials:
    """Where a site connects to, and as whom.

    Attributes:
        host, port: of the proxy.
        authority: certificate against which the server's is checked.
        certificate, key: the site's own, PEM files.
    """

    host: str
    port: int
    authority: Path
    certificate: Path
    key: Path


class FleetLine:
    """A connection to the coordinator, for use in a ``with`` block.

    Args:
        credentials: of the site.
        patience: seconds for which an object is sent or fetched again while the network is away.
        take_over: whether no other process can be connected with this key, so that one that the server still believes
            connected was killed.

    Raises:
        LinkError: on entry: the coordinator cannot be reached, or does not let the site in.
    """

    def __init__(self, credentials: Credentials, *, patience: float = 600.0, take_over: bool = False) -> None:
        self._where = f"{credentials.host}:{credentials.port}"
        key = load_pem_private_key(credentials.key.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise LinkError(f"{credentials.key} is no key of this federation.", fix="use the bundle's own.")
        self._public = public_key_to_bytes(key.public_key())
        # Two connections, so that signs of life do not wait for a transfer to time out.
        context = _context(credentials)
        self._client, self._transfers = (
            FleetHttpClient(
                f"https://{self._where}",
                interceptors=[
                    RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                    NodeAuthHttpInterceptor(key, key.public_key()),
                ],
                verify=context,
                timeout=seconds,
            )
            for seconds in (_CALL, _TRANSFER)
        )
        self._number, self._takes_over = credentials.key.with_suffix(".node"), take_over
        self._piece, self._sent = _FIRST_PIECE, False
        self._retry, self._brief = Retry(patience), Retry(_BRIEF)
        self._node: Node | None = None
        self._stop, self._lost = threading.Event(), threading.Event()
        self._beats: threading.Thread | None = None

    def __enter__(self) -> FleetLine:
        with as_link_errors(self._where):
            self._node = Node(node_id=self._activate())
        with suppress(OSError):
            self._number.write_text(str(self._node.node_id))
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()
        return self

    def _activate(self) -> int:
        """This site's number at the server, which believes a process that was killed connected for up to a minute."""
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT)
        try:
            return int(self._client.ActivateNode(request).node_id)
        except httpx.HTTPStatusError as cause:
            if cause.response.status_code != httpx.codes.PRECONDITION_FAILED or not (before := self._before()):
                raise
        # Say goodbye in its place.
        with suppress(httpx.HTTPStatusError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=before))
        return int(self._client.ActivateNode(request).node_id)

    def _before(self) -> int:
        """The number that the last process here was given; 0: not known, or it may be alive."""
        if not self._takes_over:
            return 0
        try:
            return int(self._number.read_text())
        except (OSError, ValueError):
            return 0

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._beats is not None:
            self._beats.join(5)
        try:
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=cast(Node, self._node).node_id))
        except (httpx.HTTPError, RuntimeError):
            pass  # the server sees it by the missing heartbeats
        finally:
            self._client.close()
            self._transfers.close()

    def _beat(self) -> None:
        """Signs of life, also while the site trains."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT)
        while not self._stop.wait(_BEAT):
            try:
                if not self._client.SendNodeHeartbeat(request).success:
                    self._lost.set()
            except httpx.HTTPStatusError as cause:
                if cause.response.status_code in (400, 401, 412):
                    self._lost.set()
            except (httpx.HTTPError, RuntimeError, ValueError):
                continue  # the network is away; the next one tells

    def ask(self, limit: int) -> Question | None:
        """The next question."""
        if self._lost.is_set():
            raise LinkError(f"{self._where} no longer knows this connection.", fix="nothing; it is made anew.")
        node = cast(Node, self._node)
        with as_link_errors(self._where):
            found = self._brief.invoke(self._client.PullMessages, PullMessagesRequest(node=node))
            if not found.messages_list:
                return None
            tree, run = found.message_object_trees[0], found.messages_list[0].metadata.run_id
            pull = make_pull_object_fn_protobuf(self._retrying(self._transfers.PullObject), node, run)
            contents = self._pull(objects_of(tree), pull, limit)
            make_confirm_message_received_fn_protobuf(self._retrying(self._client.ConfirmMessageReceived), node, run)(
                tree.object_id
            )
        handle = message_from_proto(found.messages_list[0])
        try:
            small = contents is not None and inflated(contents) <= limit + HEAD_BYTES
            content = unwrap(read_message(tree.object_id, contents)) if contents and small else None
        except ValueError:
            content = None
        # What is too large, damaged or no parcel is answered too, as a question that cannot be read.
        return Question(content or b"", handle)

    def _pull(self, names: list[str], pull: Any, limit: int) -> dict[str, bytes] | None:
        """All objects of a message; None: more than can be expected, or some are gone."""
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError

        began = time.monotonic()
        try:
            # The coordinator may still be leaving them.
            found = dict(pull_objects(names, bounded(pull, limit), initial_backoff=0.1, backoff_cap=1.0))
        except (TooLargeError, ObjectPullError):
            return None
        if not self._sent:
            self._adapt(sum(map(len, found.values())), _SLOWER * (time.monotonic() - began))
        return found

    def _retrying(self, call: Any) -> Any:
        return lambda request: self._retry.invoke(call, request)

    def answer(self, question: Question, content: bytes) -> None:
        """Push an answer; objects that have arrived are not sent again when the network comes back."""
        from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

        end = time.monotonic() + self._retry.seconds
        # Made once: pushed again it has the same name, and the server asks for what it has not.
        message = Message(wrap(content, self._piece), reply_to=cast(Message, question.handle))
        message.metadata.__dict__["_message_id"] = message.object_id
        while True:
            try:
                with as_link_errors(self._where):
                    self._push(message)
                return
            except ObjectPushError as cause:  # the session ran out while the network was away
                if time.monotonic() > end:
                    raise LinkError(
                        f"{self._where} did not keep the answer.", fix="check the link; the round goes on without it."
                    ) from cause
                time.sleep(0.5)

    def _push(self, message: Message) -> None:
        from flwr.app.message import remove_content_from_message
        from flwr.common.serde import message_to_proto

        node, run, root = cast(Node, self._node), message.metadata.run_id, message.metadata.message_id
        with no_object_id_recompute():
            request = PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(remove_content_from_message(message))],
                message_object_trees=[get_object_tree(message)],
            )
            given = self._retry.invoke(self._client.PushMessages, request)
            sure = surely(self._retrying(self._transfers.PushObject), self._retrying(self._transfers.PullObject))
            push = make_push_object_fn_protobuf(sure, node, run, given.session_id)
            parts, missing = get_all_nested_objects(message), set(given.objects_to_push)
            last = parts.pop(root).deflate()
            self._push_parts(parts, push, missing - {root})
            if root in missing:  # once it is there, the coordinator knows that the others are
                push(root, last)

    def _push_parts(self, parts: dict[str, Any], push: Any, missing: set[str]) -> None:
        sent, began = 0, time.monotonic()

        def counted(name: str, content: bytes) -> None:
            nonlocal sent
            push(name, content)
            sent += len(content)

        push_objects(parts, counted, object_ids_to_push=missing)
        self._sent |= self._adapt(sent, time.monotonic() - began)

    def _adapt(self, moved: int, seconds: float) -> bool:
        """Make the next upload's objects as large as the link deserves; False: too little moved to tell."""
        if moved < _FIRST_PIECE:
            return False
        rate = moved / max(seconds, 1e-3)  # two are on their way at a time
        self._piece = int(min(LARGEST, max(SMALLEST, rate * _PIECE_SECONDS / 2)))
        return True


def _context(credentials: Credentials) -> ssl.SSLContext:
    """TLS with the federation's authority only, and the site's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=credentials.authority)
    context.load_cert_chain(credentials.certificate, credentials.key)
    return context
