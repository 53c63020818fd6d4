"""A party of one session of secure aggregation: Bonawitz et al. 2017, figure 4, the parties' side.

Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth: Practical secure aggregation for
privacy-preserving machine learning. ACM CCS 2017. For a party u with the vector x_u, all modulo a power of two::

    y_u = x_u + PRG(b_u) + Σ_{v: u < v} PRG(s_uv) - Σ_{v: u > v} PRG(s_uv)

b_u is a seed of its own, s_uv what u and v derive from their key pairs. In the sum the pairwise masks cancel. Of a
party whose y_u is in the sum the others give their shares of b_u, of one that has gone those of its masking key: never
both of the same party.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morphfed.core.errors import SecureSumError
from morphfed.privacy.secure.keys import (
    NONCE_BYTES,
    TAG_BYTES,
    Advert,
    Identity,
    agree,
    commitment,
    derive,
    new_key,
    seal,
    transcript,
    unseal,
)
from morphfed.privacy.secure.masks import KEY_BYTES, Stream, apply
from morphfed.privacy.secure.shamir import SHARE_BYTES, split

if TYPE_CHECKING:
    from morphfed.privacy.secure.masks import Words

SEALED_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES


@dataclass(frozen=True)
class Terms:
    """What a session is about; every party knows it beforehand, and takes it from nobody.

    Attributes:
        about: study, unit, round and session, in words.
        parties: all that may take part, in an order that gives each its point.
        threshold: t.
    """

    about: str
    parties: tuple[str, ...]
    threshold: int

    def point(self, party: str) -> int:
        """Where the polynomials are evaluated for it."""
        return self.parties.index(party) + 1

    def sign_of(self, own: str, other: str) -> int:
        """+1 where ``own`` adds the mask of a pair, -1 where it takes it away."""
        return 1 if self.point(own) < self.point(other) else -1

    def check_cohort(self, found: Collection[str], what: str) -> None:
        """Accept a set of parties.

        Raises:
            SecureSumError: fewer than t, or one that is not of the study.
        """
        strange = sorted(set(found) - set(self.parties))
        if strange:
            raise refusal(f"'{strange[0]}' is no site of this sum")
        if len(found) < self.threshold:
            raise refusal(f"{len(found)} sites {what}, fewer than the {self.threshold} that this study needs")


class Party:
    """One party in one session; each step once, in order. It is thrown away afterwards, with its keys.

    Args:
        name: its own.
        terms: of the session.
        claims: whole numbers that it tells everybody.
        identity: signs its keys and checks the others'; None: nobody's are signed.
    """

    def __init__(self, name: str, terms: Terms, claims: Mapping[str, int], identity: Identity | None = None) -> None:
        self._name, self._terms, self._identity = name, terms, identity
        self._sealing, self._masking, self._seed = new_key(), new_key(), os.urandom(KEY_BYTES)
        keys = self._sealing.public_key().public_bytes_raw(), self._masking.public_key().public_bytes_raw()
        unsigned = Advert(*keys, commitment(self._seed), dict(claims), {})
        proof = identity.sign(unsigned.content(terms.about)) if identity else {}
        self.advert = Advert(*keys, unsigned.commitment, unsigned.claims, proof)
        """What is told to everybody; the first step."""
        self._adverts: dict[str, Advert] = {}
        self._session = b""
        self._done = 0
        self._held: dict[str, tuple[bytes, bytes]] = {}

    def share(self, adverts: Mapping[str, Advert]) -> dict[str, bytes]:
        """Shares of its two secrets, sealed for each other party.

        Args:
            adverts: of all that take part, its own among them.

        Raises:
            SecureSumError: too few, a stranger, a key twice, its own altered, or a proof that is none.
        """
        self._in_order(1)
        self._check(adverts)
        self._adverts = {name: adverts[name] for name in self._terms.parties if name in adverts}
        self._session = transcript(self._terms.about, self._terms.threshold, self._adverts)
        points = [self._terms.point(name) for name in self._adverts]
        secrets = (self._masking.private_bytes_raw(), self._seed)
        shares = [split(int.from_bytes(secret, "big"), points, self._terms.threshold) for secret in secrets]
        sealed = {}
        for name in self._adverts:
            masking, seed = (found[self._terms.point(name)].to_bytes(SHARE_BYTES, "big") for found in shares)
            if name == self._name:
                self._held[name] = masking, seed
            else:
                sealed[name] = seal(self._key_for(name), masking + seed, self._label(self._name, name))
        return sealed

    def _check(self, adverts: Mapping[str, Advert]) -> None:
        self._terms.check_cohort(adverts, "have sent keys")
        mine = adverts.get(self._name)
        if mine is None or mine.content("") != self.advert.content(""):
            raise refusal("its own keys are missing, or are not those that it sent")
        keys = [key for advert in adverts.values() for key in advert.keys]
        if len(set(keys)) != len(keys):
            raise refusal("two sites have the same key")
        if self._identity is not None:
            for name, advert in adverts.items():
                if name != self._name:
                    self._identity.check(name, advert.content(self._terms.about), advert.proof)

    def mask(self, vectors: Sequence[Words], sealed: Mapping[str, bytes]) -> None:
        """Turn its vectors into masked ones, in place.

        Args:
            vectors: x_u; they are y_u afterwards.
            sealed: by sender, what each other party sealed for this one; who sent none is out of the sum.

        Raises:
            SecureSumError: too few, a stranger, or a share that was altered; the vectors are as they were.
        """
        self._in_order(2)
        self._terms.check_cohort([*sealed, self._name], "have shared out their secrets")
        for name, content in sealed.items():
            if name not in self._adverts or name == self._name:
                raise refusal(f"'{name}' has sent no keys in this session")
            opened = unseal(self._key_for(name), content, self._label(name, self._name))
            if opened is None or len(opened) != 2 * SHARE_BYTES:
                raise refusal(f"the share of '{name}' does not open: it was altered, or that site was shown other keys")
            self._held[name] = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
        streams = [Stream(derive(self._seed, "own mask", self._session), 1)]
        for name in sealed:
            secret = agree(self._masking, self._adverts[name].masking, name)
            streams.append(
                Stream(derive(secret, "mask of a pair", self._session), self._terms.sign_of(self._name, name))
            )
        apply(streams, vectors)

    def open(self, survivors: Collection[str]) -> dict[str, bytes]:
        """Its shares: of the seed of each party whose vector is in the sum, of the masking key of each that has gone.

        Args:
            survivors: whose masked vectors have arrived.

        Raises:
            SecureSumError: too few, one that never shared, or this party is not among them; nothing is given away.
        """
        self._in_order(3)
        self._terms.check_cohort(survivors, "have sent their upload")
        if self._name not in survivors:
            raise refusal("it is said to be gone, and would give away the shares of its own masks")
        strange = sorted(set(survivors) - set(self._held))
        if strange:
            raise refusal(f"'{strange[0]}' has shared out no secrets in this session")
        return {name: held[1] if name in survivors else held[0] for name, held in self._held.items()}

    def _in_order(self, step: int) -> None:
        """A step is taken once, whatever comes of it: no mask is used for two vectors, no set of shares given twice."""
        if step != self._done + 1:
            raise refusal("this step was taken already, or the one before it was not")
        self._done = step

    def _key_for(self, other: str) -> bytes:
        pair = "sealing of a pair"
        return derive(agree(self._sealing, self._adverts[other].sealing, other), pair, self._session)

    def _label(self, sender: str, receiver: str) -> bytes:
        return f"{sender}\n{receiver}\n".encode() + self._session


def same(left: bytes, right: bytes) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(left, right)


def refusal(why: str) -> SecureSumError:
    """A party that does not go on."""
    return SecureSumError(
        f"The secure sum is refused: {why}.",
        fix="look at the site that is named and at the coordinator; the round can be begun anew, with new keys.",
    )
