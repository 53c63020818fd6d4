"""Where tiles lie: their size on the slide from µm per pixel, a grid over it, and which of them show tissue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from morphfed.core.config import Config
from morphfed.core.errors import DataError
from morphfed.data.slides.reader import PLAUSIBLE_UM, Slide

TOO_COARSE = 1.1
"""A slide may be this much coarser than the tiles that are wanted of it."""


class Tiling(Config):
    """How slides are cut."""

    tile_px: int = Field(256, ge=16, le=4096, description="side of a tile, in pixels of um_per_px")
    um_per_px: float = Field(0.5, ge=PLAUSIBLE_UM[0], le=PLAUSIBLE_UM[1], description="of the tiles; 20× is 0.5")
    overlap_px: int = Field(0, ge=0, description="by which neighbours overlap, in pixels of um_per_px")
    min_tissue: float = Field(0.25, ge=0, le=1, description="least share of a tile that is tissue")
    mask_um: float = Field(8.0, gt=0, description="µm per pixel of the picture in which tissue is looked for")

    @model_validator(mode="after")
    def _moves_on(self) -> Tiling:
        if self.overlap_px >= self.tile_px:
            raise ValueError(f"overlap_px must be below tile_px = {self.tile_px}")
        return self


@dataclass(frozen=True)
class Geometry:
    """A tile on one slide.

    Attributes:
        level: from which it is read.
        read_px: its side in pixels of that level; resized to the encoder's size after.
        side: its side in pixels of level 0.
        step: from one to the next, in pixels of level 0.
    """

    level: int
    read_px: int
    side: float
    step: float


def geometry(slide: Slide, tiling: Tiling) -> Geometry:
    """The tile that has the wanted scale.

    Raises:
        DataError: the scale is not known, or the slide is coarser than the tiles.
    """
    scale = slide.scale
    wanted = tiling.um_per_px / scale.um_per_px
    if wanted * TOO_COARSE < 1:
        raise DataError(
            f"Slide {slide.path} has {scale.um_per_px:.3g} µm per pixel ({scale.origin}), the tiles are to have "
            f"{tiling.um_per_px:g}: detail that was not scanned would be made up.",
            fix="tile all slides at a coarser --um-per-px, or leave this one out.",
        )
    level = slide.level_for(wanted)
    side = tiling.tile_px * wanted
    read_px = max(1, round(side / slide.downsamples[level]))
    return Geometry(level, read_px, side, (tiling.tile_px - tiling.overlap_px) * wanted)


def grid(size: tuple[int, int], place: Geometry) -> NDArray[np.int64]:
    """Left upper corners ``(N, 2)`` (x, y in level 0) of all tiles that lie on the slide whole, row by row."""
    axes = []
    for length in size:
        count = int((length - round(place.side)) // place.step) + 1 if length >= round(place.side) else 0
        axes.append(np.rint(np.arange(count) * place.step).astype(np.int64))
    across, down = axes
    return np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)


def tissue_share(
    corners: NDArray[np.int64], mask: NDArray[np.bool_], size: tuple[int, int], side: float
) -> NDArray[np.float64]:
    """Share of each tile that is tissue, ``(N,)``.

    Args:
        corners: ``(N, 2)``, x and y in level 0.
        mask: over the whole slide, at any scale.
        size: (width, height) of level 0.
        side: of a tile, in level 0.
    """
    summed = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    limits = []
    for axis in (0, 1):
        cells = mask.shape[1 - axis]
        per_px = cells / size[axis]
        low = np.clip(np.rint(corners[:, axis] * per_px).astype(np.int64), 0, cells - 1)
        high = np.clip(np.rint((corners[:, axis] + side) * per_px).astype(np.int64), low + 1, cells)
        limits.append((low, high))
    (left, right), (top, bottom) = limits
    inside = summed[bottom, right] - summed[top, right] - summed[bottom, left] + summed[top, left]
    return np.asarray(inside / ((right - left) * (bottom - top)), np.float64)
