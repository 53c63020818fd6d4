"""A parcel's bytes as the content of a Flower message, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import PullObjectRequest

from morphfed.federation.transports.flower import LARGEST, SMALLEST
from morphfed.federation.transports.parcel import frame

if TYPE_CHECKING:
    from flwr.proto.message_pb2 import ObjectTree

FRAME, TENSORS, CONTENT, KIND = "frame", "tensors", "content", "morphfed.parcel"
TYPE = "query"
"""Of every message: what is asked is in the parcel."""


def wrap(content: bytes, piece: int = 0) -> RecordDict:
    """Bytes as a message's content, in objects that travel by themselves.

    A parcel's frame and the bytes of its tensors are kept apart: the tensors of a download are the same for every
    site, and Flower keeps and sends equal objects once.

    Args:
        content: a parcel.
        piece: bytes of an object of tensors; 0: a 32nd, so that what is cut off is a small part, within limits.
    """
    cut = frame(content)
    piece = piece or min(LARGEST, max(SMALLEST, len(content) // 32))
    records: dict[str, Any] = {FRAME: ConfigRecord({KIND: content[:cut]})}
    if cut < len(content):
        array = Array(dtype="uint8", shape=(len(content) - cut,), stype=KIND, data=content[cut:])
        view = memoryview(array.data)
        chunks = [ArrayChunk(view[at : at + piece]) for at in range(0, len(view), piece)]
        array.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in chunks]
        records[TENSORS] = made = ArrayRecord()
        made[CONTENT] = array  # given to its constructor it would be copied, without its pieces
    return RecordDict(records)


def unwrap(message: Message) -> bytes | None:
    """The bytes; None: the message holds an error, or something else than a parcel."""
    if message.has_error() or not message.has_content():
        return None
    head, tensors = message.content.get(FRAME), message.content.get(TENSORS)
    if not isinstance(head, ConfigRecord) or not isinstance(first := head.get(KIND), bytes):
        return None
    if tensors is None:
        return first
    if not isinstance(tensors, ArrayRecord) or CONTENT not in tensors or tensors[CONTENT].stype != KIND:
        return None
    return b"".join((first, tensors[CONTENT].data))


class TooLargeError(Exception):
    """A message holds more than can be expected."""


def bounded(pull: Callable[[str], bytes], limit: int) -> Callable[[str], bytes]:
    """The same function, which gives up when more than ``limit`` bytes have come in all."""
    total = 0

    def pull_object(name: str) -> bytes:
        nonlocal total
        found = pull(name)
        total += len(found)
        if total > limit:
            raise TooLargeError
        return found

    return pull_object


def surely(push: Callable[[Any], Any], pull: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``PushObject`` for a network that breaks.

    An object that comes twice, because the first one's confirmation was lost, counts as refused. Its message could not
    be announced again once the other end has asked for it, and would be given up after three minutes; so look whether
    the object is there.
    """

    def pushed(request: Any) -> Any:
        answer = push(request)
        if not answer.stored:
            asked = PullObjectRequest(node=request.node, run_id=request.run_id, object_id=request.object_id)
            answer.stored = pull(asked).object_available
        return answer

    return pushed


def inflated(contents: dict[str, bytes]) -> int:
    """Bytes that the arrays of a message hold once they are put together.

    An array names its pieces, and may name one a million times: a few bytes on the wire can stand for any number.

    Raises:
        ValueError: an array's description is damaged.
    """
    from flwr.supercore.inflatable.inflatable_object import (
        get_object_body,
        get_object_children_ids_from_object_content,
        get_object_type_from_object_content,
    )

    total = 0
    try:
        for content in contents.values():
            if get_object_type_from_object_content(content) == Array.__qualname__:
                pieces = get_object_children_ids_from_object_content(content)
                sizes = [len(contents[name]) for name in pieces]
                total += sum(sizes[at] for at in json.loads(get_object_body(content, Array))["arraychunk_ids"])
    except (KeyError, IndexError, TypeError) as cause:
        raise ValueError(f"damaged message: {cause}") from cause
    return total


def objects_of(tree: ObjectTree) -> list[str]:
    """Names of all objects of a message, its own first."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    return [node.object_id for node in iterate_object_tree(tree)]


def read_message(name: str, contents: dict[str, bytes]) -> Message:
    """A message from its objects.

    Raises:
        ValueError: they are damaged, or not a message's.
    """
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    try:
        found: Any = inflate_object_from_contents(name, contents)
    except (ValueError, KeyError, TypeError) as cause:
        raise ValueError(f"damaged message: {cause}") from cause
    if not isinstance(found, Message):
        raise ValueError("not a message")
    found.metadata.__dict__["_message_id"] = name
    return found
