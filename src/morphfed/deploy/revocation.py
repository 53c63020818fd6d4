"""Certificates that no longer count, and new ones for those that end.

The authority's key is needed for both. nginx reads the list when it is reloaded, and only then.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from morphfed.core.errors import ConfigError, StorageError, did_you_mean
from morphfed.core.files import storage_error, write_bytes
from morphfed.deploy import keys
from morphfed.deploy.provision import STUDY, read_federation, read_settings, write_private, write_site

if TYPE_CHECKING:
    from cryptography import x509

RELOAD = "nginx -t && systemctl reload nginx"
"""What makes nginx read the list."""


@dataclass(frozen=True)
class Revocation:
    """What :func:`revoke` did.

    Attributes:
        site: whose certificate.
        serial: number of that certificate.
        path: of the list.
        already: it was on the list before; nothing was written.
    """

    site: str
    serial: int
    path: Path
    already: bool


class Revoked:
    """Names of revoked sites, read again when the list changes.

    Args:
        folder: the federation's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: tuple[int, frozenset[str]] = (0, frozenset())

    def __call__(self) -> Collection[str]:
        """The names; none while the list cannot be read, which only makes a message less precise."""
        try:
            changed = _list_of(self._folder).stat().st_mtime_ns
            if changed != self._known[0]:
                self._known = changed, frozenset(revoked_sites(self._folder))
        except (OSError, StorageError):
            return frozenset()
        return self._known[1]


def revoked_sites(folder: Path) -> dict[str, datetime]:
    """Sites whose present certificate is on the list → since when.

    Raises:
        StorageError: the list is damaged, or not this federation's.
    """
    listed = _read_list(folder).revoked
    found = {}
    for path in sorted((folder / "coordinator" / "sites").glob("*.crt")):
        serial = keys.read_certificate(path.read_bytes()).serial_number
        if serial in listed:
            found[path.stem] = listed[serial]
    return found


def revoke(folder: Path, site: str, *, key: Path | None = None) -> Revocation:
    """Put a site's certificate on the list of those that no longer count.

    Args:
        folder: the federation's, at the coordinator.
        site: its name.
        key: the authority's, where it is kept; None: ``ca/ca.key`` of the folder.

    Raises:
        ConfigError: no such site, or a key of another authority.
        StorageError: the key or the site's certificate is not here, or the list cannot be read or written.
        MissingExtraError: the extra ``flower`` is not installed.
    """
    read_settings(folder)
    known_site(folder, site)
    authority = read_authority(folder, key)
    serial = _certificate(folder, site).serial_number
    before = _read_list(folder)
    path = _list_of(folder)
    if serial in before.revoked:
        return Revocation(site, serial, path, already=True)
    _add(folder, authority, before, serial)
    return Revocation(site, serial, path, already=False)


def renew_site(folder: Path, site: str, *, key: Path | None = None, days: int = keys.LEAF_DAYS) -> Path:
    """Make a new key, certificate and bundle for a site; its old certificate is revoked.

    Args:
        folder: the federation's, at the coordinator.
        site: its name; one that was revoked is let in again.
        key: as in :func:`revoke`.
        days: that the new certificate is valid.

    Returns:
        The new bundle. The coordinator registers its key when it is started the next time.

    Raises:
        ConfigError, StorageError, MissingExtraError: as :func:`revoke`; or a bundle is still in the folder.
    """
    settings, agreed = read_federation(folder)
    known_site(folder, site)
    authority = read_authority(folder, key)
    bundle = folder / "bundles" / f"{site}.zip"
    if bundle.exists():
        raise StorageError(
            f"{bundle} is still here.",
            fix="remove it once it is handed over: keys are never overwritten, and none is kept here.",
        )
    old, before = _certificate(folder, site).serial_number, _read_list(folder)
    if old not in before.revoked:  # first: should the rest fail, the old one must not be forgotten
        _add(folder, authority, before, old)
    return write_site(folder, site, authority, settings, agreed.hash, (folder / STUDY).read_bytes(), days)


def renew_server(folder: Path, *, key: Path | None = None, days: int = keys.LEAF_DAYS) -> datetime:
    """Make a new key and certificate for nginx and Flower's server; the old ones are overwritten.

    Returns:
        When the new certificate ends.

    Raises:
        ConfigError, StorageError, MissingExtraError: as :func:`revoke`.
    """
    settings = read_settings(folder)
    server = keys.make_server(read_authority(folder, key), settings.host, days=days)
    here = folder / "coordinator"
    fresh = here / "server.key.new"
    fresh.unlink(missing_ok=True)
    write_private(fresh, server.key_pem())
    write_bytes(here / "server.crt", server.certificate_pem())
    try:
        fresh.replace(here / "server.key")
    except OSError as cause:
        raise storage_error(here / "server.key", cause) from cause
    return datetime.now(UTC) + timedelta(days=days)


def known_site(folder: Path, site: str) -> None:
    """Check a site's name.

    Raises:
        ConfigError: the federation has no such site; says which is the nearest.
    """
    known = sorted(path.stem for path in (folder / "coordinator" / "sites").glob("*.pub"))
    if site not in known:
        raise ConfigError(
            f"The federation has no site '{site}'.{did_you_mean(site, known)}", fix=f"name one of {', '.join(known)}."
        )


def read_authority(folder: Path, key: Path | None) -> keys.Pair:
    """The authority, with its key.

    Raises:
        ConfigError: the key is another authority's, or none.
        StorageError: the key is not here.
    """
    path = key if key is not None else folder / "ca" / "ca.key"
    try:
        pem = path.read_bytes()
    except FileNotFoundError as cause:
        raise StorageError(
            f"The authority's key is not here: {path} does not exist.",
            fix="bring the medium on which ca/ca.key is kept, and name the file with --key; take it away afterwards.",
        ) from cause
    except OSError as cause:
        raise StorageError(f"{path} cannot be read: {os.strerror(cause.errno or 0)}.", fix="check it.") from cause
    certificate = (folder / "coordinator" / "ca.crt").read_bytes()
    try:
        authority = keys.read_pair(pem, certificate)
    except (ValueError, TypeError) as cause:
        raise ConfigError(f"{path} is no key of an authority: {cause}.", fix="name the file ca.key.") from cause
    if authority.key.public_key() != authority.certificate.public_key():
        raise ConfigError(
            f"{path} is the key of another authority than {folder / 'coordinator' / 'ca.crt'}.",
            fix="name the ca.key of this federation.",
        )
    return authority


def _add(folder: Path, authority: keys.Pair, before: keys.RevocationList, serial: int) -> None:
    revoked = before.revoked | {serial: datetime.now(UTC)}
    write_bytes(_list_of(folder), keys.revocations(authority, revoked, number=before.number + 1))


def _list_of(folder: Path) -> Path:
    return folder / "coordinator" / "revoked.crl"


def _read_list(folder: Path) -> keys.RevocationList:
    path = _list_of(folder)
    try:
        authority = keys.read_certificate((folder / "coordinator" / "ca.crt").read_bytes())
        return keys.read_revocations(path.read_bytes(), authority)
    except (OSError, ValueError) as cause:
        raise StorageError(f"{path} cannot be read: {cause}.", fix="restore it from a copy; nginx needs it.") from cause


def _certificate(folder: Path, site: str) -> x509.Certificate:
    """A site's present certificate: kept here, or in a bundle of an older federation that is still here."""
    path, bundle = folder / "coordinator" / "sites" / f"{site}.crt", folder / "bundles" / f"{site}.zip"
    try:
        if path.is_file():
            return keys.read_certificate(path.read_bytes())
        with zipfile.ZipFile(bundle) as archive:
            return keys.read_certificate(archive.read("site.crt"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as cause:
        raise StorageError(
            f"The certificate of '{site}' is not here: {path} cannot be read.",
            fix=f"ask the site for bundle/site.crt of its folder and put it there as {path}; it is no secret.",
        ) from cause
