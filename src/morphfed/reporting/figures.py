"""The report's figures: plain data in, an SVG string out. The same data give the same bytes.

Sizes are CSS pixels. Panels are about 430 wide, so that they stand side by side on a desk and one above the
other on a telephone without shrinking their text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    panel_title,
    widest,
)

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
        plane.set(xlim=limits, ylim=(max(len(rows), 1) - 0.5, -0.5), xlabel=xlabel)
        plane.spines["left"].set_visible(False)
        plane.tick_params(axis="y", length=0, pad=6, labelsize=TEXT_PX)
        plane.set_yticks(range(len(rows)), [fitted(r.label, left - 12) for r in rows])
        plane.xaxis.set_major_locator(locator(5))
        plane.grid(axis="x", color=FAINT, lw=0.7)
        plane.set_axisbelow(True)
        if zero:
            plane.axvline(0, color=INK, lw=1.0)
        for at, row in enumerate(rows):
            _forest_row(plane, at, row, limits)
        if title:
            panel_title(plane, title, width)
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
        plane.xaxis.set_major_locator(locator(6, whole=whole_x))
        plane.yaxis.set_major_locator(locator(5))
        if identity:
            plane.plot([0, 1], [0, 1], color=QUIET, lw=0.9, ls=(0, (2, 2)))
        for s in series:
            for thin in s.thin:
                plane.plot(*_xy(thin), color=s.look.colour, lw=0.7, alpha=0.45)
        for s in series:
            _thick(plane, s, alone=len(s.points) < 2)
        panel_title(plane, title, width)
        return finish(figure, key=key, alt=alt)


def _thick(plane: Axes, s: Series, *, alone: bool) -> None:
    plane.plot(*_xy(s.points), color=s.look.colour, linestyle=s.look.line, lw=1.9)
    if s.sizes:
        largest = max(s.sizes) or 1.0
        for (x, y), n in zip(s.points, s.sizes, strict=True):
            size = 3.0 + 5.0 * (n / largest) ** 0.5
            plane.plot([x], [y], s.look.marker, ms=size, color=s.look.colour, mec="white", mew=0.6, clip_on=False)
    marks = [*s.marks, *(s.points if alone else ())]
    if marks:
        plane.plot(*_xy(marks), s.look.marker, ms=6, color=s.look.colour, mec="white", mew=0.8, clip_on=False)


def dodged(
    labels: Sequence[str],
    series: Sequence[tuple[Look, Sequence[tuple[float | None, float | None, float | None]]]],
    *,
    key: str,
    alt: str,
    xlabel: str,
    limits: tuple[float, float],
    notes: Sequence[str] = (),
    note_title: str = "",
    width: float = WIDE,
) -> str:
    """Several models' points with intervals in one band a label, one below the other.

    Args:
        labels: names of the bands.
        series: a look, and for every label ``(value, low, high)``.
        key, alt: see :func:`morphfed.reporting.svg.finish`.
        xlabel: below the axis.
        limits: of the axis.
        notes: at the right of every band, with ``note_title`` above them.
        note_title: what the notes are.
        width: in pixels.
    """
    step = 10.0
    band = max(22.0, step * len(series) + 12)
    left = min(widest(labels) + 16, width * 0.4)
    right = max(12.0, widest([*notes, note_title], SMALL_PX) + 18 if notes else 12.0)
    top = 24.0 if note_title else 8.0
    height = band * len(labels)
    with canvas(width, top + height + 42) as figure:
        plane = axes(figure, left, top, right, 42)
        plane.set(xlim=limits, ylim=(height, 0), xlabel=xlabel)
        plane.spines["left"].set_visible(False)
        plane.tick_params(axis="y", length=0, pad=8, labelsize=TEXT_PX)
        middles = [band * (i + 0.5) for i in range(len(labels))]
        plane.set_yticks(middles, [fitted(name, left - 14) for name in labels])
        plane.xaxis.set_major_locator(locator(6))
        plane.grid(axis="x", color=FAINT, lw=0.7)
        plane.set_axisbelow(True)
        for i in range(1, len(labels)):
            plane.axhline(band * i, color=FAINT, lw=0.7)
        for n, (look, points) in enumerate(series):
            offset = step * (n - (len(series) - 1) / 2)
            _dodged_points(plane, look, points, [m + offset for m in middles])
        beside: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "fontsize": SMALL_PX,
        }
        for middle, note in zip(middles, notes, strict=False):
            plane.annotate(note, (1, middle), (12, 0), va="center", color=INK, **beside)
        if note_title:
            plane.annotate(note_title, (1, 0), (12, 6), va="bottom", color=QUIET, **beside)
        return finish(figure, key=key, alt=alt)


def _dodged_points(
    plane: Axes,
    look: Look,
    points: Sequence[tuple[float | None, float | None, float | None]],
    ys: Sequence[float],
) -> None:
    spans = [(lo, hi, y) for (_, lo, hi), y in zip(points, ys, strict=True) if lo is not None and hi is not None]
    known = [(value, y) for (value, _, _), y in zip(points, ys, strict=True) if value is not None]
    if spans:
        lows, highs, at = zip(*spans, strict=True)
        plane.hlines(at, lows, highs, colors=look.colour, lw=1.5)
    plane.plot(*_xy(known), look.marker, ms=5.5, color=look.colour, mec="white", mew=0.5, clip_on=False)


def survival_curves(
    curves: Sequence[tuple[Look, Sequence[Sequence[float]]]], *, key: str, alt: str, title: str, width: float = PANEL
) -> str:
    """Kaplan–Meier curves: steps ``[months, survival]`` from ``[0, 1]``, each value from its time on."""
    with canvas(width, 230) as figure:
        plane = axes(figure, 50, 26, 12, 40)
        plane.set(ylim=(0, 1.02), xlabel="months", ylabel="survival")
        plane.grid(axis="y", color=FAINT, lw=0.7)
        plane.set_axisbelow(True)
        for look, curve in curves:
            plane.plot(*_xy([(p[0], p[1]) for p in curve]), drawstyle="steps-post", color=look.colour, ls=look.line)
        plane.set_xlim(left=0)
        plane.xaxis.set_major_locator(locator(6))
        panel_title(plane, title, width)
        return finish(figure, key=key, alt=alt)


def locator(most: int, *, whole: bool = False) -> MaxNLocator:
    """At most so many round ticks; ``whole``: at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=whole, steps=[1, 2, 2.5, 5, 10])


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [p[0] for p in points], [p[1] for p in points]
