"""Matrices as figures: models away from home, and confusion of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morphfed.reporting.svg import INK, SMALL_PX, TEXT_PX, canvas, finish, fitted, panel_title, text_width, widest
from morphfed.reporting.text import count, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    key: str,
    alt: str,
    xlabel: str,
    ylabel: str,
    limits: tuple[float, float],
    boxed: Sequence[tuple[int, int]] = (),
    row_break: int | None = None,
    column_break: int | None = None,
    title: str = "",
) -> str:
    """A matrix with its numbers; cividis.

    Args:
        rows, columns: names.
        values: ``(rows, columns)``; None is left empty.
        key, alt: see :func:`morphfed.reporting.svg.finish`.
        xlabel, ylabel: what columns and rows are.
        limits: values of the darkest and the lightest colour.
        boxed: cells with a frame (a model at home).
        row_break, column_break: a white gap before this row or column.
        title: above it.
    """
    written = [["" if v is None else score(v, 2) for v in line] for line in values]
    return _matrix(
        _Matrix(
            rows=[fitted(r, 210) for r in rows],
            columns=[fitted(c, 150) for c in columns],
            shares=values,
            written=written,
            limits=limits,
            framed=boxed,
            side=(74.0, 36.0),
            size=TEXT_PX,
            label_size=TEXT_PX,
            turn=40 if widest(columns) > 68 else 0,
            row_break=row_break,
            column_break=column_break,
            xlabel=xlabel,
            ylabel=ylabel,
            title=title,
        ),
        key=key,
        alt=alt,
    )


def confusion(classes: Sequence[str], counts: Sequence[Sequence[float]], *, key: str, alt: str, title: str) -> str:
    """Counts, coloured by the share of their row (the true class); where there are none the cell stays pale."""
    n = len(classes)
    side = 46.0 if n <= 8 else 32.0 if n <= 14 else 27.0
    names = [fitted(c, 130, SMALL_PX) for c in classes]
    shares = [[v / sum(row) if sum(row) else None for v in row] for row in counts]
    return _matrix(
        _Matrix(
            rows=names,
            columns=names,
            shares=shares,
            written=[[count(v) if v else "" for v in row] for row in counts],
            limits=(0.0, 1.0),
            framed=[(i, i) for i in range(n)],
            side=(side, side),
            size=TEXT_PX if n <= 8 else SMALL_PX if n <= 14 else 9.0,
            label_size=SMALL_PX,
            turn=90,
            xlabel="predicted",
            ylabel="truth",
            title=title,
        ),
        key=key,
        alt=alt,
    )


@dataclass(frozen=True)
class _Matrix:
    """A matrix to draw; ``side`` is a cell's width and height, ``turn`` the angle of the column names."""

    rows: Sequence[str]
    columns: Sequence[str]
    shares: Sequence[Sequence[float | None]]
    written: Sequence[Sequence[str]]
    limits: tuple[float, float]
    framed: Sequence[tuple[int, int]]
    side: tuple[float, float]
    size: float
    label_size: float
    turn: int
    xlabel: str
    ylabel: str
    title: str = ""
    row_break: int | None = None
    column_break: int | None = None


def _matrix(m: _Matrix, *, key: str, alt: str) -> str:
    """Draw a matrix in pixels: cells as one collection and names as text are much faster than axes with ticks."""
    wide, high = m.side
    gap = 12.0
    left, top = widest(m.rows, m.label_size) + 36, 30.0 if m.title else 8.0
    names = widest(m.columns, m.label_size)
    below = {0: 20.0, 90: names + 10}.get(m.turn, names * 0.7 + 18) + 24
    xs = [left + i * wide + (gap if m.column_break and i >= m.column_break else 0) for i in range(len(m.columns))]
    ys = [top + i * high + (gap if m.row_break and i >= m.row_break else 0) for i in range(len(m.rows))]
    bottom = ys[-1] + high
    width = max(xs[-1] + wide + 12, min(text_width(m.title) * 1.1 + 6, left + 200))
    with canvas(width, bottom + below) as figure:
        plane = figure.add_axes((0, 0, 1, 1))
        plane.set_axis_off()
        plane.set(xlim=(0, width), ylim=(bottom + below, 0))
        _cells(plane, m, xs, ys)
        style: dict[str, Any] = {"fontsize": m.label_size, "color": INK}
        for x, name in zip(xs, m.columns, strict=True):
            if m.turn:
                turned: dict[str, Any] = {"rotation": m.turn, "rotation_mode": "anchor", "ha": "right"}
                plane.text(x + wide / 2, bottom + 8, name, va="center" if m.turn == 90 else "top", **turned, **style)
            else:
                plane.text(x + wide / 2, bottom + 6, name, ha="center", va="top", **style)
        for y, name in zip(ys, m.rows, strict=True):
            plane.text(left - 8, y + high / 2, name, ha="right", va="center_baseline", **style)
        plane.text((left + xs[-1] + wide) / 2, bottom + below - 4, m.xlabel, ha="center", va="bottom", color=INK)
        plane.text(14, (top + bottom) / 2, m.ylabel, ha="center", va="center", rotation=90, color=INK)
        if m.title:
            panel_title(plane, m.title, width)
        return finish(figure, key=key, alt=alt)


def _cells(plane: Axes, m: _Matrix, xs: Sequence[float], ys: Sequence[float]) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    (wide, high), (low, top) = m.side, m.limits
    boxes, fills = [], []
    for y, line, words in zip(ys, m.shares, m.written, strict=True):
        for x, value, text in zip(xs, line, words, strict=True):
            boxes.append(Rectangle((x, y), wide, high))
            if not value and not text:  # nothing here: paper shows through, so that what is there stands out
                fills.append((0.953, 0.957, 0.965, 1.0))
                continue
            share = min(max(((value or low) - low) / (top - low), 0.0), 1.0) if top > low else 0.5
            red, green, blue, _ = colour = colormaps["cividis"](share)
            fills.append(colour)
            if text:
                size = m.size if len(text) < 4 or wide > 60 else m.size - 2
                style: dict[str, Any] = {"fontsize": size, "color": _ink(red, green, blue)}
                plane.text(x + wide / 2, y + high / 2, text, ha="center", va="center_baseline", **style)
    plane.add_collection(PatchCollection(boxes, facecolors=fills, edgecolors="white", linewidths=1.2))
    frames = [Rectangle((xs[j] + 1.2, ys[i] + 1.2), wide - 2.4, high - 2.4) for i, j in m.framed]
    plane.add_collection(PatchCollection(frames, facecolors="none", edgecolors=INK, linewidths=1.1))


def _ink(red: float, green: float, blue: float) -> str:
    """Black or white, whichever has more contrast on a colour (relative luminance of WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"
