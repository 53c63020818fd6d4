"""Pictures for results.json, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.seeding import numpy_stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from morphfed.training.dataset import ImageSet


def colour(parts: Sequence[ImageSet]) -> dict[str, list[float]]:
    """Mean and sd of R, G and B in [0, 1] over at most 200 pictures of a site."""
    rows = np.concatenate([p.rows for p in parts])
    rows = rows[np.sort(numpy_stream(0, "colour").permutation(len(rows))[:200])]
    pixels = parts[0].store.gather(rows).reshape(-1, 3).astype(np.float64) / 255.0
    return {"mean": pixels.mean(axis=0).tolist(), "sd": pixels.std(axis=0).tolist()}


def data_uri(pixels: NDArray[np.uint8], *, lines: bool = False) -> str:
    """A picture ``(H, W, 3)`` as a JPEG data URI; with ``lines`` colour is kept as sharp as brightness."""
    from PIL import Image

    buffer = io.BytesIO()
    options = {"subsampling": 0} if lines else {}
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85, **options)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
