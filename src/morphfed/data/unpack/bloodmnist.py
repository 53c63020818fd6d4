"""BloodMNIST (Yang 2023, MedMNIST v2): PBC's pictures, the middle 200 pixels, resized, in one ``.npz``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.errors import DataError
from morphfed.data.unpack.cells import Cell, Options

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABELS = ("basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte", "neutrophil", "platelet")
"""Names of the numbers 0 … 7."""

SPLITS = {"train": "train", "val": "validation", "test": "test"}
FIELD_UM = 20.0
"""Side of every picture: 200 pixels of PBC's 360 × 363 at 10 pixels per µm, before they were resized."""


def cells(source: Path, options: Options) -> Iterator[Cell | str]:
    """Every picture of ``bloodmnist.npz`` or ``bloodmnist_224.npz``, with its official split and its scale.

    Raises:
        DataError: no such archive, or arrays of another shape; names the array.
    """
    if not source.is_file():
        raise DataError(f"{source} is no file.", fix="name the .npz file itself, such as bloodmnist_224.npz.")
    try:
        archive = np.load(source, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as cause:
        raise DataError(f"{source} cannot be read as .npz: {cause}.", fix="fetch it again.") from cause
    with archive:
        for part, split in SPLITS.items():
            images, labels = _arrays(archive, part, source)
            for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
                scale = FIELD_UM / images.shape[1]
                yield Cell(f"{part}_{number:05d}", pixels, LABELS[label], split=split, um_per_px=scale)


def _arrays(archive: np.lib.npyio.NpzFile, part: str, source: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    names = (f"{part}_images", f"{part}_labels")
    for name in names:
        if name not in archive:
            raise DataError(f"{source} has no array '{name}'.", fix="fetch BloodMNIST again.")
    images, labels = archive[names[0]], archive[names[1]].reshape(-1).astype(np.int64)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise DataError(
            f"{source}: {names[0]} is {images.dtype} {images.shape}; uint8 (n, side, side, 3) was expected.",
            fix="fetch BloodMNIST again.",
        )
    if len(labels) != len(images) or (len(labels) and not 0 <= labels.min() <= labels.max() < len(LABELS)):
        raise DataError(
            f"{source}: {names[1]} does not hold a number of 0 … {len(LABELS) - 1} for each of {len(images)} pictures.",
            fix="fetch BloodMNIST again.",
        )
    return images, labels
