"""Colour statistics of every site, as numbers and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from morphfed.core.errors import DataError
from morphfed.core.files import writing
from morphfed.data.quality.context import Context
from morphfed.data.quality.findings import CheckReport, SiteColour

# Okabe & Ito's palette, told apart under every common colour blindness; shapes repeat what colours say.
_CHANNELS = (("red", "#D55E00", "s"), ("green", "#009E73", "o"), ("blue", "#0072B2", "^"))
_SITES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_MARKERS = "os^Dv<>P"


def site_colours(context: Context) -> dict[str, SiteColour]:
    """Statistics by site, over readable images."""
    colours = {}
    for site, _, measured in context.readable():
        means = np.array([m.mean for m in measured if m.mean is not None])
        within = np.mean([m.variance for m in measured if m.variance is not None], axis=0)
        colours[site] = SiteColour(
            n=len(means),
            mean=means.mean(axis=0),
            sd=np.sqrt(within + means.var(axis=0)),
            between=means.std(axis=0),
            palette=np.mean([m.palette for m in measured if m.palette is not None], axis=0),
            images=means,
        )
    return colours


def colour_figure(report: CheckReport, path: Path) -> Path:
    """Draw the sites' colours: palettes, channel means with spread, and every image as a point.

    Args:
        report: of :func:`morphfed.data.quality.check`.
        path: ``.png``, ``.svg`` or ``.pdf``.

    Returns:
        ``path``.

    Raises:
        DataError: no site has a readable image, or the suffix is none of the three.
        StorageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise DataError(f"{path}: a figure is a .png, .svg or .pdf file.", fix="choose one of these suffixes.")
    if not report.colour:
        raise DataError("No site has a readable image to draw colours of.", fix="mend the findings first.")
    rows = len(report.colour)
    figure = Figure(figsize=(12, 2.2 + 0.55 * max(rows, 3)), layout="constrained")
    palettes, channels, points = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.3))
    _draw_palettes(palettes, report.colour)
    _draw_channels(channels, report.colour)
    _draw_points(points, report.colour)
    with writing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)
    return path


def _draw_palettes(axes: Any, colours: dict[str, SiteColour]) -> None:
    axes.imshow(np.array([one.palette for one in colours.values()]), aspect="auto")
    axes.set_yticks(range(len(colours)), [f"{site}\nn = {one.n:,}" for site, one in colours.items()])
    axes.set_xticks((0, 4), ("darkest fifth", "brightest fifth"))
    axes.set_title("Mean colours from nucleus to background", fontsize=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_channels(axes: Any, colours: dict[str, SiteColour]) -> None:
    places = np.arange(len(colours))
    for channel, (name, colour, marker) in enumerate(_CHANNELS):
        mean = [255 * one.mean[channel] for one in colours.values()]
        spread = [255 * one.between[channel] for one in colours.values()]
        axes.errorbar(mean, places + 0.16 * (channel - 1), xerr=spread, fmt=marker, color=colour, label=name, capsize=3)
    axes.set_yticks(places, list(colours))
    axes.set_ylim(len(colours) - 0.5, -0.5)
    axes.set_xlabel("mean ± spread between images (0–255)")
    axes.set_title("Channels", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="best")
    axes.grid(axis="x", alpha=0.3)


def _draw_points(axes: Any, colours: dict[str, SiteColour]) -> None:
    for index, (site, one) in enumerate(colours.items()):
        shown = one.images[:: max(1, len(one.images) // 500)] * 255  # more points only hide each other
        axes.scatter(
            shown.mean(axis=1), shown[:, 0] - shown[:, 2], s=14, alpha=0.5, linewidths=0, label=site,
            color=_SITES[index % len(_SITES)], marker=_MARKERS[index % len(_MARKERS)],
        )  # fmt: skip
    axes.set_xlabel("brightness (mean of the channels)")
    axes.set_ylabel("warmth (red − blue)")
    axes.set_title("Every image", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="best")
    axes.grid(alpha=0.3)
