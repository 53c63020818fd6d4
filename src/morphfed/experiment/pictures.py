"""Pictures for results.json, as data URIs."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def data_uri(pixels: NDArray[np.uint8], *, lines: bool = False) -> str:
    """A picture ``(H, W, 3)`` as a JPEG data URI; with ``lines`` colour is kept as sharp as brightness."""
    from PIL import Image

    buffer = io.BytesIO()
    options = {"subsampling": 0} if lines else {}
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85, **options)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
