"""Where tissue is: Otsu's threshold on the saturation of a small picture of the slide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

THRESHOLD = (0.05, 0.2)
"""Between which Otsu's threshold is kept: on bare glass it would split noise, on a full slide it would split tissue."""

DARKEST = 0.12
"""Of full brightness; below it is no tissue but ink, a fold or the scanner's frame, whose saturation is noise."""

LEAST_MM2 = 0.01
"""Specks of less are dust, holes of less are filled: 0.1 mm square."""


def tissue_mask(picture: NDArray[np.uint8], um_per_px: float) -> NDArray[np.bool_]:
    """Find stained tissue on a light ground.

    Args:
        picture: RGB ``(H, W, 3)``.
        um_per_px: its scale.

    Returns:
        ``(H, W)``, true on tissue.
    """
    from skimage.filters import threshold_otsu

    high, low = picture.max(axis=2).astype(np.float32), picture.min(axis=2).astype(np.float32)
    saturation = (high - low) / np.maximum(high, 1)
    # In bytes the median is fast, and no slide has more saturations than that.
    smooth = ndimage.median_filter(np.rint(saturation * 255).astype(np.uint8), size=5)
    bright = high >= 255 * DARKEST
    seen = smooth[bright]
    if not seen.size:
        return np.zeros(smooth.shape, bool)
    threshold = float(threshold_otsu(seen)) / 255 if seen.min() < seen.max() else 0.0
    mask = (smooth > 255 * float(np.clip(threshold, *THRESHOLD))) & bright
    mask = ndimage.binary_closing(np.pad(mask, 4, mode="edge"), iterations=2)[4:-4, 4:-4]
    least = max(1, round(LEAST_MM2 * (1000 / um_per_px) ** 2))
    mask = _without_small(np.asarray(mask, bool), least)
    return ~_without_small(~mask, least)


def _without_small(mask: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """The regions of at least ``least`` pixels."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= least)[labels], bool)
