"""Masks are the key stream that RFC 8439 prints, and cancel modulo any word size."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="the extra 'secure' is not installed")

from morphfed.privacy.secure import masks
from morphfed.privacy.secure.masks import Stream, apply


def stream_of(key: bytes, count: int) -> bytes:
    words = np.zeros(count // 4, dtype=np.uint32)
    apply([Stream(key, 1)], [words])
    return words.astype("<u4").tobytes()


def test_the_stream_is_that_of_rfc_8439() -> None:
    # Appendix A.1, test vectors 1 and 2: key and nonce of zeros, blocks 0 and 1.
    expected = (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )
    assert stream_of(bytes(32), 128).hex() == expected


def test_pieces_join_to_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stream_of(b"k" * 32, 4096)
    monkeypatch.setattr(masks, "PIECE", 64)
    assert stream_of(b"k" * 32, 4096) == whole


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_a_mask_taken_away_leaves_what_was_there(kind: type) -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, np.iinfo(kind).max, 300_001, dtype=kind, endpoint=True)
    vector, numbers = before.copy(), np.arange(5, dtype=np.uint64)
    keys = [bytes([i]) * 32 for i in range(3)]
    apply([Stream(keys[0], 1), Stream(keys[1], -1), Stream(keys[2], 1)], [vector, numbers])
    assert not np.array_equal(vector, before)
    # Uniform words: each bit is set half of the time (300,001 draws, five standard deviations).
    bits = [(vector >> kind(b)) & kind(1) for b in range(vector.itemsize * 8)]
    assert all(abs(float(bit.mean()) - 0.5) < 5 * 0.5 / 300_001**0.5 for bit in bits)
    apply([Stream(keys[2], -1), Stream(keys[0], -1), Stream(keys[1], 1)], [vector, numbers])
    np.testing.assert_array_equal(vector, before)
    np.testing.assert_array_equal(numbers, np.arange(5))
