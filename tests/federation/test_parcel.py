"""Bytes from a network: read back exactly, or refused with a reason."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from morphfed.federation.transports.parcel import HEAD_BYTES, Parcel, ParcelError, frame, pack, unpack, with_head

TENSORS = {
    "z": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "a": torch.tensor([float("nan"), -0.0, float("inf")]),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
}
HEAD = {"round": 3, "loss": 0.1, "why": "µ and “quotes”", "at": [1e-300, 2.5], "none": None}


def test_what_is_packed_comes_out_the_same_in_the_same_order() -> None:
    found = unpack(pack(Parcel("train", HEAD, TENSORS)), limit=1000)
    assert found.kind == "train"
    assert found.head == HEAD
    assert list(found.tensors) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].shape == tensor.shape
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found.tensors[name], tensor)]
        assert torch.equal(*raw)


def test_views_of_one_buffer_are_written_apart() -> None:
    flat = torch.arange(6.0)
    found = unpack(pack(Parcel("x", {}, {"l": flat[:2], "r": flat[2:]})), limit=100)
    assert found.tensors["r"].tolist() == [2, 3, 4, 5]


def test_the_same_content_gives_the_same_bytes() -> None:
    assert pack(Parcel("x", {"a": 1, "b": 2}, TENSORS)) == pack(Parcel("x", {"b": 2, "a": 1}, TENSORS))


def test_another_head_leaves_the_tensors_as_they_are() -> None:
    written = pack(Parcel("answer", HEAD, TENSORS))
    again = with_head(written, {"round": 4, "nonce": "n" * 33})
    found = unpack(again, limit=1000)
    assert found.head == HEAD | {"round": 4, "nonce": "n" * 33}
    assert list(found.tensors) == list(TENSORS)
    assert again[frame(again) :] == written[frame(written) :]
    asked = unpack(with_head(written, {}, kind="train"), limit=1000)
    assert (asked.kind, asked.head) == ("train", HEAD)


@pytest.mark.parametrize("content", [b"", b"1234567", (1 << 63).to_bytes(8, "little"), bytes([200, *[0] * 20])])
def test_bytes_without_a_frame_have_none(content: bytes) -> None:
    assert frame(content) == 0


def test_a_parcel_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(ParcelError, match="at most"):
        unpack(bytes(HEAD_BYTES + 101), limit=100)


def _framed(frame: object, data: bytes = b"") -> bytes:
    text = json.dumps(frame).encode() if not isinstance(frame, bytes) else frame
    return len(text).to_bytes(8, "little") + text + data


_GOOD = json.dumps({"format": 1, "kind": "x", "head": {}, "order": ["w"]})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (1 << 63).to_bytes(8, "little") + b"{}",
        _framed(b"{not json"),
        _framed([]),
        _framed({"__metadata__": 5}),
        _framed({"__metadata__": {"morphfed": _GOOD.replace("1", "2")}}),
        _framed({"__metadata__": {"other": ""}}),
        _framed({"__metadata__": {"morphfed": "[]"}}),
        _framed({"__metadata__": {"morphfed": _GOOD}}),
        # a tensor that claims a terabyte
        _framed(
            {
                "__metadata__": {"morphfed": _GOOD},
                "w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]},
            },
            b"\0" * 4,
        ),
        # a shape that does not fit its bytes
        _framed(
            {
                "__metadata__": {"morphfed": _GOOD},
                "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
            },
            b"\0" * 4,
        ),
        _framed(b"[" * 100_000),
    ],
)
def test_what_is_no_parcel_is_refused(content: bytes) -> None:
    with pytest.raises(ParcelError):
        unpack(content, limit=1 << 20)


_WHOLE = pack(Parcel("train", HEAD, TENSORS))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_WHOLE) - 1), st.integers(0, 255)), max_size=8), st.integers(0, 50))
@example([], 0)
def test_altered_bytes_give_a_parcel_or_a_refusal_and_nothing_else(changes: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(_WHOLE)
    for at, value in changes:
        content[at] = value
    try:
        found = unpack(bytes(content[: len(content) - cut]), limit=1000)
    except ParcelError:
        return
    assert sum(t.nbytes for t in found.tensors.values()) <= len(content)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_words(content: bytes) -> None:
    with pytest.raises(ParcelError):
        unpack(content, limit=1000)
