"""What travels over a link: a kind, a head of plain values, and tensors; written as one safetensors file.

Nothing in it can run, and reading it allocates no more than its own length: names, shapes and offsets are checked by
the safetensors library before a tensor is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from morphfed.core.types import Tensors

FORMAT = 1
_KEY = "morphfed"
HEAD_BYTES = 1 << 20
"""The most that a head may take, and names, shapes and framing beside the tensors."""


class ParcelError(ValueError):
    """Bytes that are no parcel; says why."""


@dataclass(frozen=True)
class Parcel:
    """A question to a site, or its answer.

    Attributes:
        kind: what is asked, or how it is answered.
        head: plain JSON values.
        tensors: in an order that is kept.
    """

    kind: str
    head: Mapping[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)


def pack(parcel: Parcel) -> bytes:
    """A parcel as bytes; the same content gives the same bytes."""
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous() for name, t in parcel.tensors.items()}
    # One entry of metadata only: the library writes several in any order.
    head = {"format": FORMAT, "kind": parcel.kind, "head": dict(parcel.head), "order": list(tensors)}
    text = json.dumps(head, sort_keys=True, ensure_ascii=False)
    if len(text.encode()) > HEAD_BYTES // 2:
        raise ParcelError("its head is too long")
    # The library refuses tensors that share memory, as views of one flat buffer do.
    own = {name: t.clone() if t.untyped_storage().nbytes() != t.nbytes else t for name, t in tensors.items()}
    written: bytes = save(own, {_KEY: text})
    return written


def unpack(content: bytes, *, limit: int) -> Parcel:
    """Read a parcel, whoever wrote it.

    Args:
        content: what arrived.
        limit: bytes of tensors that can be expected at most.

    Raises:
        ParcelError: it is larger, damaged, of another format, or not what :func:`pack` writes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if len(content) > limit + HEAD_BYTES:
        raise ParcelError(f"it has {len(content):,} bytes, at most {limit + HEAD_BYTES:,} were expected")
    told = _metadata(content)
    try:
        said = json.loads(told[_KEY])
        if said["format"] != FORMAT:
            raise ParcelError(f"its format is {str(said['format'])[:20]!r}: expected {FORMAT}")
        tensors = load(content)
        kind, head, order = said["kind"], said["head"], said["order"]
    except ParcelError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as cause:
        raise ParcelError(f"it is damaged: {cause}") from cause
    if not isinstance(kind, str) or not isinstance(head, dict) or not isinstance(order, list):
        raise ParcelError("its head is not as it should be")
    if len(order) != len(tensors) or set(map(str, order)) != set(tensors):
        raise ParcelError("its tensors are not those that its head lists")
    return Parcel(kind, head, {name: tensors[name] for name in order})


def _metadata(content: bytes) -> dict[str, str]:
    """The file's own dictionary; safetensors reads it from paths only, so its frame is read here."""
    if len(content) < 8:
        raise ParcelError("it is too short")
    length = int.from_bytes(content[:8], "little")
    if length > min(len(content) - 8, HEAD_BYTES):
        raise ParcelError("its frame is damaged or too long")
    try:
        found = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as cause:
        raise ParcelError(f"its frame is damaged: {cause}") from cause
    if not isinstance(found, dict):
        raise ParcelError("its frame is damaged")
    return found


def frame(content: bytes) -> int:
    """Bytes of a parcel before those of its tensors; 0: these are no parcel's."""
    if content[8:9] != b"{":
        return 0
    length = 8 + int.from_bytes(content[:8], "little")
    return length if length <= min(len(content), 8 + HEAD_BYTES) else 0


def with_head(content: bytes, changes: Mapping[str, Any], *, kind: str = "") -> bytes:
    """What :func:`pack` wrote, with other entries in its head, or of another kind; its tensors are not read."""
    cut = frame(content)
    found = json.loads(content[8:cut])
    said = json.loads(found["__metadata__"][_KEY])
    said["head"] |= changes
    said["kind"] = kind or said["kind"]
    found["__metadata__"] = {_KEY: json.dumps(said, sort_keys=True, ensure_ascii=False)}
    text = json.dumps(found, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[cut:]))


def digest(content: bytes) -> str:
    """Names a content."""
    return hashlib.sha256(content).hexdigest()
