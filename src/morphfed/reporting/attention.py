"""What a head looked at: attention over a slide's thumbnail, and the instances with the most of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from morphfed.reporting.svg import FAINT, QUIET, canvas, finish, fitted

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLOURS = "plasma"
"""Matplotlib's; dark to bright, told apart also by colour-blind readers; its upper end by all from pink tissue."""

LARGEST = 480
"""Longer side of a heat map in pixels."""

COVER = 0.62
"""Opacity of the colour over the tissue."""


def ranks(attention: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of instances with less attention, 0 to 1; equal ones share the middle of their ranks.

    Attention itself is useless as a colour: of thousands of tiles a few have nearly all.
    """
    from scipy.stats import rankdata

    if len(attention) < 2:
        return np.full(len(attention), 0.5)
    return np.asarray((rankdata(attention) - 1) / (len(attention) - 1), np.float64)


def heat_map(
    corners: NDArray[np.integer],
    attention: NDArray[np.floating],
    *,
    side: float,
    size: tuple[int, int],
    picture: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Colour every tile by its rank of attention; where tiles overlap, by their mean.

    Args:
        corners: ``(N, 2)``, x and y of the tiles' left upper corners in level 0.
        attention: ``(N,)``.
        side: of a tile in level 0.
        size: (width, height) of level 0.
        picture: RGB of the whole slide at any scale; None: the tiles are drawn on grey.

    Returns:
        RGB, the longer side at most :data:`LARGEST` pixels.

    Raises:
        ValueError: not as many weights as tiles.
    """
    from matplotlib import colormaps
    from PIL import Image

    if corners.shape != (len(attention), 2):
        raise ValueError(f"{len(attention)} weights for tiles at {corners.shape}")
    longest = LARGEST if picture is None else min(LARGEST, max(picture.shape[:2]))
    factor = longest / max(size)
    width, height = (max(1, round(n * factor)) for n in size)
    if picture is None:
        ground = np.full((height, width, 3), 235, np.float32)
    else:
        ground = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX), np.float32)
    summed, count = np.zeros((height, width)), np.zeros((height, width))
    for (x, y), rank in zip(corners.tolist(), ranks(attention).tolist(), strict=True):
        rows = slice(round(y * factor), max(round((y + side) * factor), round(y * factor) + 1))
        columns = slice(round(x * factor), max(round((x + side) * factor), round(x * factor) + 1))
        summed[rows, columns] += rank
        count[rows, columns] += 1
    mean = summed / np.maximum(count, 1)
    colour = np.asarray(colormaps[COLOURS](mean))[..., :3] * 255
    cover = np.where(count > 0, COVER, 0.0)[..., None]
    return np.asarray(np.rint(ground * (1 - cover) + colour * cover), np.uint8)


def most_attended(attention: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Rows of the ``count`` instances with the most attention, most first; of equal ones the first."""
    return np.asarray(np.lexsort((np.arange(len(attention)), -attention))[:count], np.int64)


def contact_sheet(tiles: Sequence[NDArray[np.uint8]], *, columns: int = 8, px: int = 112) -> NDArray[np.uint8]:
    """Tiles or cells side by side, row by row, on white.

    Args:
        tiles: RGB pictures of any size.
        columns: in a row.
        px: side of each.
    """
    from PIL import Image

    gap = 4
    across = max(1, min(columns, len(tiles)))
    down = max(1, -(-len(tiles) // across))
    sheet = np.full((down * (px + gap) - gap, across * (px + gap) - gap, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // across) * (px + gap), (i % across) * (px + gap)
        sheet[top : top + px, left : left + px] = np.asarray(Image.fromarray(tile).resize((px, px)))
    return sheet


def attention_figure(
    corners: NDArray[np.integer],
    attention: NDArray[np.floating],
    *,
    side: float,
    size: tuple[int, int],
    key: str,
    title: str,
    picture: NDArray[np.uint8] | None = None,
    tiles: Sequence[NDArray[np.uint8]] = (),
) -> str:
    """The slide, its heat map with a scale, and below them the most attended tiles: one SVG element.

    Args:
        corners, attention, side, size, picture: as for :func:`heat_map`.
        key: unique on the page, ``[a-z][a-z0-9-]*``.
        title: what the slide is, and what the model said of it.
        tiles: the most attended, in the order of :func:`most_attended`.
    """
    heat = heat_map(corners, attention, side=side, size=size, picture=picture)
    panels = [heat] if picture is None else [_like(picture, heat), heat]
    tall, gap, scale, head = 300.0, 10.0, 92.0, 26.0
    widths = [tall * p.shape[1] / p.shape[0] for p in panels]
    if (widest := max(widths)) > 420:  # a long strip of tissue
        tall, widths = tall * 420 / widest, [w * 420 / widest for w in widths]
    total = max(sum(widths) + gap * (len(panels) - 1) + scale, 320.0)
    sheet = contact_sheet(tiles) if tiles else None
    low = 0.0 if sheet is None else min(total * sheet.shape[0] / sheet.shape[1], 124.0 * -(-len(tiles) // 8))
    height = head + tall + (low + 2 * gap + 10 if sheet is not None else gap)
    with canvas(total, height) as figure:

        def place(pixels: NDArray[np.uint8], left: float, top: float, width: float, tall: float) -> None:
            axes = figure.add_axes((left / total, 1 - (top + tall) / height, width / total, tall / height))
            axes.imshow(pixels, interpolation="none", aspect="auto")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(visible=True, color=FAINT)

        figure.text(0, 1 - 14 / height, fitted(title, total), fontweight="bold", ha="left")
        left = 0.0
        for panel, width in zip(panels, widths, strict=True):
            place(panel, left, head, width, tall)
            left += width + gap
        ramp = np.asarray(_ramp(), np.uint8)
        place(ramp, left, head, 14, min(tall, 160.0))
        for share, text in ((0.02, "most"), (0.5, "rank of\nattention"), (0.98, "least")):
            at = head + share * min(tall, 160.0)
            figure.text((left + 20) / total, 1 - at / height, text, va="center", color=QUIET, fontsize=11)
        if sheet is not None:
            top = head + tall + gap + 10
            figure.text(0, 1 - (top - 5) / height, "most attended first", color=QUIET, fontsize=11)
            place(sheet, 0, top, low * sheet.shape[1] / sheet.shape[0], low)
        alt = f"{title}: attention over the slide, by rank among {len(attention)} tiles"
        return finish(figure, key=key, alt=alt)


def _like(picture: NDArray[np.uint8], heat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((heat.shape[1], heat.shape[0]), Image.Resampling.BOX))


def _ramp() -> NDArray[np.floating]:
    from matplotlib import colormaps

    return np.asarray(colormaps[COLOURS](np.linspace(1, 0, 128)))[:, None, :3] * 255


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A picture ``(H, W, 3)`` as a PNG data URI: without loss, for flat colours."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")  # optimize=True: 4 % smaller, six times as slow
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
