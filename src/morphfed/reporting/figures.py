"""The report's figures: plain data in, an SVG string out. The same data give the same bytes.

Sizes are CSS pixels. Panels are about 430 wide, so that they stand side by side on a desk and one above the
other on a telephone without shrinking their text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from morphfed.reporting.svg import (
    FAINT,
    INK,
    QUIET,
    SMALL_PX,
    TEXT_PX,
    Look,
    axes,
    canvas,
    finish,
    fitted,
    text_width,
    widest,
)
from morphfed.reporting.text import count, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

PANEL = 430.0
WIDE = 760.0
_ROW = 21.0


@dataclass(frozen=True)
class Row:
    """One line of a forest plot.

    Attributes:
        label: at the left.
        value, low, high: the point and its interval; None where unknown.
        look: colour and marker.
        filled: a hollow marker says "no clear difference".
        note: small text at the right.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    look: Look = field(default_factory=Look)
    filled: bool = True
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One model's lines in a panel.

    Attributes:
        look: colour, marker, dashes.
        points: ``(x, y)`` of the thick line.
        thin: the same of every seed.
        marks: points to mark (the chosen round).
        sizes: images behind each point; their square root is the marker's size.
    """

    look: Look
    points: Sequence[tuple[float, float]]
    thin: Sequence[Sequence[tuple[float, float]]] = ()
    marks: Sequence[tuple[float, float]] = ()
    sizes: Sequence[float] = ()


def forest(
    rows: Sequence[Row],
    *,
    key: str,
    alt: str,
    title: str = "",
    xlabel: str,
    limits: tuple[float, float],
    zero: bool = False,
    width: float = PANEL,
) -> str:
    """Points with intervals, a line each; ``zero`` draws the line of no difference."""
    notes = [r.note for r in rows]
    right = max(10.0, widest(notes, SMALL_PX) + 14 if any(notes) else 10.0)
    left = min(widest([r.label for r in rows]) + 14, width * 0.46)
    top = 26.0 if title else 8.0
    with canvas(width, top + _ROW * max(len(rows), 1) + 40) as figure:
        plane = axes(figure, left, top, right, 40)
        plane.set(xlim=limits, ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel)
        plane.spines["left"].set_visible(False)
        plane.tick_params(axis="y", length=0, pad=6, labelsize=TEXT_PX)
        plane.set_yticks(range(len(rows)), [fitted(r.label, left - 12) for r in rows])
        plane.xaxis.set_major_locator(_locator(5))
        plane.grid(axis="x", color=FAINT, lw=0.7)
        plane.set_axisbelow(True)
        if zero:
            plane.axvline(0, color=INK, lw=1.0)
        for at, row in enumerate(rows):
            _forest_row(plane, at, row, limits)
        if title:
            _title(plane, title, width)
        return finish(figure, key=key, alt=alt)


def _forest_row(plane: Axes, at: int, row: Row, limits: tuple[float, float]) -> None:
    span = limits[1] - limits[0]
    if row.note:
        plane.annotate(
            row.note,
            (1, at),
            (10, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=SMALL_PX,
            color=INK,
        )
    if row.value is None:
        plane.text(limits[0] + span * 0.02, at, "not available", va="center", fontsize=SMALL_PX, color=QUIET)
        return
    if row.low is not None and row.high is not None:
        plane.plot([row.low, row.high], [at, at], color=row.look.colour, lw=1.8, solid_capstyle="butt")
    plane.plot(
        [row.value],
        [at],
        row.look.marker,
        ms=6.5,
        color=row.look.colour,
        mfc=row.look.colour if row.filled else "white",
        mew=1.3,
        clip_on=False,
    )


def lines(
    series: Sequence[Series],
    *,
    key: str,
    alt: str,
    title: str,
    xlabel: str,
    ylabel: str,
    ylimits: tuple[float, float],
    xlimits: tuple[float, float],
    whole_x: bool = False,
    identity: bool = False,
    width: float = PANEL,
    height: float = 270.0,
) -> str:
    """Lines of several models: thin per seed, thick for the mean; ``identity`` draws the diagonal."""
    with canvas(width, height) as figure:
        plane = axes(figure, 48, 28, 12, 42)
        plane.set(xlim=xlimits, ylim=ylimits, xlabel=xlabel, ylabel=ylabel)
        plane.grid(color=FAINT, lw=0.7)
        plane.set_axisbelow(True)
        plane.xaxis.set_major_locator(_locator(6, whole=whole_x))
        plane.yaxis.set_major_locator(_locator(5))
        if identity:
            plane.plot([0, 1], [0, 1], color=QUIET, lw=0.9, ls=(0, (2, 2)))
        for s in series:
            for thin in s.thin:
                plane.plot(*_xy(thin), color=s.look.colour, lw=0.7, alpha=0.45)
        for s in series:
            _thick(plane, s, alone=len(s.points) < 2)
        _title(plane, title, width)
        return finish(figure, key=key, alt=alt)


def _thick(plane: Axes, s: Series, *, alone: bool) -> None:
    plane.plot(*_xy(s.points), color=s.look.colour, linestyle=s.look.line, lw=1.9)
    if s.sizes:
        largest = max(s.sizes) or 1.0
        for (x, y), n in zip(s.points, s.sizes, strict=True):
            size = 3.0 + 5.0 * (n / largest) ** 0.5
            plane.plot(
                [x], [y], s.look.marker, ms=size, color=s.look.colour, mec="white", mew=0.6, clip_on=False
            )
    marks = [*s.marks, *(s.points if alone else ())]
    if marks:
        plane.plot(*_xy(marks), s.look.marker, ms=6, color=s.look.colour, mec="white", mew=0.8, clip_on=False)


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
    """
    left = min(widest(rows) + 40, 240.0)
    turned = widest(columns) > 62
    side = 70.0
    below = (min(widest(columns), 150.0) * 0.72 + 34) if turned else 46.0
    gap = 0.18
    xs = [i + (gap if column_break is not None and i >= column_break else 0.0) for i in range(len(columns))]
    ys = [i + (gap if row_break is not None and i >= row_break else 0.0) for i in range(len(rows))]
    high = 34.0
    far_x, far_y = xs[-1] + 1, ys[-1] + 1
    with canvas(left + side * far_x + 12, 8 + high * far_y + below) as figure:
        plane = axes(figure, left, 8, 12, below)
        plane.set(xlim=(0, far_x), ylim=(far_y, 0), xlabel=xlabel, ylabel=ylabel)
        _matrix_axes(plane, [x + 0.5 for x in xs], [y + 0.5 for y in ys])
        plane.set_xticklabels(
            [fitted(c, 150) for c in columns],
            rotation=40 if turned else 0,
            ha="right" if turned else "center",
        )
        plane.set_yticklabels([fitted(r, left - 34) for r in rows])
        for y, line in zip(ys, values, strict=True):
            for x, value in zip(xs, line, strict=True):
                _cell(plane, x, y, value, limits, score(value, 2), TEXT_PX)
        for i, j in boxed:
            _frame(plane, xs[j], ys[i])
        return finish(figure, key=key, alt=alt)


def confusion(
    classes: Sequence[str], counts: Sequence[Sequence[float]], *, key: str, alt: str, title: str
) -> str:
    """Counts, coloured by the share of their row (the true class); rows without images stay empty."""
    n = len(classes)
    side = 46.0 if n <= 8 else 32.0 if n <= 14 else 27.0
    size = TEXT_PX if n <= 8 else SMALL_PX if n <= 14 else 9.0
    margin = min(widest(classes, SMALL_PX) + 30, 150.0)
    below = min(widest(classes, SMALL_PX), 130.0) + 26
    width = max(margin + n * side + 12, margin + text_width(title) * 0.6)
    with canvas(width, 28 + n * side + below) as figure:
        plane = axes(figure, margin, 28, width - margin - n * side, below)
        plane.set(xlim=(0, n), ylim=(n, 0), xlabel="predicted", ylabel="truth")
        _matrix_axes(plane, [i + 0.5 for i in range(n)], [i + 0.5 for i in range(n)])
        names = [fitted(c, 120, SMALL_PX) for c in classes]
        plane.set_xticklabels(names, rotation=90)
        plane.set_yticklabels(names)
        for i, row in enumerate(counts):
            total = sum(row)
            for j, value in enumerate(row):
                share = value / total if total else None
                written = count(value) if total and value else ""
                _cell(plane, j, i, share, (0.0, 1.0), written, size if value < 1000 else size - 2)
            _frame(plane, i, i)
        _title(plane, title, width)
        return finish(figure, key=key, alt=alt)


def colours(
    sites: Sequence[str],
    means: Sequence[Sequence[float]],
    sds: Sequence[Sequence[float]],
    *,
    key: str,
    alt: str,
) -> str:
    """Mean red, green and blue (0–1) of each site's pictures, with one standard deviation."""
    channels = (("red", "#b0303f", "o"), ("green", "#2d7d46", "s"), ("blue", "#2c5aa0", "D"))
    left = min(widest(sites) + 14, 170.0)
    height = 34.0 * len(sites)
    with canvas(PANEL + 40, height + 74) as figure:
        plane = axes(figure, left, 30, 14, 44)
        plane.set(xlim=(0, 1), ylim=(len(sites) - 0.5, -0.5), xlabel="mean of the channel (0 dark, 1 bright)")
        plane.set_yticks(range(len(sites)), [fitted(s, left - 12) for s in sites])
        plane.tick_params(axis="y", length=0, labelsize=TEXT_PX)
        plane.spines["left"].set_visible(False)
        plane.grid(axis="x", color=FAINT, lw=0.7)
        plane.set_axisbelow(True)
        for c, (name, colour, marker) in enumerate(channels):
            for i, (mean, sd) in enumerate(zip(means, sds, strict=True)):
                y = i + (c - 1) * 0.22
                plane.plot([max(0, mean[c] - sd[c]), min(1, mean[c] + sd[c])], [y, y], color=colour, lw=1.5)
                plane.plot([mean[c]], [y], marker, ms=5.5, color=colour, mec="white", mew=0.6)
            plane.plot([], [], marker, ms=5.5, color=colour, label=name)
        plane.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=3,
            frameon=False,
            fontsize=SMALL_PX,
            handletextpad=0.2,
            columnspacing=1.2,
            borderaxespad=0.2,
        )
        return finish(figure, key=key, alt=alt)


def _matrix_axes(plane: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    plane.set_xticks(xs)
    plane.set_yticks(ys)
    plane.tick_params(length=0, pad=5)
    for spine in plane.spines.values():
        spine.set_visible(False)


def _cell(
    plane: Axes, x: float, y: float, value: float | None, limits: tuple[float, float], text: str, size: float
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    if value is None:
        plane.add_patch(Rectangle((x, y), 1, 1, fc="#f3f4f6", ec="white", lw=1.2, clip_on=False))
        return
    low, high = limits
    share = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5
    red, green, blue, _ = colormaps["cividis"](share)
    plane.add_patch(Rectangle((x, y), 1, 1, fc=to_hex((red, green, blue)), ec="white", lw=1.2, clip_on=False))
    if text:
        bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45
        plane.text(
            x + 0.5,
            y + 0.5,
            text,
            ha="center",
            va="center_baseline",
            fontsize=size,
            color=INK if bright else "white",
        )


def _frame(plane: Axes, x: float, y: float) -> None:
    from matplotlib.patches import Rectangle

    plane.add_patch(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, fc="none", ec=INK, lw=1.1, clip_on=False))


def _title(plane: Axes, title: str, width: float) -> None:
    """A panel's name at its left upper corner, above the axis labels rather than above the axes."""
    from matplotlib.transforms import ScaledTranslation

    figure = plane.get_figure(root=True)
    assert figure is not None
    corner = figure.transFigure + ScaledTranslation(2 / 72, -8 / 72, figure.dpi_scale_trans)
    shown = fitted(title, width - 6)
    figure.text(0, 1, shown, transform=corner, ha="left", va="top", fontweight="bold", color=INK)


def _locator(most: int, *, whole: bool = False) -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=whole, steps=[1, 2, 2.5, 5, 10])


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [p[0] for p in points], [p[1] for p in points]
