"""A site's long-lived name in secure sums: the certificate and key of its join bundle.

The coordinator relays the sites' keys. Each is signed with the key of the site's certificate, and every site checks the
others' signatures and certificates against the federation's authority itself, so that a coordinator cannot put keys of
its own in their place. Who holds the authority's key can: it makes certificates.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from morphfed.core.errors import SecureSumError, StorageError
from morphfed.deploy.keys import read_pair


class SiteIdentity:
    """Signs and checks with ECDSA on P-384.

    Args:
        folder: an unpacked join bundle.

    Raises:
        StorageError: its key or a certificate cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from cryptography import x509

        try:
            self._pair = read_pair((folder / "site.key").read_bytes(), (folder / "site.crt").read_bytes())
            self._authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except (OSError, ValueError) as cause:
            raise StorageError(
                f"The keys of this site in {folder} cannot be read: {cause}.", fix="join with its bundle again."
            ) from cause

    def sign(self, content: bytes) -> dict[str, bytes]:
        """Signature and certificate, in DER."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding

        signature = self._pair.key.sign(content, ec.ECDSA(hashes.SHA384()))
        return {"signature": signature, "certificate": self._pair.certificate.public_bytes(Encoding.DER)}

    def check(self, name: str, content: bytes, proof: Mapping[str, bytes]) -> None:
        """Accept a proof.

        Raises:
            SecureSumError: there is none, or its certificate is not one of the authority's in this name and in time.
        """
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        try:
            certificate = x509.load_der_x509_certificate(proof["certificate"])
            certificate.verify_directly_issued_by(self._authority)
            named = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            if [attribute.value for attribute in named] != [name[:64]]:
                raise ValueError("its certificate is in another name")
            if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
                raise ValueError("its certificate is out of date")
            key = certificate.public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise ValueError("its certificate has a key of another kind")
            key.verify(proof["signature"], content, ec.ECDSA(hashes.SHA384()))
        except (KeyError, TypeError, ValueError, InvalidSignature) as cause:
            said = {KeyError: "they are not signed", InvalidSignature: "the signature is not its own"}
            why = said.get(type(cause), str(cause))
            raise SecureSumError(
                f"The secure sum is refused: the keys in the name of '{name}' are not that site's: {why}.",
                fix="ask that site and the coordinator; somebody may have put other keys in their place.",
            ) from cause
