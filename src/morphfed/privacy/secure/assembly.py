"""The coordinator's side of one session: adds masked vectors up and lifts the masks that are left in their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from morphfed.core.errors import SecureSumError
from morphfed.privacy.secure.keys import Advert, agree, commitment, derive, private_key, transcript
from morphfed.privacy.secure.masks import KEY_BYTES, Stream, apply
from morphfed.privacy.secure.party import SEALED_BYTES, Terms, same
from morphfed.privacy.secure.shamir import PRIME, SHARE_BYTES, combine

if TYPE_CHECKING:
    from morphfed.privacy.secure.masks import Words


class Assembly:
    """One session. Its memory is that of one sum, whatever the number of parties.

    Args:
        terms: as the parties know them.
        adverts: of those that take part.
        total: zeros, unsigned words of the vectors' lengths; the sum in the end.
    """

    def __init__(self, terms: Terms, adverts: Mapping[str, Advert], total: Sequence[Words]) -> None:
        self._terms = terms
        self.adverts = {name: adverts[name] for name in terms.parties if name in adverts}
        """In the parties' order."""
        self._total = total
        self._session = transcript(terms.about, terms.threshold, self.adverts)
        self._sealed: dict[str, Mapping[str, bytes]] = {}
        self._added: list[str] = []

    def take_shares(self, party: str, sealed: Mapping[str, bytes]) -> None:
        """What a party sealed for the others.

        Raises:
            ValueError: it is not one sealed share for each other party.
        """
        if set(sealed) != set(self.adverts) - {party} or any(len(one) != SEALED_BYTES for one in sealed.values()):
            raise ValueError("it has not sent one sealed share for each other site")
        self._sealed[party] = sealed

    @property
    def sharing(self) -> list[str]:
        """Parties that have shared out their secrets: those whose masks are in the sum."""
        return [name for name in self.adverts if name in self._sealed]

    def sealed_for(self, party: str) -> dict[str, bytes]:
        """What the others sealed for a party, by sender."""
        return {name: self._sealed[name][party] for name in self.sharing if name != party}

    def add(self, party: str, vectors: Sequence[Words]) -> None:
        """Add a masked vector; what it hides is not seen here."""
        for total, vector in zip(self._total, vectors, strict=True):
            total += vector
        self._added.append(party)

    @property
    def survivors(self) -> list[str]:
        """Parties whose vectors are in the sum, in order."""
        return [name for name in self.adverts if name in self._added]

    def open(self, shares: Mapping[str, Mapping[str, bytes]]) -> None:
        """Lift the masks that are left, so that ``total`` is the sum of the survivors' vectors.

        Args:
            shares: by party that answers, its shares by whose secret they are of.

        Raises:
            SecureSumError: fewer than t answer, or a secret that does not come out right; the sum stays masked.
        """
        self._terms.check_cohort(shares, "have answered the last step")
        streams = []
        for name in self.sharing:
            secret = self._secret(name, shares)
            if name in self._added:
                streams.append(Stream(derive(secret, "own mask", self._session), -1))
            else:
                streams += self._left_by(name, secret)
        apply(streams, self._total)

    def _secret(self, name: str, shares: Mapping[str, Mapping[str, bytes]]) -> bytes:
        """A party's seed if its vector is in the sum, else its masking key; compared with what it advertised."""
        holders = list(shares)[: self._terms.threshold]
        points = {self._terms.point(holder): int.from_bytes(shares[holder][name], "big") for holder in holders}
        found = combine(points)
        secret = found.to_bytes(SHARE_BYTES, "big")[-KEY_BYTES:]
        advert = self.adverts[name]
        if name in self._added:
            right = same(commitment(secret), advert.commitment)
        else:
            right = same(private_key(secret).public_key().public_bytes_raw(), advert.masking)
        if not right:
            raise SecureSumError(
                f"The secret of '{name}' cannot be put together from the shares of {', '.join(holders)}: one is wrong.",
                fix="find the site that sends wrong shares; the round can be begun anew, with new keys.",
            )
        return secret

    def _left_by(self, gone: str, masking: bytes) -> list[Stream]:
        """Streams that take away the masks which the survivors have in common with a party that has gone."""
        key, streams = private_key(masking), []
        for name in self.survivors:
            secret = agree(key, self.adverts[name].masking, name)
            sign = -self._terms.sign_of(name, gone)
            streams.append(Stream(derive(secret, "mask of a pair", self._session), sign))
        return streams


def readable(shares: Mapping[str, bytes], of: Sequence[str]) -> bool:
    """Whether a party's answer to the last step is a share of each secret that was asked for."""
    return set(shares) == set(of) and all(
        len(share) == SHARE_BYTES and int.from_bytes(share, "big") < PRIME for share in shares.values()
    )
