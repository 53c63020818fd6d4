"""The egress ledger of a site: what left it, when, and why, in a file that shows any later change.

One JSON object a line. Each record carries the SHA-256 of the record before it (``previous``) and its own (``hash``),
over its text without ``hash``. So a record cannot be altered, removed, put in or moved without breaking every hash that
follows. Records cut off at the end leave a sound, shorter chain: compare its last hash with one that was noted
elsewhere (the coordinator is told it with every upload).

A record is on the disk before what it describes is handed over.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from morphfed.core.errors import StorageError
from morphfed.core.files import storage_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Value = Tensor | NDArray[np.int64] | NDArray[np.float64] | float

START = "0" * 64
"""What the first record calls the one before it."""

NUMBER_BYTES = 8
_SHOWN = 1024  # numbers of a row that are written out; the digest covers all


class Ledger(Protocol):
    """Where a gate writes down what it lets pass."""

    def write(self, entry: Mapping[str, object], values: Mapping[str, Value]) -> None:
        """Note one release; it has not left before this returns.

        Args:
            entry: round, site, purpose, noise if there is any, and sums of it, plain JSON.
            values: what leaves, by name: tensors, rows and single numbers.
        """
        ...


class LineLedger:
    """A line a release, without contents: enough for a study on one machine, where nothing leaves."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, entry: Mapping[str, object], values: Mapping[str, Value]) -> None:
        """Append the entry.

        Raises:
            StorageError: the file cannot be written.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        except OSError as cause:
            raise storage_error(self._path, cause) from cause


@dataclass(frozen=True)
class Verdict:
    """What a look at a whole ledger found.

    Attributes:
        records: sound ones, from the first.
        head: hash of the last sound one.
        line: of the first broken record, from 1; None: all are sound.
        why: what is wrong with it.
    """

    records: int
    head: str
    line: int | None = None
    why: str = ""

    @property
    def sound(self) -> bool:
        """Whether every record is as it was written."""
        return self.line is None


class ChainedLedger:
    """A site's append-only ledger; one process may write it at a time.

    A record that was cut short by a crash is moved into ``*.torn`` and that is noted in a record of its own: what it
    described has not left.

    Args:
        path: the file; made if it is missing.
        about: put into every record, such as the study's hash and the unit.

    Raises:
        StorageError: the chain is broken: nothing is added to a ledger that cannot be trusted.
    """

    def __init__(self, path: Path, about: Mapping[str, object] | None = None) -> None:
        self.path, self._about = path, dict(about or {})
        self._mend()
        verdict = verify(path)
        if not verdict.sound:
            raise StorageError(
                f"{path}, line {verdict.line}: {verdict.why}; nothing leaves while the ledger is broken.",
                fix="keep the file as evidence, find out who changed it, then move it away to begin a new one.",
            )
        self._count, self.head = verdict.records, verdict.head
        if self._torn:
            self.note("repair", f"{self._torn} bytes of an unfinished record were set aside; it had not left")

    @property
    def records(self) -> int:
        """How many there are."""
        return self._count

    def about(self, **about: object) -> _Section:
        """The same ledger for one study or unit: these words go into each record."""
        return _Section(self, about)

    def write(self, entry: Mapping[str, object], values: Mapping[str, Value]) -> None:
        """Append one release, with name, shape, type, bytes and digest of everything in it."""
        items = [_item(name, value) for name, value in values.items()]
        self._append({"noise": "none", **self._about, **entry, "items": items})

    def note(self, kind: str, text: str, **about: object) -> None:
        """Append a sentence: words that leave (a refusal), or something that happened to the ledger."""
        self._append({**self._about, **about, "kind": kind, "text": text, "bytes": len(text.encode())})

    def _append(self, content: Mapping[str, object]) -> None:
        # Whatever a caller calls its fields, these five are the ledger's.
        framed = {**content, "n": self._count + 1, "time": _now(), "previous": self.head}
        digest = _digest(framed)
        line = _text({**framed, "hash": digest}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as cause:
            raise storage_error(self.path, cause) from cause
        self._count, self.head = self._count + 1, digest

    def _mend(self) -> None:
        """Set an unfinished last line aside; a finished one ends in a line feed."""
        self._torn = 0
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as cause:
            raise storage_error(self.path, cause) from cause
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return
        self._torn = len(content) - whole
        try:
            with self.path.with_suffix(".torn").open("ab") as file:
                file.write(content[whole:] + b"\n")
            os.truncate(self.path, whole)
        except OSError as cause:
            raise storage_error(self.path, cause) from cause


class _Section:
    """A ledger with words that go into each record."""

    def __init__(self, ledger: ChainedLedger, about: Mapping[str, object]) -> None:
        self._ledger, self._about = ledger, dict(about)

    def write(self, entry: Mapping[str, object], values: Mapping[str, Value]) -> None:
        """Append one release."""
        self._ledger.write({**self._about, **entry}, values)


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a ledger, in order; stops before the first line that is none.

    Raises:
        StorageError: the file is missing or cannot be read.
    """
    for line in _lines(path):
        try:
            found = json.loads(line)
        except ValueError:
            return
        if not isinstance(found, dict):
            return
        yield found


def verify(path: Path) -> Verdict:
    """Follow the chain from the first record to the last. A missing file is an empty ledger."""
    count, head = 0, START
    if not path.exists():
        return Verdict(0, START)
    for number, line in enumerate(_lines(path), start=1):
        why, digest = _look(line, count + 1, head)
        if why:
            return Verdict(count, head, number, why)
        count, head = count + 1, digest
    return Verdict(count, head)


def _look(line: bytes, number: int, head: str) -> tuple[str, str]:
    """What is wrong with a line (empty: nothing), and its hash."""
    try:
        found = json.loads(line)
    except ValueError:
        return "it is not JSON", ""
    if not isinstance(found, dict) or "hash" not in found:
        return "it is no record", ""
    digest = found.pop("hash")
    if found.get("previous") != head:
        return "a record before it was removed, put in or altered", ""
    if found.get("n") != number:
        return f"it is numbered {found.get('n')}, expected {number}", ""
    if _digest(found) != digest or _text({**found, "hash": digest}).encode() != line.rstrip(b"\n"):
        return "it was altered after it was written", ""
    return "", digest


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError as cause:
        raise StorageError(
            f"{path} does not exist.", fix="check the path; a site that sent nothing has none."
        ) from cause
    except OSError as cause:
        raise StorageError(f"{path} cannot be read: {cause}.", fix="check the file's permissions.") from cause


def _item(name: str, value: Value) -> dict[str, object]:
    if isinstance(value, int | float):
        return {"name": name, "value": _plain(float(value)), "bytes": NUMBER_BYTES}
    raw, shape, dtype = _raw(value)
    item: dict[str, object] = {"name": name, "shape": shape, "dtype": dtype, "bytes": len(raw)}
    if not hasattr(value, "untyped_storage") and math.prod(shape) <= _SHOWN:  # a row of sums: shown as it is
        item["values"] = [_plain(v) for v in value.tolist()]
    return {**item, "sha256": hashlib.sha256(raw).hexdigest()}


def _raw(value: Any) -> tuple[memoryview | bytes, list[int], str]:
    """Bytes in row-major order, shape and type of a tensor or an array."""
    if hasattr(value, "untyped_storage"):
        import torch

        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return flat.tobytes(), list(value.shape), str(value.dtype).removeprefix("torch.")
    return value.tobytes(), list(value.shape), str(value.dtype)


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _text(record: Mapping[str, object]) -> str:
    """The one way a record is written."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _digest(record: Mapping[str, object]) -> str:
    return hashlib.sha256(_text(record).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
