"""Keys of one session: agreement on X25519, derivation by HKDF-SHA256, shares sealed with ChaCha20-Poly1305.

A party has two key pairs (Bonawitz et al. 2017): one under which shares are sealed, whose private half never leaves it,
and one from which the pairwise masks come, whose private half is shared out so that the others can lift the masks of a
party that has gone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from morphfed.core.errors import SecureSumError
from morphfed.privacy.secure.masks import KEY_BYTES, crypto

NONCE_BYTES, TAG_BYTES = 12, 16


class Identity(Protocol):
    """A party's long-lived name, so that a coordinator cannot put keys of its own in the place of a party's."""

    def sign(self, content: bytes) -> Mapping[str, bytes]:
        """Proof that this party wrote ``content``, as named byte strings."""
        ...

    def check(self, name: str, content: bytes, proof: Mapping[str, bytes]) -> None:
        """Accept a proof.

        Raises:
            SecureSumError: it is not a proof of the party ``name``; says why.
        """
        ...


@dataclass(frozen=True)
class Advert:
    """What a party tells everybody at the beginning of a session.

    Attributes:
        sealing: public key, 32 bytes, under which shares for this party are sealed.
        masking: public key, 32 bytes, from which its pairwise masks come.
        commitment: SHA-256 of the seed of its own mask.
        claims: whole numbers in the clear that all must know: exponents of ranges.
        proof: of its identity; empty where there is none.
    """

    sealing: bytes
    masking: bytes
    commitment: bytes
    claims: Mapping[str, int]
    proof: Mapping[str, bytes]

    def content(self, about: str) -> bytes:
        """What is signed."""
        return _text([about, *(key.hex() for key in self.keys), dict(self.claims)])

    @property
    def keys(self) -> tuple[bytes, bytes, bytes]:
        """The three byte strings of 32."""
        return self.sealing, self.masking, self.commitment

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        sealing, masking, commitment = (key.hex() for key in self.keys)
        proof = {name: value.hex() for name, value in self.proof.items()}
        claims = dict(self.claims)
        return {"sealing": sealing, "masking": masking, "commitment": commitment, "claims": claims, "proof": proof}

    @classmethod
    def read(cls, plain: Any) -> Advert:
        """Inverse of :meth:`plain`, whoever wrote it.

        Raises:
            ValueError: it is none.
        """
        try:
            sealing, masking, commitment = (bytes.fromhex(plain[n]) for n in ("sealing", "masking", "commitment"))
            claims = {str(name): value for name, value in plain["claims"].items()}
            proof = {str(name): bytes.fromhex(value) for name, value in plain["proof"].items()}
        except (TypeError, KeyError, AttributeError, ValueError) as cause:
            raise ValueError("it is no advert") from cause
        return cls(sealing, masking, commitment, claims, proof).checked()

    def checked(self) -> Advert:
        """Itself.

        Raises:
            ValueError: a key has another length, or a claim is no whole number.
        """
        if any(len(key) != KEY_BYTES for key in self.keys):
            raise ValueError("its keys have not 32 bytes each")
        if not all(isinstance(v, int) and not isinstance(v, bool) and abs(v) < 1 << 10 for v in self.claims.values()):
            raise ValueError("its claims are no small whole numbers")
        return self


def transcript(about: str, threshold: int, adverts: Mapping[str, Advert]) -> bytes:
    """Digest of all that the parties of a session must see alike.

    Every key is derived with it: parties that were shown different adverts share no key, so that none of their shares
    can be opened and no mask is made.
    """
    shown = {name: advert.content(about).hex() for name, advert in adverts.items()}
    return hashlib.sha256(_text([about, threshold, shown])).digest()


def commitment(seed: bytes) -> bytes:
    """Of a seed of 32 random bytes."""
    return hashlib.sha256(b"morphfed secure sum: seed\n" + seed).digest()


def derive(secret: bytes, purpose: str, session: bytes) -> bytes:
    """A key of 32 bytes for one purpose in one session."""
    hashes, hkdf = crypto("hashes"), crypto("kdf.hkdf")
    info = f"morphfed secure sum 1: {purpose}\n".encode() + session
    key: bytes = hkdf.HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)
    return key


def new_key() -> Any:
    """A private key on X25519."""
    return crypto("asymmetric.x25519").X25519PrivateKey.generate()


def private_key(raw: bytes) -> Any:
    """From 32 bytes."""
    return crypto("asymmetric.x25519").X25519PrivateKey.from_private_bytes(raw)


def agree(own: Any, public: bytes, party: str) -> bytes:
    """The secret that two parties have in common.

    Raises:
        SecureSumError: the public key is none (of small order); names the party.
    """
    try:
        shared: bytes = own.exchange(crypto("asymmetric.x25519").X25519PublicKey.from_public_bytes(public))
    except ValueError as cause:
        raise SecureSumError(f"The public key of '{party}' is none.", fix="look at that site.") from cause
    return shared


def seal(key: bytes, content: bytes, about: bytes) -> bytes:
    """Encrypt and authenticate; nonce, text and tag."""
    nonce = os.urandom(NONCE_BYTES)
    sealed: bytes = crypto("ciphers.aead").ChaCha20Poly1305(key).encrypt(nonce, content, about)
    return nonce + sealed


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes | None:
    """Inverse of :func:`seal`; None: it was altered, or is for another."""
    from cryptography.exceptions import InvalidTag

    try:
        content: bytes = (
            crypto("ciphers.aead").ChaCha20Poly1305(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)
        )
    except (InvalidTag, ValueError):
        return None
    return content


def _text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
