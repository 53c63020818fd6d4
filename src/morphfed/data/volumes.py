"""NIfTI volumes → axial slices of 8 bits in one orientation, with intensities normalised over the whole volume.

MRI has no unit: the same tissue is 80 at one scanner and 800 at another, and coils brighten what is near them. So each
volume is clipped to its percentiles 0.5 and 99.5, and the standard scores of what results are stored as 8 bits,
z = −4 … 4 → 0 … 255: mean 127.5 and 31.875 grey levels a standard deviation in every volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLIP = (0.5, 99.5)
"""Percentiles of a volume's finite voxels that its intensities are clipped to."""

Z_RANGE = 4.0
"""Standard scores −Z_RANGE … Z_RANGE become 0 … 255."""

SUFFIXES = (".nii.gz", ".nii")
_FIX = "restore the file from its source, or leave it out."


@dataclass(frozen=True)
class Volume:
    """A volume, its axes nearest to left → right, posterior → anterior, inferior → superior (RAS+).

    Attributes:
        values: (X, Y, Z), of the file's type after its scaling.
        spacing_mm: (x, y, z) size of a voxel; NaN where the header gives none.
        affine: (4, 4) of the file as stored, voxel → mm.
    """

    values: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]


def read_volume(path: Path, *, like: Volume | None = None) -> Volume:
    """Read a NIfTI file and turn its axes.

    Args:
        path: ``.nii`` or ``.nii.gz``. Two dimensions are one slice; a fourth of size 1 is dropped.
        like: turn the axes as of this volume, whatever the file's own header says: a mask drawn over it.

    Raises:
        DataError: no NIfTI file, damaged, or not three-dimensional.
        MissingExtraError: nibabel is not installed.
    """
    nibabel = _nibabel()
    try:
        image = nibabel.load(path)
        values = np.asanyarray(image.dataobj)
        affine, zooms = np.asarray(image.affine, float), [float(z) for z in image.header.get_zooms()[:3]]
    except FileNotFoundError as cause:
        raise DataError(f"{path} does not exist.", fix="correct the path.") from cause
    # What nibabel, gzip and zlib raise for files that are none, or that end too early.
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, OSError, EOFError) as cause:
        raise DataError(f"{path} cannot be read as NIfTI: {cause}.", fix=_FIX) from cause
    except (ValueError, TypeError, ArithmeticError) as cause:
        raise DataError(f"{path} has a damaged header or body: {cause}.", fix=_FIX) from cause
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or 0 in values.shape:
        shape = "×".join(map(str, values.shape))
        raise DataError(f"{path} has {shape} voxels; three dimensions were expected.", fix=_FIX)
    zooms += [float("nan")] * (3 - len(zooms))
    turn = nibabel.orientations.io_orientation(affine if like is None else like.affine)
    if np.isnan(turn).any():  # an affine of rank < 3 says nothing about one of the axes
        turn = np.array([[0, 1], [1, 1], [2, 1]])
    spacing = np.full(3, np.nan)
    spacing[turn[:, 0].astype(int)] = [z if z > 0 and np.isfinite(z) else np.nan for z in zooms]
    x, y, z = (float(s) for s in spacing)
    return Volume(nibabel.orientations.apply_orientation(values, turn), (x, y, z), affine)


def axial(volume: NDArray[Any], k: int) -> NDArray[Any]:
    """Slice ``k`` as radiologists look at it: front of the body up, its right side on the left; ``(Y, X)``."""
    return np.ascontiguousarray(volume[::-1, ::-1, k].T)


def normalised(values: NDArray[Any]) -> tuple[NDArray[np.uint8], int]:
    """A volume's intensities as 8 bits (see the module), and how many voxels are not finite; these become 0.

    Raises:
        ValueError: no finite voxel, or all of one value after clipping.
    """
    voxels = values.astype(np.float64)
    finite = np.isfinite(voxels)
    if not finite.any():
        raise ValueError("no voxel is finite")
    low, high = np.percentile(voxels[finite], CLIP)
    clipped = np.clip(np.where(finite, voxels, low), low, high)
    mean, sd = clipped[finite].mean(), clipped[finite].std()
    if sd <= 1e-9 * max(1.0, abs(mean)):
        raise ValueError("all voxels have one value")
    z = (clipped - mean) / sd
    grey = np.rint((np.clip(z, -Z_RANGE, Z_RANGE) + Z_RANGE) * (255 / (2 * Z_RANGE)))
    return np.where(finite, grey, 0).astype(np.uint8), int((~finite).sum())


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as cause:
        raise MissingExtraError(
            "Volumes are read by nibabel, which is not installed.", fix="pip install 'morphfed[volumes]'"
        ) from cause
    return nibabel
