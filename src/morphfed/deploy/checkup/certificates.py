"""Certificates and secrets on this machine's disk."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from morphfed.core.check import Check
from morphfed.core.errors import MissingExtraError, StorageError
from morphfed.deploy import keys
from morphfed.deploy.checkup.line import SOON
from morphfed.deploy.revocation import revoked_sites

if TYPE_CHECKING:
    from cryptography import x509


def at_site(folder: Path, *, now: datetime | None = None) -> Check:
    """Whether a site's certificate is of this federation, belongs to its key, and when it ends.

    Args:
        folder: with ca.crt, site.crt and site.key.
        now: this machine's clock; None: as it is.
    """
    renew = "ask the coordinator for a new bundle: morphfed federation renew FOLDER SITE."
    try:
        authority = keys.read_certificate((folder / "ca.crt").read_bytes())
        pair = keys.read_pair((folder / "site.key").read_bytes(), (folder / "site.crt").read_bytes())
    except MissingExtraError as cause:
        return Check("own certificate", "WARN", cause.message, cause.fix)
    except (OSError, ValueError, TypeError) as cause:
        return Check("own certificate", "FAIL", f"it cannot be used: {cause}", renew)
    if not keys.is_issued_by(pair.certificate, authority):
        return Check("own certificate", "FAIL", "it is not signed by this federation's authority", renew)
    if pair.key.public_key() != pair.certificate.public_key():
        return Check("own certificate", "FAIL", "the key is not the certificate's", renew)
    return dates("own certificate", {"this site's": pair.certificate}, renew, now=now)


def dates(name: str, found: dict[str, x509.Certificate], renew: str, *, now: datetime | None = None) -> Check:
    """Whether certificates count today, and the first of them to end."""
    today = now or datetime.now(UTC)
    for owner, certificate in found.items():
        if certificate.not_valid_before_utc > today:
            begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
            fix = f"this machine's clock says {today:%Y-%m-%d %H:%M} UTC: set it."
            return Check(name, "FAIL", f"{owner} begins on {begins} UTC only", fix)
    ends = {owner: certificate.not_valid_after_utc for owner, certificate in found.items()}
    gone = [f"{owner} on {end:%Y-%m-%d}" for owner, end in ends.items() if end <= today]
    if gone:
        return Check(name, "FAIL", f"ended: {', '.join(gone)}", renew)
    soon = [f"{o} on {end:%Y-%m-%d}" for o, end in ends.items() if (end - today).total_seconds() < SOON * 86400]
    if soon:
        return Check(name, "WARN", f"ends soon: {', '.join(soon)}", renew)
    return Check(name, "PASS", f"good until {min(ends.values()):%Y-%m-%d}")


def at_coordinator(folder: Path, *, now: datetime | None = None) -> Iterator[Check]:
    """Certificates, the list of revoked ones, and secrets of a federation's folder."""
    here = folder / "coordinator"
    renew = f"morphfed federation renew {folder} --server"
    try:
        authority = keys.read_certificate((here / "ca.crt").read_bytes())
        server = keys.read_pair((here / "server.key").read_bytes(), (here / "server.crt").read_bytes())
        sites = {path.stem: keys.read_certificate(path.read_bytes()) for path in sorted(here.glob("sites/*.crt"))}
    except MissingExtraError as cause:
        yield Check("certificates", "FAIL", cause.message, cause.fix)
        return
    except (OSError, ValueError, TypeError) as cause:
        yield Check("certificates", "FAIL", f"they cannot be used: {cause}", "restore the folder from a copy.")
        return
    wrong = ""
    if not keys.is_issued_by(server.certificate, authority):
        wrong = "the server's is not signed by this federation's authority"
    elif server.key.public_key() != server.certificate.public_key():
        wrong = "server.key is not the key of server.crt"
    if wrong:
        yield Check("server's certificate", "FAIL", wrong, renew)
        return
    own = {"the authority's": authority, "the server's": server.certificate}
    yield dates("server's certificate", own, renew, now=now)
    try:
        revoked = revoked_sites(folder)
    except StorageError as cause:
        yield Check("revoked", "FAIL", cause.message, cause.fix)
        revoked = {}
    else:
        listed = ", ".join(f"{site} since {since:%Y-%m-%d}" for site, since in revoked.items())
        yield Check("revoked", "PASS", listed or "no site")
    counting = {site: found for site, found in sites.items() if site not in revoked}
    if counting:
        yield dates("sites' certificates", counting, f"morphfed federation renew {folder} SITE", now=now)
    yield secrets(folder)


def secrets(folder: Path) -> Check:
    """Keys that are readable to others, or that should no longer be on this machine."""
    private = [p for p in sorted(folder.rglob("*")) if p.suffix in (".key", ".secret", ".zip") and p.is_file()]
    shared = [p for p in private if stat.S_IMODE(p.stat().st_mode) & 0o077]
    if shared:
        names = ", ".join(str(p.relative_to(folder)) for p in shared)
        return Check("secrets", "FAIL", f"other users can read {names}", f"chmod 600 {' '.join(map(str, shared))}")
    bundles = sorted(p.stem for p in folder.glob("bundles/*.zip"))
    left = ["the authority's key (ca/ca.key)"] if (folder / "ca" / "ca.key").exists() else []
    left += [f"bundles of {', '.join(bundles)}"] if bundles else []
    if left:
        return Check(
            "secrets",
            "WARN",
            f"still on this machine: {'; '.join(left)}",
            "move ca.key to a medium that is not on the network; delete bundles once they are handed over.",
        )
    return Check("secrets", "PASS", f"{len(private)} files, readable by their owner only")
