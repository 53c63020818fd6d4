"""A small picture of a slide to look at: what was taken for tissue, and where the tiles lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from morphfed.core.files import writing

LARGEST = 1024
"""Longer side in pixels."""

OUTLINE, TILES = (0, 158, 115), (0, 90, 255)  # after Okabe and Ito


def with_mask(
    picture: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    corners: NDArray[np.int64],
    *,
    size: tuple[int, int],
    side: float,
) -> NDArray[np.uint8]:
    """The slide with what is no tissue veiled, tissue outlined in green, tiles in blue.

    Args:
        picture: RGB ``(H, W, 3)`` of the whole slide.
        mask: of the whole slide, at any scale.
        corners: ``(N, 2)`` of the tiles, in level 0.
        size: (width, height) of level 0.
        side: of a tile in level 0.
    """
    from PIL import Image, ImageDraw
    from scipy.ndimage import binary_erosion

    small = fitted(picture).astype(np.float32)
    height, width = small.shape[:2]
    inside = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    drawn = np.where(inside[..., None], small, 0.45 * small + 0.55 * 160).astype(np.uint8)
    drawn[inside & ~binary_erosion(inside, border_value=1, iterations=2)] = OUTLINE
    image = Image.fromarray(drawn)
    draw = ImageDraw.Draw(image)
    per_px = (width / size[0], height / size[1])
    for x, y in corners.tolist():
        box = (x * per_px[0], y * per_px[1], (x + side) * per_px[0] - 1, (y + side) * per_px[1] - 1)
        if box[2] > box[0] and box[3] > box[1]:
            draw.rectangle(box, outline=TILES)
    return np.asarray(image)


def fitted(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture ``(H, W, 3)`` with its longer side at most :data:`LARGEST`."""
    from PIL import Image

    factor = min(1.0, LARGEST / max(picture.shape[:2]))
    width, height = (max(1, round(n * factor)) for n in (picture.shape[1], picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def save_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a picture ``(H, W, 3)`` or ``(H, W)``, atomically."""
    from PIL import Image

    with writing(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG", optimize=False)
