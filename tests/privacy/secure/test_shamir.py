"""Shares: against hand-worked polynomials, and what t - 1 of them tell."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphfed.privacy.secure import shamir


def test_a_hand_worked_case() -> None:
    # f(x) = 5 + 2 x + 3 x² over the integers modulo 17: f(1) = 10, f(2) = 21 = 4, f(4) = 61 = 10.
    assert shamir.combine({1: 10, 2: 4, 4: 10}, prime=17) == 5


def test_combining_is_interpolation_at_zero_over_the_rationals() -> None:
    points = {2: 7, 3: 11, 7: 5}  # small enough for exact fractions; the field's answer is theirs modulo the prime
    exact = Fraction(0)
    for x, y in points.items():
        term = Fraction(y)
        for other in points:
            if other != x:
                term *= Fraction(-other, x - other)
        exact += term
    prime = 10007
    assert shamir.combine(points, prime=prime) == exact.numerator * pow(exact.denominator, -1, prime) % prime


@given(st.integers(0, 2**256 - 1), st.integers(1, 7), st.integers(0, 5), st.randoms())
def test_any_t_shares_give_the_secret_back(secret: int, threshold: int, more: int, random) -> None:  # type: ignore[no-untyped-def]
    shares = shamir.split(secret, range(1, threshold + more + 1), threshold)
    chosen = random.sample(sorted(shares), threshold)
    assert shamir.combine({x: shares[x] for x in chosen}) == secret
    assert all(share < shamir.PRIME for share in shares.values())


def test_fewer_than_t_shares_are_the_same_for_every_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    # All polynomials of degree 2 over 5 elements: each pair of shares occurs equally often, whatever the secret.
    prime, points, threshold = 5, (1, 2, 3), 3
    for pair in combinations(points, 2):
        seen = []
        for secret in range(prime):
            found: Counter[tuple[int, ...]] = Counter()
            for a in range(prime):
                for b in range(prime):
                    draws = iter((a, b))
                    monkeypatch.setattr(shamir.secrets, "randbelow", lambda n, draws=draws: next(draws))
                    shares = shamir.split(secret, points, threshold, prime=prime)
                    found[tuple(shares[x] for x in pair)] += 1
            seen.append(found)
        assert all(found == seen[0] for found in seen)
        assert set(seen[0].values()) == {1}


def test_coefficients_are_drawn_anew() -> None:
    first, second = (shamir.split(7, (1, 2, 3), 2) for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("secret", "points", "threshold"),
    [(-1, (1, 2), 2), (shamir.PRIME, (1, 2), 2), (1, (1, 1), 2), (1, (0, 1), 2), (1, (1, 2), 3)],
)
def test_arguments_out_of_range_are_refused(secret: int, points: tuple[int, ...], threshold: int) -> None:
    with pytest.raises(ValueError, match="range|distinct"):
        shamir.split(secret, points, threshold)


def test_the_prime_is_one() -> None:
    # Lucas and Lehmer: 2^p - 1 is prime if and only if s_{p-2} = 0, with s_0 = 4, s_i = s_{i-1}² - 2.
    s = 4
    for _ in range(521 - 2):
        s = (s * s - 2) % shamir.PRIME
    assert s == 0
    assert shamir.SHARE_BYTES * 8 >= 521
