"""Certificates and keys of a federation: one authority, one server, one pair a site. EC keys on P-384, TLS only.

A site has one private key. Its certificate lets it through the reverse proxy; the same key signs each of its calls, and
its public half is what the coordinator registers.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from morphfed.core.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 3650
LEAF_DAYS = 397
"""What certificate authorities of the web give a server at most; sites are held to the same."""


@dataclass(frozen=True)
class Pair:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def key_pem(self) -> bytes:
        """PKCS #8, not encrypted: keep the file to its owner."""
        from cryptography.hazmat.primitives import serialization as s

        return self.key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())

    def certificate_pem(self) -> bytes:
        """X.509."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.public_bytes(Encoding.PEM)

    def public_pem(self) -> bytes:
        """SubjectPublicKeyInfo, the form in which Flower registers a node."""
        from cryptography.hazmat.primitives import serialization as s

        return self.key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)


def make_authority(name: str, *, days: int = AUTHORITY_DAYS) -> Pair:
    """A new authority that signs certificates of this federation, and no other authority.

    Raises:
        MissingExtraError: the extra ``flower`` is not installed.
    """
    return _signed(f"{name} certificate authority", None, days=days, server=False, hosts=())


def make_server(authority: Pair, host: str, *, days: int = LEAF_DAYS) -> Pair:
    """A server certificate for a host name or address, and for the server's own loopback."""
    hosts = tuple(dict.fromkeys((host, "localhost", "127.0.0.1")))
    return _signed(host, authority, days=days, server=True, hosts=hosts)


def make_site(authority: Pair, site: str, *, days: int = LEAF_DAYS) -> Pair:
    """A client certificate in the name of a site."""
    return _signed(site, authority, days=days, server=False, hosts=())


def revocations(authority: Pair, revoked: Mapping[int, datetime], *, number: int = 1) -> bytes:
    """The authority's list of certificates that no longer count, as PEM.

    Args:
        authority: of the federation.
        revoked: serial number → since when.
        number: of the list, counted up with each new one.
    """
    x509, _ = _library()
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    now = datetime.now(UTC)
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - timedelta(minutes=5))
        .next_update(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
    )
    for serial, since in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        made = made.add_revoked_certificate(entry)
    pem: bytes = made.sign(authority.key, hashes.SHA384()).public_bytes(Encoding.PEM)
    return pem


@dataclass(frozen=True)
class RevocationList:
    """A list as it was read.

    Attributes:
        revoked: serial number → since when.
        number: of the list; 0 for one without.
    """

    revoked: dict[int, datetime]
    number: int


def read_revocations(pem: bytes, authority: x509.Certificate) -> RevocationList:
    """Inverse of :func:`revocations`.

    Raises:
        ValueError: no list, or not signed by this authority.
    """
    x509, ec = _library()
    found = x509.load_pem_x509_crl(pem)
    key = authority.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not found.is_signature_valid(key):
        raise ValueError("it is not signed by this federation's authority")
    try:
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = 0
    return RevocationList({entry.serial_number: entry.revocation_date_utc for entry in found}, number)


def read_certificate(pem: bytes) -> x509.Certificate:
    """A certificate.

    Raises:
        ValueError: not PEM.
    """
    library, _ = _library()
    found: x509.Certificate = library.load_pem_x509_certificate(pem)
    return found


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether this authority signed a certificate."""
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):  # ValueError: the names alone differ already
        return False
    return True


def read_pair(key_pem: bytes, certificate_pem: bytes) -> Pair:
    """Inverse of :meth:`Pair.key_pem` and :meth:`Pair.certificate_pem`.

    Raises:
        ValueError: not PEM, or not on an elliptic curve.
    """
    x509, ec = _library()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(key_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not on an elliptic curve")
    return Pair(key, x509.load_pem_x509_certificate(certificate_pem))


def _signed(name: str, by: Pair | None, *, days: int, server: bool, hosts: tuple[str, ...]) -> Pair:
    """A key of its own and a certificate signed by an authority; None: by itself."""
    x509, ec = _library()
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    signer = by.key if by else key
    now = datetime.now(UTC)
    usage = {"digital_signature": True, "key_cert_sign": by is None, "crl_sign": by is None}
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks differ a little
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=0 if by is None else None), critical=True)
        .add_extension(
            x509.KeyUsage(**usage, **dict.fromkeys(unused, False), encipher_only=False, decipher_only=False),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if by is not None:
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        made = made.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if hosts:
        made = made.add_extension(x509.SubjectAlternativeName([_general(h) for h in hosts]), critical=False)
    return Pair(key, made.sign(signer, hashes.SHA384()))


def _general(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _library() -> tuple[Any, Any]:
    """The modules ``x509`` and ``ec``."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as cause:
        raise MissingExtraError(
            "Keys and certificates need the extra 'flower'.", fix="pip install 'morphfed[flower]'"
        ) from cause
    return x509, ec
