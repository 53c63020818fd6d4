"""Checkpoints that a kill at any moment cannot spoil.

A round's state is several safetensors files (coordinator, best model, each site's private state in that site's own
folder) and one JSON file that names them with their hashes. The JSON is written last: it is the commit. The last two
commits are kept; a damaged one is moved aside and the one before is used, from which the same rounds follow. Once the
unit is written they are removed: what they hold that lasts is in its models and ``unit.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphfed.core.errors import StorageError
from morphfed.core.files import read_json, sha256_file, write_json
from morphfed.core.types import Tensors
from morphfed.models import weights

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A committed round.

    Attributes:
        round: last finished round.
        groups: name → tensors.
        meta: history and counters, plain JSON.
    """

    round: int
    groups: dict[str, Tensors]
    meta: dict[str, Any]


class CheckpointStore:
    """Checkpoints of one unit below ``folder``.

    Args:
        folder: the unit's folder.
        study: identifies what is trained; a checkpoint of another study is refused.
    """

    def __init__(self, folder: Path, study: str) -> None:
        self.folder, self._study = folder, study
        self._hashes: dict[Path, str] = {}
        self._named: dict[tuple[str, int], Path] = {}  # where a group of a round is, if not in a file of its own
        self.warnings: list[str] = []

    def _commit(self, round_number: int) -> Path:
        return self.folder / "checkpoint" / f"round-{round_number:05d}.json"

    def _file(self, group: str, round_number: int) -> Path:
        # "site/kampala" and "site-best/kampala" are kept in that site's folder, the rest at the coordinator's.
        kind, _, name = group.partition("/")
        folder = self.folder / "sites" / name if name else self.folder / "checkpoint"
        stem = {"site": "private", "site-best": "private-best"}.get(kind, kind)
        return folder / f"{stem}-{round_number:05d}.safetensors"

    def save(
        self,
        round_number: int,
        groups: Mapping[str, Tensors],
        meta: Mapping[str, Any],
        *,
        same: Mapping[str, int],
        equal: Mapping[str, str] | None = None,
    ) -> None:
        """Commit a round.

        Args:
            round_number: the round that has just ended.
            groups: tensors to write; empty groups are not written.
            meta: plain JSON.
            same: groups that have not changed since an earlier round → that round; their file is named again.
            equal: groups that hold what one of ``groups`` holds → that one; its file is named, and nothing is written.

        Raises:
            StorageError: disk full or read-only; earlier commits stay valid.
        """
        files: dict[str, dict[str, str]] = {}
        for group, tensors in groups.items():
            if tensors:
                path = self._file(group, round_number)
                weights.save(path, tensors)
                self._hashes[path] = sha256_file(path)
                files[group] = self._entry(path)
        for group, other in (equal or {}).items():
            self._named[group, round_number] = self._file(other, round_number)
            files[group] = files[other]
        for group, earlier in same.items():
            files[group] = self._entry(self._named.get((group, earlier), self._file(group, earlier)))
        entry = {"format": 1, "study": self._study, "round": round_number, "files": files, "meta": dict(meta)}
        write_json(self._commit(round_number), entry)
        self._prune()

    def _entry(self, path: Path) -> dict[str, str]:
        # The hash from when the file was written or checked: hashed again, a file damaged since would pass for sound.
        return {"path": path.relative_to(self.folder).as_posix(), "sha256": self._hashes[path]}

    def load(self) -> Checkpoint | None:
        """The newest sound checkpoint, None if there is none yet.

        A damaged one is renamed to ``*.damaged`` and noted in ``warnings``.

        Raises:
            StorageError: the checkpoints belong to another study.
        """
        for left in self.folder.rglob(".*.part"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        for commit in sorted((self.folder / "checkpoint").glob("round-*.json"), reverse=True):
            try:
                return self._read(commit)
            except _OtherStudyError as cause:
                raise StorageError(
                    f"{self.folder} holds a run of another study or other settings.",
                    fix="choose another run folder with --run, or remove this one to start again.",
                ) from cause
            except (StorageError, KeyError, TypeError, AttributeError, ValueError) as cause:
                why = cause.message if isinstance(cause, StorageError) else f"{commit.name} is incomplete"
                self.warnings.append(f"checkpoint {commit.name} is damaged and was set aside ({why})")
                commit.replace(commit.with_suffix(".damaged"))
        return None

    def _read(self, commit: Path) -> Checkpoint:
        entry = read_json(commit)
        if entry["study"] != self._study:
            raise _OtherStudyError
        groups = {}
        for group, file in entry["files"].items():
            path = self.folder / file["path"]
            if not path.is_file() or sha256_file(path) != file["sha256"]:
                raise StorageError(f"{path.name} does not match its checksum.", fix="restore it.")
            groups[group] = weights.load(path)
            self._hashes[path] = file["sha256"]
            self._name(group, path)
        return Checkpoint(int(entry["round"]), groups, dict(entry["meta"]))

    def _name(self, group: str, path: Path) -> None:
        """Remember that a group was found in the file of another one, of whichever round."""
        written = int(path.stem.rpartition("-")[2])
        if path != self._file(group, written):
            self._named[group, written] = path

    def clear(self) -> None:
        """Remove every checkpoint: the unit is done and written. The models beside them stay."""
        folder = self.folder / "checkpoint"
        for commit in sorted(folder.glob("round-*.json")):  # first: a commit must not name a file that is gone
            commit.unlink(missing_ok=True)
        for path in self._held():
            path.unlink(missing_ok=True)
        self._hashes.clear()
        self._named.clear()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _held(self) -> list[Path]:
        """Tensors of all checkpoints."""
        return [
            *(self.folder / "checkpoint").glob("*.safetensors"),
            *self.folder.glob("sites/*/private-*.safetensors"),
        ]

    def _prune(self) -> None:
        commits = sorted((self.folder / "checkpoint").glob("round-*.json"), reverse=True)
        needed: set[Path] = set()
        for commit in commits[:KEEP]:
            try:
                needed |= {self.folder / file["path"] for file in read_json(commit)["files"].values()}
            except (StorageError, KeyError, TypeError):
                return  # an unreadable commit: keep every file, load() decides
        for commit in commits[KEEP:]:
            commit.unlink(missing_ok=True)
        for path in self._held():
            if path not in needed:
                path.unlink(missing_ok=True)
                self._hashes.pop(path, None)


class _OtherStudyError(Exception):
    pass
