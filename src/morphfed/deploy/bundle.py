"""A join bundle at its site: unpacked once into the site's folder, with the key for its owner's eyes only."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from morphfed.core.config import read_toml, validate
from morphfed.core.errors import ConfigError, StorageError
from morphfed.core.files import storage_error, write_bytes
from morphfed.deploy.provision import SiteSettings

NAMES = ("ca.crt", "site.crt", "site.key", "site.toml", "study.toml")
_LARGEST = 1 << 20
SECRETS = "bundle"


def open_bundle(bundle: Path, folder: Path) -> SiteSettings:
    """Unpack a bundle into a site's folder; a bundle of the same site replaces an older one (new certificates).

    Args:
        bundle: the .zip that the coordinator gave.
        folder: the site's; made if it is missing.

    Raises:
        ConfigError: not a bundle, or another site's than the folder's.
        StorageError: it cannot be read, or the folder cannot be written.
    """
    content = read_bundle(bundle)
    here = folder / SECRETS
    before = validate(SiteSettings, read_toml(here / "site.toml"), where=str(here)) if here.is_dir() else None
    try:
        here.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as cause:
        raise storage_error(folder, cause) from cause
    write_bytes(here / "new.toml", content["site.toml"])
    settings = validate(SiteSettings, read_toml(here / "new.toml"), where=f"{bundle}: site.toml")
    (here / "new.toml").unlink()
    if before is not None and (before.site, before.federation) != (settings.site, settings.federation):
        raise ConfigError(
            f"{folder} belongs to the site '{before.site}' of '{before.federation}', the bundle to '{settings.site}' "
            f"of '{settings.federation}'.",
            fix="name another folder with --folder: approvals, ledger and state of two sites must not mix.",
        )
    for name in NAMES:
        write_bytes(here / name, content[name])
        if name.endswith(".key"):
            (here / name).chmod(0o600)
    return settings


def read_bundle(bundle: Path) -> dict[str, bytes]:
    """The files of a bundle, by name.

    Raises:
        ConfigError: not a bundle.
        StorageError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(bundle) as archive:
            found = {info.filename: info for info in archive.infolist()}
            missing = [name for name in NAMES if name not in found]
            if missing:
                raise ConfigError(
                    f"{bundle} is no join bundle: {', '.join(missing)} missing.", fix="ask for a new one."
                )
            if any(found[name].file_size > _LARGEST for name in NAMES):
                raise ConfigError(f"{bundle} is no join bundle: a file is too large.", fix="ask for a new one.")
            return {name: archive.read(name) for name in NAMES}
    except FileNotFoundError as cause:
        raise ConfigError(f"{bundle} does not exist.", fix="name the .zip that the coordinator gave you.") from cause
    except zipfile.BadZipFile as cause:
        raise ConfigError(f"{bundle} is no join bundle: {cause}.", fix="ask for a new one.") from cause
    except OSError as cause:
        raise StorageError(f"{bundle} cannot be read: {os.strerror(cause.errno or 0)}.", fix="check it.") from cause
