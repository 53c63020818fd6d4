"""Small multiples of what communication does: local training lifts a score, the next model takes over from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from morphfed.reporting.figures import WIDE, locator
from morphfed.reporting.svg import FAINT, INK, QUIET, SMALL_PX, Look, canvas, finish, fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Steps = Sequence[tuple[float, float, float]]
"""``(round, before, after)``, in the order of the rounds."""

_LEFT, _TOP, _RIGHT, _BOTTOM = 52.0, 40.0, 8.0, 40.0
_GAP, _NAME, _HEIGHT, _LEAST = 14.0, 24.0, 92.0, 92.0
_MARKED = 9.0
"""Pixels that a round must have for its points to be marked."""


@dataclass(frozen=True)
class Teeth:
    """One arm at one site.

    Attributes:
        steps: mean over seeds; empty where nothing was recorded.
        thin: the same of every seed.
        note: short text above the panel at its right.
    """

    steps: Steps = ()
    thin: Sequence[Steps] = ()
    note: str = ""


@dataclass(frozen=True)
class Rank:
    """One row of panels: an arm at every site."""

    name: str
    look: Look
    panels: Sequence[Teeth]


def sawtooth(
    ranks: Sequence[Rank],
    columns: Sequence[tuple[str, str]],
    *,
    key: str,
    alt: str,
    ylabel: str,
    xlimits: tuple[float, float],
    ylimits: tuple[float, float],
    rise_is_loss: bool = False,
) -> str:
    """Panels of arms (rows) × sites (columns) on the same axes.

    A thin grey line is local training, a stroke the communication at the end of a round: from a hollow point (the model
    just trained) to a filled one (the model that the site goes on with), in the arm's colour where the site lost.

    Args:
        ranks: rows, each with a panel for every column.
        columns: a site's name, and a line below it.
        key, alt: see :func:`morphfed.reporting.svg.finish`.
        ylabel: what is drawn.
        xlimits, ylimits: of all panels.
        rise_is_loss: whether a higher value is worse.
    """
    width = max(WIDE, _LEFT + _RIGHT + len(columns) * (_LEAST + _GAP))
    each = (width - _LEFT - _RIGHT - _GAP * (len(columns) - 1)) / len(columns)
    height = _TOP + len(ranks) * (_NAME + _HEIGHT) + _BOTTOM
    with canvas(width, height) as figure:
        for at, (name, below) in enumerate(columns):
            left = (_LEFT + at * (each + _GAP)) / width
            bold = fitted(name, each * 0.9)
            figure.text(left, 1 - 10 / height, bold, ha="left", va="center", fontweight="bold", color=INK)
            small = fitted(below, each, SMALL_PX)
            figure.text(left, 1 - 26 / height, small, ha="left", va="center", fontsize=SMALL_PX, color=QUIET)
        for row, rank in enumerate(ranks):
            top = _TOP + row * (_NAME + _HEIGHT)
            for at, panel in enumerate(rank.panels):
                left, low = _LEFT + at * (each + _GAP), height - top - _NAME - _HEIGHT
                plane = figure.add_axes((left / width, low / height, each / width, _HEIGHT / height))
                _dress(plane, xlimits, ylimits, first=at == 0, last=row == len(ranks) - 1)
                _draw(plane, panel, rank.look, rise_is_loss, each / (xlimits[1] - xlimits[0]) >= _MARKED)
                where, above = (left + each) / width, 1 - (top + _NAME - 7) / height
                figure.text(where, above, panel.note, ha="right", va="center", fontsize=SMALL_PX, color=INK)
                if at == 0:
                    shown = fitted(rank.name, each - 44)
                    figure.text(_LEFT / width, above, shown, ha="left", va="center", color=rank.look.colour)
        middle = 1 - (_TOP + len(ranks) * (_NAME + _HEIGHT) / 2) / height
        figure.text(10 / width, middle, ylabel, rotation=90, ha="center", va="center")
        figure.text((_LEFT + width - _RIGHT) / 2 / width, 8 / height, "round", ha="center", va="center")
        return finish(figure, key=key, alt=alt)


def _dress(plane: Axes, xlimits: tuple[float, float], ylimits: tuple[float, float], *, first: bool, last: bool) -> None:
    plane.set(xlim=xlimits, ylim=ylimits)
    plane.grid(color=FAINT, lw=0.6)
    plane.set_axisbelow(True)
    plane.xaxis.set_major_locator(locator(4, whole=True))
    plane.yaxis.set_major_locator(locator(4))
    plane.tick_params(axis="x", labelbottom=last, length=3 if last else 0)
    plane.tick_params(axis="y", labelleft=first, length=3 if first else 0)


def _draw(plane: Axes, panel: Teeth, look: Look, rise_is_loss: bool, marked: bool) -> None:
    for steps in panel.thin:
        xs = [x for x, _, _ in steps for _ in (0, 1)]
        plane.plot(xs, [y for _, before, after in steps for y in (before, after)], color=look.colour, lw=0.6, alpha=0.3)
    steps = panel.steps
    if not steps:
        plane.text(0.5, 0.5, "not recorded", transform=plane.transAxes, ha="center", fontsize=SMALL_PX, color=QUIET)
        return
    for (x0, _, after), (x1, before, _) in pairwise(steps):
        plane.plot([x0, x1], [after, before], color=QUIET, lw=0.8)
    for x, before, after in steps:
        lost = (after > before) if rise_is_loss else (after < before)
        colour = look.colour if lost else QUIET
        plane.plot([x, x], [before, after], color=colour, lw=2.2 if lost else 1.2, solid_capstyle="butt")
        if marked:
            plane.plot([x], [before], "o", ms=3.4, mfc="white", mec=colour, mew=0.9, clip_on=False)
            plane.plot([x], [after], "o", ms=3.4, mfc=colour, mec=colour, mew=0.9, clip_on=False)
