"""`morphfed federation init`: everything that the machines of a federation need, written once into one folder."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from pydantic import Field

from morphfed import __version__
from morphfed.core.config import Config, read_toml, validate
from morphfed.core.errors import ConfigError, StorageError
from morphfed.core.files import storage_error, write_bytes, write_text
from morphfed.deploy import keys, templates

if TYPE_CHECKING:
    from morphfed.deploy.agreed import Agreed
    from morphfed.deploy.keys import Pair

FEDERATION = "federation.toml"
STUDY = "study.toml"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


class FederationSettings(Config):
    """``federation.toml``: how the coordinator runs; the study says what is trained."""

    name: str = Field(description="of the federation")
    host: str = Field(description="name or address under which sites reach the reverse proxy")
    port: int = Field(ge=1, le=65535, description="its port")
    inner_port: int = Field(8000, ge=1, le=65535, description="port of Flower's server on the loopback")
    deadline: float = Field(3600, gt=0, description="seconds that a round waits for a connected site's upload")
    absent: float = Field(
        120,
        ge=0,
        description="seconds that a round waits for a site without connection, once the others reach the quorum",
    )
    gather: float = Field(3600, gt=0, description="seconds that the start waits until the sites of a quorum are there")


class SiteSettings(Config):
    """``site.toml`` of a join bundle."""

    federation: str = Field(description="its name")
    site: str = Field(description="this site's name")
    host: str = Field(description="of the coordinator's reverse proxy")
    port: int = Field(ge=1, le=65535, description="of the same")
    study: str = Field(description="hash of the study that the federation was made for")
    version: str = Field("", description="of the morphfed that wrote this; empty: not told")


@dataclass(frozen=True)
class Made:
    """What ``init`` wrote."""

    folder: Path
    agreed: Agreed
    bundles: list[Path]
    until: datetime


def init(
    folder: Path, study_file: Path, *, host: str, port: int = 443, inner_port: int = 8000, days: int = keys.LEAF_DAYS
) -> Made:
    """Write authority, certificates, join bundles, services, proxy configuration and instructions.

    Args:
        folder: new, or empty.
        study_file: what is going to be trained.
        host: name or address of the coordinator as sites see it.
        port: of the reverse proxy.
        inner_port: of Flower's server, on the loopback.
        days: that certificates of server and sites are valid.

    Raises:
        ConfigError: the study cannot be trained over a network, or the host is none.
        StorageError: the folder is not empty, or cannot be written.
        MissingExtraError: the extra ``flower`` is not installed.
    """
    from morphfed.deploy.agreed import load_agreed  # brings torch; `federation status` does without

    agreed = load_agreed(study_file)
    if not _HOST.fullmatch(host):
        raise ConfigError(f"'{host}' is no host name or IPv4 address.", fix="give it without scheme, port or path.")
    if folder.exists() and any(folder.iterdir()):
        raise StorageError(f"{folder} is not empty.", fix="name a new folder; keys are never overwritten.")
    folder = folder.resolve()
    settings = FederationSettings(name=agreed.study.name, host=host, port=port, inner_port=inner_port)
    authority = keys.make_authority(settings.name)
    _write_coordinator(folder, authority, settings, days)
    bundles = [
        write_site(folder, site, authority, settings, agreed.hash, study_file.read_bytes(), days)
        for site in agreed.everyone
    ]
    write_bytes(folder / STUDY, study_file.read_bytes())
    until = datetime.now(UTC) + timedelta(days=days)
    _write_texts(folder, settings, agreed, until)
    # Written last: a folder with this file is complete.
    write_text(folder / FEDERATION, _toml(settings))
    return Made(folder, agreed, bundles, until)


def read_federation(folder: Path) -> tuple[FederationSettings, Agreed]:
    """What ``init`` wrote.

    Raises:
        ConfigError: there is none, or it was edited into something that cannot be used.
    """
    from morphfed.deploy.agreed import load_agreed

    return read_settings(folder), load_agreed(folder / STUDY)


def read_settings(folder: Path) -> FederationSettings:
    """``federation.toml`` alone.

    Raises:
        ConfigError: the folder is no federation's, or the file was edited into something that cannot be used.
    """
    path = folder / FEDERATION
    if not path.is_file():
        raise ConfigError(
            f"{folder} is no federation's folder: it has no {FEDERATION}.",
            fix="name the folder that `morphfed federation init` wrote.",
        )
    return validate(FederationSettings, read_toml(path), where=str(path))


def write_site(
    folder: Path, site: str, authority: Pair, settings: FederationSettings, study_hash: str, study: bytes, days: int
) -> Path:
    """Make a key and a certificate for a site; register their public parts and write its bundle.

    Returns:
        The bundle, which holds the only copy of the key.

    Raises:
        StorageError: the bundle is there already, or the folder cannot be written.
    """
    pair = keys.make_site(authority, site, days=days)
    path = folder / "bundles" / f"{site}.zip"
    write_private(path, _bundle(site, pair, authority, settings, study_hash, study))
    write_bytes(folder / "coordinator" / "sites" / f"{site}.crt", pair.certificate_pem())
    write_bytes(folder / "coordinator" / "sites" / f"{site}.pub", pair.public_pem())
    return path


def _write_coordinator(folder: Path, authority: Pair, settings: FederationSettings, days: int) -> None:
    here = folder / "coordinator"
    server = keys.make_server(authority, settings.host, days=days)
    write_bytes(here / "ca.crt", authority.certificate_pem())
    write_bytes(here / "server.crt", server.certificate_pem())
    write_private(here / "server.key", server.key_pem())
    write_private(folder / "ca" / "ca.key", authority.key_pem())
    write_bytes(here / "revoked.crl", keys.revocations(authority, {}))
    # Flower's runtime interface hands a run's token only to holders of this secret.
    write_private(here / "superexec.secret", secrets.token_hex(32).encode())


def _bundle(
    site: str, pair: Pair, authority: Pair, settings: FederationSettings, study_hash: str, study: bytes
) -> bytes:
    """A site's zip: its own key and certificate, the authority's certificate, where to go, and the study."""
    own = SiteSettings(
        federation=settings.name,
        site=site,
        host=settings.host,
        port=settings.port,
        study=study_hash,
        version=__version__,
    )
    service = Template(templates.SITE_SERVICE).substitute(name=settings.name, site=site, environment=_environment())
    content = {
        "site.toml": _toml(own).encode(),
        "ca.crt": authority.certificate_pem(),
        "site.crt": pair.certificate_pem(),
        "site.key": pair.key_pem(),
        STUDY: study,
        "morphfed-site.service": service.encode(),
    }
    memory, now = BytesIO(), datetime.now(UTC)
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, (now.year, now.month, now.day, now.hour, now.minute, now.second))
            entry.external_attr = (0o600 if name.endswith(".key") else 0o644) << 16
            archive.writestr(entry, data)
    return memory.getvalue()


def _write_texts(folder: Path, settings: FederationSettings, agreed: Agreed, until: datetime) -> None:
    known = {
        "name": settings.name,
        "host": settings.host,
        "port": settings.port,
        "inner": settings.inner_port,
        "folder": folder,
        "sites": ", ".join(agreed.sites) + (f"; held out: {', '.join(agreed.held_out)}" if agreed.held_out else ""),
        "study": agreed.study.name,
        "hash": agreed.hash,
        "until": f"{until:%Y-%m-%d}",
        "version": __version__,
        "data": "slides.csv --option bags=FEATURES" if agreed.study.task == "mil" else "manifest.csv",
        "command": shutil.which("morphfed") or Path(sys.executable).with_name("morphfed"),
        "environment": _environment(),
    }
    locations = "".join(Template(templates.LOCATION).substitute(known, path=path) for path in templates.PATHS)
    write_text(folder / "nginx" / "morphfed.conf", Template(templates.NGINX).substitute(known, locations=locations))
    service = Template(templates.COORDINATOR_SERVICE).substitute(known)
    write_text(folder / "systemd" / "morphfed-coordinator.service", service)
    write_text(folder / "README.md", Template(templates.INSTRUCTIONS).substitute(known))


def _environment() -> str:
    return "\n".join(f"Environment={key}={value}" for key, value in templates.ENVIRONMENT.items())


def _toml(settings: Config) -> str:
    """A table of texts and numbers, with what each means."""
    lines = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        shown = f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
        lines.append(f"{name} = {shown}  # {field.description}")
    return "\n".join(lines) + "\n"


def write_private(path: Path, content: bytes) -> None:
    """A file that only its owner can read, from the moment that it exists."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as cause:
        raise storage_error(path, cause) from cause
