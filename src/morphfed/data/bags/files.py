"""One bag in one file: ``.h5`` and ``.pt`` of CLAM, HistoFL and TRIDENT, the ``(1, N, D)`` files of UNI2-h, ``.npy``.

Features stay on disk. An ``.h5`` file is read straight into the array that is handed out, so a bag costs its own size
in float32 and no more; a tensor file and an ``.npy`` file are memory-mapped, and copied where their type is another.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SUFFIXES = (".h5", ".hdf5", ".pt", ".npy")
"""Of bag files; where one slide has several, the first of these is read."""

FEATURES, COORDS, NAMES = "features", "coords", "names"
PATCHES = "_patches"
"""What TRIDENT puts behind a slide's name in files of coordinates; it is no part of the slide's id."""

_BLOCK = 4096
"""Instances that are read at once where a bag is looked through or sampled."""

_FINGERPRINT = 64
"""Instances whose bytes stand for a bag in its fingerprint."""


@dataclass(frozen=True)
class BagFacts:
    """What a bag file says of itself.

    Attributes:
        instances: N.
        dim: D; None for an empty bag that does not say.
        dtype: type on disk.
        encoder: what computed the features, where the file says.
        coords: whether it has a position for each instance.
        geometry: attributes of the coordinates, such as ``patch_size``.
    """

    instances: int
    dim: int | None
    dtype: str
    encoder: str | None = None
    coords: bool = False
    geometry: Mapping[str, Any] = field(default_factory=dict)


class OpenBag(ABC):
    """An opened bag file.

    Attributes:
        instances: N.
        dim: D; None for an empty bag that does not say.
    """

    instances: int
    dim: int | None

    @property
    @abstractmethod
    def facts(self) -> BagFacts:
        """What it says of itself: looked up when asked for, since it costs more than reading a small bag."""

    @abstractmethod
    def slice(self, start: int, stop: int) -> Floats:
        """Instances ``start`` to ``stop``, float32 ``(stop - start, D)``; may be a view into the file."""

    def coords(self) -> NDArray[np.int64] | None:
        """Level-0 position of each instance, int64 ``(N, 2)``."""
        return None

    def names(self) -> list[str] | None:
        """What each instance is called."""
        return None


def slide_id(path: Path) -> str:
    """The slide that a file is of: its name without suffix and without TRIDENT's ``_patches``."""
    return path.stem.removesuffix(PATCHES)


@contextmanager
def opened(path: Path) -> Iterator[OpenBag]:
    """Open a bag file.

    Raises:
        DataError: the file is missing, damaged, or holds no bag; names it and says what was expected.
        MissingExtraError: an ``.h5`` file without h5py.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist.", fix="restore the file, or correct the path.")
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        with _h5(path) as bag:
            yield bag
    elif suffix == ".pt":
        yield _ArrayBag(_tensor_file(path))
    elif suffix == ".npy":
        yield _ArrayBag(_npy(path))
    else:
        raise DataError(f"{path} is no bag file.", fix=f"bag files end in {', '.join(SUFFIXES)}.")


def facts_of(path: Path) -> BagFacts:
    """What a file says of itself; of an ``.h5`` file nothing but the header is read."""
    with opened(path) as bag:
        return bag.facts


def read(path: Path, rows: NDArray[np.int64] | None = None) -> Floats:
    """The features of a bag.

    Args:
        path: the file.
        rows: int64 ascending; only these instances. None: all.

    Returns:
        float32 ``(N, D)``; not to be written to, as it may be the file itself.
    """
    with opened(path) as bag:
        if rows is None:
            return bag.slice(0, bag.instances)
        found = np.empty((len(rows), bag.dim or 0), dtype=np.float32)
        for start in range(0, bag.instances, _BLOCK):
            stop = min(start + _BLOCK, bag.instances)
            first, last = np.searchsorted(rows, (start, stop))
            if last > first:
                found[first:last] = bag.slice(start, stop)[rows[first:last] - start]
        return found


def read_coords(path: Path) -> NDArray[np.int64] | None:
    """Positions of the instances, int64 ``(N, 2)``; None where the file has none."""
    with opened(path) as bag:
        return bag.coords()


def read_names(path: Path) -> list[str] | None:
    """What the instances are called; None where the file does not say."""
    with opened(path) as bag:
        return bag.names()


def blocks(path: Path) -> Iterator[Floats]:
    """All instances, some thousand at a time."""
    with opened(path) as bag:
        for start in range(0, bag.instances, _BLOCK):
            yield bag.slice(start, min(start + _BLOCK, bag.instances))


def odd_instances(path: Path) -> int:
    """Instances with a number that is not finite."""
    return sum(int((~np.isfinite(part)).any(axis=1).sum()) for part in blocks(path))


def fingerprint(path: Path) -> str:
    """64 hexadecimal digits that tell one bag from another without reading all of it.

    SHA-256 over the shape and up to 64 evenly spaced instances in float32: two files of the same features have the same
    one, whatever their format.
    """
    with opened(path) as bag:
        n = bag.instances
        digest = hashlib.sha256(f"{n}|{bag.dim}".encode())
        for row in np.unique(np.linspace(0, n - 1, min(n, _FINGERPRINT)).astype(np.int64)) if n else ():
            digest.update(np.ascontiguousarray(bag.slice(int(row), int(row) + 1)).tobytes())
        return digest.hexdigest()


def write_bag(
    path: Path,
    features: NDArray[np.floating[Any]],
    coords: NDArray[np.integer[Any]] | None = None,
    *,
    encoder: str | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Write a bag as CLAM and TRIDENT read it, atomically.

    Args:
        path: ends in ``.h5``.
        features: ``(N, D)``.
        coords: ``(N, 2)``, level-0 position of each instance.
        encoder: kept as the attribute that TRIDENT writes.
        names: of the instances, such as the files of cells; kept in a dataset of their own, which others pass over.

    Raises:
        StorageError: the file cannot be written.
    """
    from morphfed.core.files import writing

    with writing(path) as temporary, _library(path).File(temporary, "w") as file:
        data = file.create_dataset(FEATURES, data=features)
        if encoder is not None:
            data.attrs["encoder"] = encoder
        if coords is not None:
            file.create_dataset(COORDS, data=coords)
        if names is not None:
            file.create_dataset(NAMES, data=[name.encode() for name in names])


_UNREADABLE = (OSError, KeyError, RuntimeError)
"""What h5py raises of a damaged file."""


# ── .h5 ─────────────────────────────────────────────────────────────────────────────────────────────────────
class _H5Bag(OpenBag):
    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        if FEATURES not in file:
            raise DataError(_no_features(path, list(file)), fix="name the folder of features, not that of coordinates.")
        self._data = file[FEATURES]
        self._lead, self.instances, self.dim = _shape_of(tuple(self._data.shape), str(self._data.dtype), path)

    @property
    def facts(self) -> BagFacts:
        try:
            encoder = _encoder(_attributes(self._data))
            there = COORDS in self._file
            geometry = _attributes(self._file[COORDS]) if there else {}
        except _UNREADABLE as cause:
            raise _damaged(self._path, cause) from cause
        return BagFacts(self.instances, self.dim, str(self._data.dtype), encoder, there, geometry)

    def slice(self, start: int, stop: int) -> Floats:
        found = np.empty((stop - start, self.dim or 0), dtype=np.float32)
        if stop > start:
            where = np.s_[0, start:stop] if self._lead else np.s_[start:stop]
            try:
                self._data.read_direct(found, source_sel=where)  # converted in HDF5's own small buffer
            except OSError as cause:
                raise _damaged(self._path, cause) from cause
        return found

    def coords(self) -> NDArray[np.int64] | None:
        if COORDS not in self._file:
            return None
        try:
            found = np.asarray(self._file[COORDS][...])
        except OSError as cause:
            raise _damaged(self._path, cause) from cause
        found = found[0] if found.ndim == 3 and len(found) == 1 else found
        fits = found.shape == (self.instances, 2)
        return found.astype(np.int64) if fits else None  # TRIDENT's empty slides have positions of another shape

    def names(self) -> list[str] | None:
        if NAMES not in self._file:
            return None
        found = [name.decode("utf-8", errors="replace") for name in self._file[NAMES][...].tolist()]
        return found if len(found) == self.instances else None


@contextmanager
def _h5(path: Path) -> Iterator[OpenBag]:
    library = _library(path)
    try:
        file = library.File(path, "r")
    except OSError as cause:
        raise _damaged(path, cause) from cause
    with file:
        try:
            bag = _H5Bag(path, file)
        except _UNREADABLE as cause:
            raise _damaged(path, cause) from cause
        yield bag


def _library(path: Path) -> Any:
    try:
        import h5py
    except ImportError as cause:
        raise MissingExtraError(
            f"{path} needs the library h5py, which is not installed.", fix="pip install 'morphfed[slides]'."
        ) from cause
    return h5py


def _encoder(attributes: Mapping[str, Any]) -> str | None:
    """The encoder's name, with the fingerprint of its weights where ``morphfed slides embed`` wrote one."""
    name, weights = attributes.get("encoder"), attributes.get("encoder_weights")
    return None if name is None else f"{name} {str(weights)[:8]}" if weights is not None else str(name)


def _attributes(data: Any) -> dict[str, Any]:
    # Copied first: h5py holds its one lock while its iterator lives, so an error in here would stop all threads.
    return {key: _attribute(value) for key, value in dict(data.attrs).items()}


def _attribute(value: Any) -> Any:
    """TRIDENT stores None as a text and dicts as JSON; bytes are text of older writers."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):  # pairs, such as CLAM's downsample
        return value.tolist()
    return None if value in ("None", "") else value


# ── arrays ──────────────────────────────────────────────────────────────────────────────────────────────────
class _ArrayBag(OpenBag):
    def __init__(self, found: tuple[Path, NDArray[Any]]) -> None:
        path, array = found
        lead, self.instances, self.dim = _shape_of(array.shape, str(array.dtype), path)
        self._array = array[0] if lead else array

    @property
    def facts(self) -> BagFacts:
        return BagFacts(self.instances, self.dim, str(self._array.dtype))

    def slice(self, start: int, stop: int) -> Floats:
        if not self.instances:
            return np.empty((0, self.dim or 0), dtype=np.float32)
        return np.ascontiguousarray(self._array[start:stop], dtype=np.float32)


def _npy(path: Path) -> tuple[Path, NDArray[Any]]:
    try:
        return path, np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as cause:
        raise _damaged(path, cause) from cause


def _tensor_file(path: Path) -> tuple[Path, NDArray[Any]]:
    """A tensor, a mapping with a tensor ``features``, or TRIDENT's pickled array; nothing else is unpickled."""
    import pickle

    import torch

    from morphfed.data.bags.pickles import load_array

    refused = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, AttributeError)
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except refused:
        try:  # torch's layout before 1.6, which cannot be mapped
            found = torch.load(path, map_location="cpu", weights_only=True)
        except refused:
            return path, load_array(path)
    if isinstance(found, dict):
        if FEATURES not in found:
            raise DataError(
                _no_features(path, [str(key) for key in found]), fix="save the features as a tensor (N, D)."
            )
        found = found[FEATURES]
    if not isinstance(found, torch.Tensor):
        raise DataError(
            f"{path} holds a {type(found).__name__}; a tensor (N, D) was expected.", fix="save the features alone."
        )
    if found.dtype == torch.bfloat16:
        found = found.float()
    return path, found.detach().numpy()


# ── what both share ─────────────────────────────────────────────────────────────────────────────────────────
def _shape_of(shape: tuple[int, ...], dtype: str, path: Path) -> tuple[bool, int, int | None]:
    """Whether there is a leading 1 to take off, N, and D (None where an empty bag does not say)."""
    if np.dtype(dtype).kind not in "fiu":
        raise DataError(f"{path}: features are of type {dtype}, numbers were expected.", fix="embed the slide again.")
    if len(shape) == 3 and shape[0] == 1:
        return True, shape[1], shape[2]
    if len(shape) == 2:
        return False, shape[0], shape[1]
    if shape == (0,):  # TRIDENT, for a slide without tissue
        return False, 0, None
    if len(shape) == 1:
        raise DataError(
            f"{path}: features have shape {shape}, one vector of the whole slide; a bag (N, D) was expected.",
            fix="name the folder of patch features (features_ENCODER), not that of slide features.",
        )
    raise DataError(f"{path}: features have shape {shape}, (N, D) was expected.", fix="write one bag a file.")


def _no_features(path: Path, there: list[str]) -> str:
    listed = ", ".join(sorted(there)) or "nothing"
    return f"{path} has no dataset 'features' (it holds {listed})."


def _damaged(path: Path, cause: Exception) -> DataError:
    first = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")
    return DataError(f"{path} cannot be read: {first}.", fix="restore the file, or embed the slide again.")
