"""Multi-site prostate MRI (Liu 2020, SAML, doi:10.1109/TMI.2020.2974574): T2 volumes and masks of six sites."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphfed.core.errors import DataError
from morphfed.data.unpack.cells import Cell, Options, Remark
from morphfed.data.volumes import SUFFIXES, Volume, axial, normalised, read_volume

SITES = ("BIDMC", "HK", "I2CVB", "ISBI", "ISBI_1.5", "UCL")
"""Folders of the published archive, each a site."""

PROSTATE, NONE = "prostate", "no_prostate"
"""Labels of slices with and without a voxel of prostate."""

MARK = 255
"""Value of prostate in the masks that are written, so that they can be looked at."""

_ZONES = {1, 2}  # the whole gland, or peripheral and central zone: NCI-ISBI draws two
_MASK = re.compile(r"(?P<case>.+?)[_-](?:segmentation|seg|mask|label)", re.IGNORECASE)
_UNEQUAL = 0.01  # sides of a voxel that differ by more than this share are said


def slices(source: Path, options: Options) -> Iterator[Cell | Remark | str]:
    """Axial slices of ``Case00.nii.gz`` with ``Case00_segmentation.nii.gz`` (in any case); a case is a patient.

    Slices without prostate are counted and left out, or taken with ``options.all_slices``. The zones of a gland are
    joined. A case that cannot be used is left out and named: without a volume or a mask, of different shapes, a mask
    with values other than 0, 1, 2, or a volume without contrast. Voxels that are not finite become black and are said.

    Raises:
        DataError: no volume, several sites, or no mask that marks prostate; names the folder.
    """
    volumes, masks = _paired(source)
    joined, marked = 0, 0
    for case in sorted(volumes.keys() | masks.keys()):
        if case not in volumes or case not in masks:
            lonely, lacks = (masks, "volume") if case not in volumes else (volumes, "mask")
            yield Remark(f"{lonely[case].name} has no {lacks} and is left out")
            continue
        try:
            volume, mask, zones = _case(volumes[case], masks[case])
            grey, odd = _grey(volume, volumes[case])
        except DataError as cause:
            yield Remark(f"left out: {cause.message.replace(f'{source}/', '')}")
            continue
        joined += zones
        marked += int(mask.any())
        yield from map(Remark, _peculiar(volumes[case], volume, masks[case], mask, odd))
        yield from _of_case(case, grey, mask, _scale(volume), options)
    if joined:
        yield Remark(f"the zones of {joined} glands are joined")
    if not marked:
        raise DataError(
            f"No mask of {source} marks prostate: {len(volumes)} volumes and {len(masks)} masks are there.",
            fix="keep each CaseNN.nii.gz beside its CaseNN_segmentation.nii.gz; a site whose masks are all empty has "
            "nothing to learn or to be tested on: leave it out of the study.",
        )


def _paired(source: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Case → volume, and case → mask."""
    if not source.is_dir():
        raise DataError(f"{source} is no folder.", fix="name the folder of one site, such as BIDMC.")
    files = [f for f in sorted(source.rglob("*")) if f.name.lower().endswith(SUFFIXES) and not f.name.startswith(".")]
    below = sorted({f.relative_to(source).parts[0] for f in files if f.parent != source} & set(SITES))
    if len(below) > 1:
        raise DataError(
            f"{source} holds {len(below)} sites: {', '.join(below)}.",
            fix=f"write each out alone: morphfed data unpack saml_prostate {source / below[0]} NEW-FOLDER",
        )
    volumes: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for file in files:
        stem = file.name[: file.name.index(".nii")] if ".nii" in file.name else file.stem
        named = _MASK.fullmatch(stem)
        case, kind = (named["case"], masks) if named else (stem, volumes)
        if case in kind:
            raise DataError(f"{file} and {kind[case]} are both of case {case}.", fix="keep one of the two.")
        kind[case] = file
    if not volumes:
        raise DataError(f"{source} holds no NIfTI volume.", fix="name the folder that holds Case00.nii.gz.")
    return volumes, masks


def _case(volume_file: Path, mask_file: Path) -> tuple[Volume, NDArray[np.bool_], bool]:
    """The volume, its mask ``(X, Y, Z)`` in the same orientation, and whether zones were joined."""
    volume = read_volume(volume_file)
    # Published masks lie on the volume's voxels, but some headers lost their orientation: the volume's holds.
    mask = read_volume(mask_file, like=volume).values
    if mask.shape != volume.values.shape:
        sizes = ["×".join(map(str, shape)) for shape in (mask.shape, volume.values.shape)]
        raise DataError(f"{mask_file} has {sizes[0]} voxels, its volume {sizes[1]}.", fix="restore the mask.")
    values = {float(v) for v in np.unique(mask)}
    unknown = sorted(values - _ZONES - {0}, key=str)
    if unknown:
        listed = ", ".join(f"{v:g}" for v in unknown[:5])
        raise DataError(f"{mask_file} holds {listed}; 0, 1 and 2 were expected.", fix="restore the mask.")
    return volume, mask > 0, values >= _ZONES


def _grey(volume: Volume, file: Path) -> tuple[NDArray[np.uint8], int]:
    try:
        return normalised(volume.values)
    except ValueError as cause:
        raise DataError(f"{file} has no contrast: {cause}.", fix="restore the volume.") from cause


def _peculiar(volume_file: Path, volume: Volume, mask_file: Path, mask: NDArray[np.bool_], odd: int) -> Iterator[str]:
    """What is used as it is, but should be known."""
    x, y, _ = volume.spacing_mm
    if odd:
        yield f"{volume_file.name}: {odd} voxels are not finite and are black"
    if not mask.any():
        yield f"{mask_file.name} marks no prostate"
    if volume.values.shape[2] == 1:
        yield f"{volume_file.name} has one slice"
    if not np.isfinite(x * y):
        yield f"{volume_file.name} does not say the size of its voxels"
    elif abs(x - y) > _UNEQUAL * max(x, y):
        yield f"{volume_file.name} has voxels of {x:g} × {y:g} mm; their geometric mean is taken as the scale"


def _scale(volume: Volume) -> float | None:
    """µm per pixel within a slice."""
    x, y, _ = volume.spacing_mm
    return 1000 * float(np.sqrt(x * y)) if np.isfinite(x * y) else None


def _of_case(
    case: str, grey: NDArray[np.uint8], mask: NDArray[np.bool_], um_per_px: float | None, options: Options
) -> Iterator[Cell | str]:
    name = re.sub(r"[^\w-]+", "_", case)
    for k in range(grey.shape[2]):
        drawn: NDArray[Any] = axial(mask, k)
        if not drawn.any() and not options.all_slices:
            yield "slice without prostate"
            continue
        yield Cell(
            f"{name}_{k:03d}",
            axial(grey, k),
            PROSTATE if drawn.any() else NONE,
            patient=case,
            um_per_px=um_per_px,
            mask=np.where(drawn, MARK, 0).astype(np.uint8),
        )
