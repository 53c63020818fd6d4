"""Consent: a site trains only studies whose hash its operator approved, from its own copy of the study file.

``approved/HASH.toml`` is that copy, ``approved/HASH.json`` says who approved it, when, and what they were shown.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from morphfed import __version__
from morphfed.core.errors import ConsentError
from morphfed.core.files import read_json, write_bytes, write_json
from morphfed.deploy.agreed import Agreed, load_agreed
from morphfed.deploy.review import Review

APPROVED = "approved"


@dataclass(frozen=True)
class Approval:
    """One approved study.

    Attributes:
        hash: of the study.
        name: the study's.
        by: the user who approved it on this machine.
        time: when, ISO 8601, UTC.
        version: of morphfed, which wrote the review that was shown.
        download: bytes of the largest download's tensors.
    """

    hash: str
    name: str
    by: str
    time: str
    version: str
    download: int


def approve(site_folder: Path, study_file: Path, shown: Review) -> Approval:
    """Approve a study for this site.

    Args:
        site_folder: the site's.
        study_file: as it was reviewed.
        shown: the review, whose text is kept with the approval.

    Raises:
        ConfigError: the file is no study that can be trained over a network.
        StorageError: the site's folder cannot be written.
    """
    agreed = load_agreed(study_file)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    made = Approval(agreed.hash, agreed.study.name, _user(), now, __version__, shown.download)
    folder = site_folder / APPROVED
    write_bytes(folder / f"{made.hash}.toml", study_file.read_bytes())
    # Written last: a study is approved when this file is there.
    write_json(
        folder / f"{made.hash}.json",
        {**vars(made), "weights_from": str(study_file.parent.resolve()), "shown": shown.text},
    )
    return made


def withdraw(site_folder: Path, study_hash: str) -> None:
    """Take an approval back; the site refuses that study from its next question on.

    Raises:
        ConsentError: it was not approved.
    """
    path = site_folder / APPROVED / f"{study_hash}.json"
    if not path.is_file():
        raise ConsentError(
            f"The study {study_hash[:12]} is not approved here.",
            fix="`morphfed site approve --list` shows those that are.",
        )
    path.rename(path.with_suffix(".withdrawn"))


def approvals(site_folder: Path) -> list[Approval]:
    """All approved studies, the oldest first."""
    keys = Approval.__dataclass_fields__
    found = [read_json(path) for path in (site_folder / APPROVED).glob("*.json")]
    return sorted((Approval(**{key: entry[key] for key in keys}) for entry in found), key=lambda a: a.time)


def approved(site: str, site_folder: Path, study_hash: str) -> Agreed:
    """The site's own copy of an approved study.

    Raises:
        ConsentError: the hash was not approved here, or the copy was changed since.
    """
    folder = site_folder / APPROVED
    # A hash comes from the network: it must not become a path before it is known to be one.
    known = {path.stem for path in folder.glob("*.json")}
    if study_hash not in known:
        raise ConsentError(
            f"Site '{site}': the study {study_hash[:12]} is not approved.",
            fix="read it with `morphfed site review STUDY`, then `morphfed site approve STUDY`.",
        )
    entry = read_json(folder / f"{study_hash}.json")
    agreed = load_agreed(folder / f"{study_hash}.toml")
    if agreed.hash != study_hash:
        raise ConsentError(
            f"Site '{site}': the approved copy of the study {study_hash[:12]} was changed, or morphfed "
            f"{__version__} reads it otherwise than {entry['version']} did.",
            fix="review and approve the study again.",
        )
    return Agreed(agreed.study, agreed.arms, Path(entry["weights_from"]))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this uid, as in a container
        return "unknown"
