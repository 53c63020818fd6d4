"""Masks: key streams of ChaCha20 (RFC 8439) added to integers modulo a power of two, in pieces that fit a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.errors import MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Words = NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.uint64]

PIECE = 1 << 18
"""Bytes of a stream that are made at once."""

KEY_BYTES = 32


class Stream:
    """One key's stream. A key is used for one stream in one session and never again, so the nonce is 0.

    Args:
        key: 32 bytes.
        sign: +1 adds the stream, -1 takes it away.
    """

    def __init__(self, key: bytes, sign: int) -> None:
        ciphers = crypto("ciphers")
        self._cipher = ciphers.Cipher(ciphers.algorithms.ChaCha20(key, bytes(16)), None).encryptor()
        self.sign = sign

    def into(self, memory: bytearray, count: int) -> None:
        """The next ``count`` bytes."""
        self._cipher.update_into(memoryview(_ZEROS)[:count], memory)


_ZEROS = bytes(PIECE)


def apply(streams: Sequence[Stream], vectors: Sequence[Words]) -> None:
    """Add the streams to the vectors, one after another, in place and modulo their word size.

    Args:
        streams: each is used up by the vectors' bytes.
        vectors: contiguous unsigned words, 1-d.
    """
    memory = bytearray(PIECE)
    for vector in vectors:
        size = vector.itemsize
        # The same stream on every machine: words are little-endian.
        words = np.frombuffer(memory, dtype=np.dtype(vector.dtype).newbyteorder("<"))
        step = PIECE // size
        for start in range(0, len(vector), step):
            piece = vector[start : start + step]
            for stream in streams:
                stream.into(memory, len(piece) * size)
                change = np.add if stream.sign > 0 else np.subtract
                change(piece, words[: len(piece)], out=piece)


def need_cryptography() -> None:
    """Find out before any work.

    Raises:
        MissingExtraError: the library is not installed.
    """
    crypto("ciphers")


def crypto(part: str) -> Any:
    """A module of ``cryptography.hazmat.primitives``, imported late.

    Raises:
        MissingExtraError: the library is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"cryptography.hazmat.primitives.{part}")
    except ImportError as cause:
        raise MissingExtraError(
            "Secure aggregation needs the extra 'secure'.", fix="pip install 'morphfed[secure]'"
        ) from cause
