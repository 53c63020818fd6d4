"""Files that a killed run cannot leave half written: write beside, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from morphfed.core.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Read once at import: reading means setting, and another thread could create a file in between.
_UMASK = _umask()


def storage_error(path: Path, cause: OSError) -> StorageError:
    """Turn an ``OSError`` raised while writing ``path`` into an error that says what to do."""
    if cause.errno in _FULL:
        return StorageError(
            f"The disk is full: {path} could not be written.",
            fix="free some space and run the same command again; finished rounds are kept.",
        )
    if cause.errno in _READ_ONLY:
        return StorageError(
            f"{path} cannot be written: {os.strerror(cause.errno or 0).lower()}.",
            fix="choose a folder that you may write to with --runs DIR, or change its permissions.",
        )
    return StorageError(
        f"{path} could not be written: {cause}.", fix="check the disk, then run the same command again."
    )


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed over ``path``.

    Raises:
        StorageError: the folder is read-only, the disk is full, or the write failed.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes 0600; results are ordinary files.
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as cause:
        raise storage_error(path, cause) from cause
    finally:
        if temporary is not None:
            with suppress(OSError):  # a disk that went away must not hide the error that says so
                temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 ``content`` to ``path`` atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinities become ``null`` (JSON has neither)."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # NumPy and torch scalars
        value = value.item()
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        StorageError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise StorageError(f"{path} does not exist.", fix="check the path.") from cause
    except (OSError, ValueError) as cause:
        raise StorageError(f"{path} cannot be read: {cause}.", fix="restore the file or remove it.") from cause


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a UTF-8 text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
