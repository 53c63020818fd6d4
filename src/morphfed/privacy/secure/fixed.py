"""Real numbers as integers modulo ``2^bits``, so that sums are exact and masks can hide them.

A site's number ``x`` with ``|x| ≤ 2^E`` and its share ``p`` of the total weight (``Σ p ≤ 1``) is sent as
``q = round(p x / δ)`` with the step ``δ = 2^(E - bits + 2)``. So ``Σ |q| ≤ 2^(bits - 2) + K / 2 < 2^(bits - 1)`` for
any number of sites ``K < 2^(bits - 1)``: the sum never wraps around. What is rounded away is at most ``δ / 2`` a site.

Single numbers (counts, sums of losses) are written with 64 bits in steps of ``2^-20``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from morphfed.privacy.secure.masks import Words

LEAST = -100
"""Exponent of a vector of zeros."""

NUMBER_STEP = 2.0**-20
NUMBER_LIMIT = 2.0**32
"""Single numbers are smaller; the sum over ``config.MOST_SITES`` stays in 64 bits."""

_PIECE = 1 << 16


def exponent(largest: float) -> int:
    """The smallest ``E ≥ LEAST`` with ``largest ≤ 2^E``, for a finite ``largest ≥ 0``."""
    fraction, found = math.frexp(largest)
    return max(LEAST, found - 1 if fraction == 0.5 else found) if largest else LEAST


def step(exponent: int, bits: int) -> float:
    """δ, exactly a power of two."""
    return math.ldexp(1.0, exponent - bits + 2)


def write(values: NDArray[np.floating], into: Words, factor: float) -> None:
    """``round(values · factor)`` modulo the word size, in pieces.

    Args:
        values: ``(N,)``, finite.
        into: unsigned words ``(N,)``.
        factor: ``p / δ``.
    """
    signed = into.view(f"i{into.itemsize}")
    for start in range(0, len(values), _PIECE):
        piece = values[start : start + _PIECE].astype(np.float64)
        piece *= factor
        np.rint(piece, out=piece)
        signed[start : start + _PIECE] = piece


def read(words: Words, factor: float) -> NDArray[np.float64]:
    """Words as signed integers, times ``factor``."""
    return np.asarray(words.view(f"i{words.itemsize}") * np.float64(factor))


def write_numbers(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Single numbers ``(M,)``.

    Raises:
        ValueError: one is not finite, or not smaller than :data:`NUMBER_LIMIT`; gives its position.
    """
    wrong = np.flatnonzero(~(np.abs(values) < NUMBER_LIMIT))
    if len(wrong):
        raise ValueError(int(wrong[0]))
    return np.rint(values / NUMBER_STEP).astype(np.int64).view(np.uint64)


def read_numbers(words: Words) -> NDArray[np.float64]:
    """Inverse of :func:`write_numbers`, of a sum too."""
    return read(words, NUMBER_STEP)
