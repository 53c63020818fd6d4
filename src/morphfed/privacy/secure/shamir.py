"""Shares of a secret, any ``t`` of which give it back and fewer tell nothing.

Shamir: How to share a secret. Communications of the ACM 22 (1979). The secret is ``f(0)`` of a polynomial of degree
``t - 1`` over a prime field whose other coefficients are drawn at random; a share is a point ``(x, f(x))``, and the
secret is ``Σ_i f(x_i) Π_{j≠i} x_j / (x_j - x_i)``.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

PRIME = 2**521 - 1
"""A Mersenne prime, well above secrets of 32 bytes."""

SHARE_BYTES = 66


def split(secret: int, points: Sequence[int], threshold: int, *, prime: int = PRIME) -> dict[int, int]:
    """Shares by point.

    Args:
        secret: in ``[0, prime)``.
        points: distinct, in ``[1, prime)``; one a holder.
        threshold: t, in ``[1, len(points)]``.

    Raises:
        ValueError: arguments outside these ranges.
    """
    if not 0 <= secret < prime or not 1 <= threshold <= len(points):
        raise ValueError("the secret or the threshold is out of range")
    if len(set(points)) != len(points) or not all(1 <= x < prime for x in points):
        raise ValueError("points must be distinct and in the field, without 0")
    coefficients = [secret, *(secrets.randbelow(prime) for _ in range(threshold - 1))]
    shares = {}
    for x in points:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % prime
        shares[x] = value
    return shares


def combine(shares: Mapping[int, int], *, prime: int = PRIME) -> int:
    """The secret from shares by point; too few or wrong ones give another number, which nothing here can tell."""
    weights = _at_zero(tuple(shares), prime)
    return sum(value * weight for value, weight in zip(shares.values(), weights, strict=True)) % prime


@lru_cache(maxsize=64)
def _at_zero(points: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """Lagrange's coefficients at 0; all secrets of a session are opened at the same points."""
    found = []
    for x in points:
        over = under = 1
        for other in points:
            if other != x:
                over, under = over * other % prime, under * (other - x) % prime
        found.append(over * pow(under, -1, prime) % prime)
    return tuple(found)
