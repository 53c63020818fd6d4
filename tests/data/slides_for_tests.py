"""Small pyramids whose contents are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from morphfed.data.synthetic.slides import write_pyramid

TISSUE, GLASS = (190, 90, 150), (243, 243, 244)


def tissue_picture(
    side: int = 1024, *, box: tuple[int, int, int, int] = (256, 128, 768, 896), seed: int = 0
) -> NDArray[np.uint8]:
    """Glass with one rectangle (left, top, right, bottom) of tissue, in which brightness tells the place."""
    rng = np.random.default_rng(seed)
    picture = np.full((side, side, 3), GLASS, np.float32)
    left, top, right, bottom = box
    rows, columns = np.mgrid[top:bottom, left:right]
    wave = 25 * np.sin(rows / 37) + 25 * np.cos(columns / 23)
    picture[top:bottom, left:right] = np.array(TISSUE) + wave[..., None]
    return np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


def write_slide(path: Path, um_per_px: float | None = 1.0, **picture: object) -> NDArray[np.uint8]:
    pixels = tissue_picture(**picture)  # type: ignore[arg-type]
    write_pyramid(path, pixels, um_per_px, quality=95)
    return pixels


def write_aperio(path: Path, description: str) -> None:
    """A file that OpenSlide takes for Aperio's, which keep the scale in words."""
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            tissue_picture(),
            tile=(256, 256),
            photometric="rgb",
            compression="jpeg",
            description=f"Aperio Image Library v10\r\n1024x1024 (256x256) JPEG/RGB Q=70{description}",
            metadata=None,
        )
