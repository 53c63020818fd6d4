"""Rows of one shape on disk, found by key and mapped into memory: what the image and the feature cache are made of.

Rows are appended in segments: ``NAME.u8`` (raw bytes; the suffix says the type) is committed by ``NAME.json`` (keys,
checksum), which is written last. A process that is killed leaves at worst a segment without its commit, which the next
run makes again.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import DTypeLike, NDArray

from morphfed.core.errors import StorageError
from morphfed.core.files import read_json, storage_error, write_bytes, write_json

SEGMENT_BYTES = 64 * 2**20
"""A segment is written at once from memory, so a full disk is an error and not a bus error in a mapped page."""


class SegmentStore:
    """Keyed rows below ``folder``.

    Args:
        folder: of this store alone.
        shape: of one row.
        dtype: of its numbers.
    """

    def __init__(self, folder: Path, *, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.folder, self.shape, self.dtype = Path(folder), shape, np.dtype(dtype)
        self._suffix = f".{self.dtype.kind}{8 * self.dtype.itemsize}"
        self._segments: list[NDArray[Any]] = []
        self._starts: list[int] = []
        self._rows: dict[str, int] = {}
        self._keys: list[str] = []
        self._load(verify=False)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def keys(self) -> frozenset[str]:
        """Keys of all stored rows."""
        return frozenset(self._rows)

    def rows_of(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """Row numbers of known keys.

        Raises:
            KeyError: a key is not stored.
        """
        return np.array([self._rows[key] for key in keys], dtype=np.int64)

    def keys_of(self, rows: Iterable[int]) -> list[str]:
        """Inverse of :meth:`rows_of`."""
        return [self._keys[row] for row in rows]

    def gather(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Copy rows out of the store: ``(N, *shape)``."""
        out = np.empty((len(rows), *self.shape), dtype=self.dtype)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for segment in np.unique(which):
            here = which == segment
            out[here] = self._segments[segment][rows[here] - self._starts[segment]]
        return out

    @contextmanager
    def writing(self) -> Iterator[int]:
        """Keep other processes from writing; yields how many rows were dropped because they are damaged.

        Raises:
            StorageError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            lock.acquire(timeout=3600)
        except OSError as cause:
            raise storage_error(self.folder, cause) from cause
        try:
            yield self._load(verify=True)
            self._load(verify=False)
        finally:
            lock.release()

    def commit(self, keys: Sequence[str], rows: NDArray[Any]) -> None:
        """Append rows, within :meth:`writing`.

        Raises:
            StorageError: the disk is full.
        """
        content = np.ascontiguousarray(rows, dtype=self.dtype).tobytes()
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
        write_bytes(self.folder / f"{name}{self._suffix}", content)
        entry = {"keys": list(keys), "crc32": zlib.crc32(content), "shape": list(self.shape)}
        write_json(self.folder / f"{name}.json", entry)

    def _load(self, *, verify: bool) -> int:
        """Map all committed segments; return how many rows were dropped because they are damaged."""
        self._segments, self._starts, self._rows, self._keys = [], [], {}, []
        dropped, total = 0, 0
        for index in sorted(self.folder.glob("*.json")):
            segment = self._map(index, verify=verify)
            if isinstance(segment, int):
                dropped += segment
                continue
            keys, rows = segment
            self._starts.append(total)
            self._segments.append(rows)
            self._rows.update({k: total + i for i, k in enumerate(keys)})
            self._keys += keys
            total += len(keys)
        return dropped

    def _map(self, index: Path, *, verify: bool) -> tuple[list[str], NDArray[Any]] | int:
        data = index.with_suffix(self._suffix)
        keys: list[str] = []
        try:
            entry = read_json(index)
            keys = list(entry["keys"])
            rows = np.memmap(data, dtype=self.dtype, mode="r", shape=(len(keys), *self.shape))
            sound = data.stat().st_size == rows.nbytes and (not verify or zlib.crc32(rows.data) == entry["crc32"])
        except (StorageError, OSError, ValueError, KeyError, TypeError):
            sound = False
        if sound:
            return keys, rows
        if verify:  # only under the lock: another process may be writing
            index.unlink(missing_ok=True)
            data.unlink(missing_ok=True)
        return max(1, len(keys))
