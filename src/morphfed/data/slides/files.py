"""Coordinates and features on disk, in the layout of CLAM with TRIDENT's attributes beside it.

``coords`` is ``(N, 2)``, left upper corners in pixels of level 0, with the patch's size and level as attributes;
``features`` is ``(N, D)`` float32 with the encoder's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphfed.core.errors import DataError, MissingExtraError
from morphfed.core.files import writing

Attributes = dict[str, Any]

_ROWS = 32  # of a chunk of features, as CLAM has them


def require_h5py() -> Any:
    """The module, imported.

    Raises:
        MissingExtraError: not installed.
    """
    try:
        import h5py
    except ImportError as cause:
        raise MissingExtraError("Bags are kept in HDF5, for which h5py is missing.", fix="pip install h5py.") from cause
    return h5py


def write_coords(path: Path, corners: NDArray[np.int64], attributes: Mapping[str, Any]) -> None:
    """Write a slide's tiles, atomically.

    Args:
        path: the ``.h5`` file.
        corners: ``(N, 2)``; N may be 0.
        attributes: of the dataset; None is written as ``None``, a table as JSON.
    """
    h5py = require_h5py()
    with writing(path) as temporary, h5py.File(temporary, "w") as file:
        _add_coords(file, corners, attributes, np.int64)


def _add_coords(file: Any, corners: NDArray[np.int64], attributes: Mapping[str, Any], dtype: Any) -> None:
    chunk = (min(max(len(corners), 1), 1024), 2)
    data = file.create_dataset("coords", data=corners.astype(dtype), maxshape=(None, 2), chunks=chunk)
    for key, value in attributes.items():
        data.attrs[key] = _storable(value)


def _storable(value: Any) -> Any:
    if value is None:
        return "None"
    return json.dumps(value) if isinstance(value, dict) else value


def read_coords(path: Path) -> tuple[NDArray[np.int64], Attributes]:
    """A slide's tiles ``(N, 2)`` and the attributes of the dataset.

    Raises:
        DataError: the file is damaged, or has no ``coords``.
    """
    h5py = require_h5py()
    try:
        with h5py.File(path, "r") as file:
            data = file["coords"]
            corners = np.asarray(data[()], np.int64).reshape(-1, 2)
            return corners, {key: _plain(value) for key, value in data.attrs.items()}
    except (OSError, KeyError, ValueError) as cause:
        raise DataError(
            f"{path} holds no tile coordinates: {cause}.", fix="remove it and tile the slide again."
        ) from cause


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


@contextmanager
def writing_features(
    path: Path,
    corners: NDArray[np.int64],
    width: int,
    *,
    features: Mapping[str, Any],
    coords: Mapping[str, Any],
) -> Iterator[Any]:
    """Yield a float32 dataset ``(N, width)`` to be filled; the file appears under its name when all went well.

    Args:
        path: the ``.h5`` file.
        corners: ``(N, 2)``, kept beside the features.
        width: D.
        features: attributes of ``features``: the encoder and what identifies it.
        coords: attributes of ``coords``.
    """
    h5py = require_h5py()
    with writing(path) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_dataset(
            "features",
            shape=(len(corners), width),
            maxshape=(None, width),
            dtype=np.float32,
            chunks=(min(max(len(corners), 1), _ROWS), width),
        )
        for key, value in features.items():
            data.attrs[key] = _storable(value)
        _add_coords(file, corners, coords, np.int32)
        yield data


def read_features(path: Path) -> tuple[NDArray[np.float32], Attributes]:
    """Features ``(N, D)`` and their attributes.

    Raises:
        DataError: damaged, or without ``features``.
    """
    h5py = require_h5py()
    try:
        with h5py.File(path, "r") as file:
            data = file["features"]
            return np.asarray(data[()], np.float32), {key: _plain(value) for key, value in data.attrs.items()}
    except (OSError, KeyError, ValueError) as cause:
        raise DataError(f"{path} holds no features: {cause}.", fix="remove it and embed the slide again.") from cause


def names_of(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by slide id (the name without suffix), sorted; an id with several files is a duplicate."""
    found: dict[str, list[Path]] = {}
    for path in sorted(paths):
        found.setdefault(path.stem, []).append(path)
    return dict(sorted(found.items()))
