"""Signed keys of secure sums: only the site's own certificate counts, from the federation's authority, in time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from morphfed.core.errors import SecureSumError, StorageError
from morphfed.deploy import keys
from morphfed.deploy.identity import SiteIdentity
from morphfed.deploy.keys import Pair
from morphfed.privacy.secure.party import Party, Terms


def bundle(folder: Path, authority: Pair, pair: Pair) -> SiteIdentity:
    folder.mkdir()
    (folder / "ca.crt").write_bytes(authority.certificate_pem())
    (folder / "site.crt").write_bytes(pair.certificate_pem())
    (folder / "site.key").write_bytes(pair.key_pem())
    return SiteIdentity(folder)


def test_a_proof_counts_for_its_site_its_content_and_its_authority_only(tmp_path: Path) -> None:
    authority, other = keys.make_authority("fed"), keys.make_authority("another")
    kampala = bundle(tmp_path / "kampala", authority, keys.make_site(authority, "kampala"))
    lagos = bundle(tmp_path / "lagos", authority, keys.make_site(authority, "lagos"))
    stranger = bundle(tmp_path / "stranger", other, keys.make_site(other, "kampala"))
    late = bundle(tmp_path / "late", authority, _late(authority))
    proof = kampala.sign(b"keys")
    assert all(len(value) <= limit for value, limit in zip(proof.values(), (256, 4096), strict=True))
    lagos.check("kampala", b"keys", proof)
    wrong: list[tuple[str, bytes, Mapping[str, bytes], str]] = [
        ("lagos", b"keys", proof, "in another name"),
        ("kampala", b"other keys", proof, "not its own"),
        ("kampala", b"keys", {}, "not signed"),
        ("kampala", b"keys", {**proof, "certificate": b"junk"}, "not that site's"),
        ("kampala", b"keys", {**proof, "certificate": lagos.sign(b"keys")["certificate"]}, "in another name"),
        ("kampala", b"keys", {**proof, "signature": lagos.sign(b"keys")["signature"]}, "not its own"),
        ("kampala", b"keys", stranger.sign(b"keys"), "not that site's"),
        ("kampala", b"keys", late.sign(b"keys"), "out of date"),
    ]
    for name, content, given, why in wrong:
        with pytest.raises(SecureSumError, match=why):
            lagos.check(name, content, given)


def _late(authority: Pair) -> Pair:
    """A certificate that is over."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP384R1()), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kampala")]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now - timedelta(days=1))
    )
    return Pair(key, made.sign(authority.key, hashes.SHA384()))


def test_parties_with_certificates_understand_each_other(tmp_path: Path) -> None:
    authority, names = keys.make_authority("fed"), ("kampala", "lagos", "quito")
    terms = Terms("round 1", names, 2)
    parties = {
        name: Party(name, terms, {}, bundle(tmp_path / name, authority, keys.make_site(authority, name)))
        for name in names
    }
    adverts = {name: party.advert for name, party in parties.items()}
    assert set(parties["lagos"].share(adverts)) == {"kampala", "quito"}
    unsigned = Party("quito", terms, {}).advert
    with pytest.raises(SecureSumError, match="'quito' are not that site's: they are not signed"):
        parties["kampala"].share({**adverts, "quito": unsigned})


def test_a_folder_without_keys_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="keys of this site"):
        SiteIdentity(tmp_path)
