"""Checks of looks: exposure, focus, content, and images that do not look like the rest of their site.

Absolute limits are cleanvision's, with its thresholds; limits relative to the site are robust z-scores: what
is sharp or bright differs between cameras.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from morphfed.data.quality.context import Context, robust_z
from morphfed.data.quality.findings import Finding, examples

MIN_IMAGES = 20
"""A site with fewer readable images has no "usual" look to compare with."""

_SOFT = -4.0  # robust z of the focus measure
_COLOUR = 6.0  # robust z of the background's colour
_GREY_LEVELS = 3 / 255  # the spread of a background is never taken to be smaller than this
_CHROMA = 0.04  # a picture whose most colourful pixel is below this holds no stain

_ABSOLUTE = {
    "dark": (
        "under-exposed: even the brightest pixels are dark",
        "correct the exposure, or leave these images out.",
    ),
    "light": (
        "over-exposed: even the darkest pixels are light",
        "correct the exposure, or leave these images out.",
    ),
    "low_information": (
        "nearly empty: the brightness hardly varies",
        "remove empty fields from the manifest.",
    ),
    "blurry": ("without any sharp edge", "focus again, or leave these images out."),
}


def absolute_outliers(context: Context) -> Iterator[Finding]:
    """Images that cleanvision finds dark, light, blurry or of low information."""
    from cleanvision.issue_managers.image_property_issue_manager import ImagePropertyIssueManager

    manager = ImagePropertyIssueManager()
    for site, rows, measured in context.readable():
        looks = pd.DataFrame([m.looks for m in measured], index=rows.index)
        for issue, (words, fix) in _ABSOLUTE.items():
            flagged = _flagged(manager, issue, looks)
            if flagged.any():
                yield Finding(
                    issue.replace("_", "-"), "warning", site, int(flagged.sum()),
                    f"{flagged.sum()} of {len(rows)} images are {words}",
                    examples(list(rows["path"][flagged])),
                    fix,
                )  # fmt: skip


def _flagged(manager: Any, issue: str, looks: pd.DataFrame) -> Any:
    rule, limits = manager.image_properties[issue], dict(manager.params[issue])
    threshold = limits.get("threshold")
    scores = rule.get_scores(raw_scores=looks[rule.score_columns], issue_type=issue, **limits)
    return rule.mark_issue(scores=scores, issue_type=issue, threshold=threshold)[f"is_{issue}_issue"].to_numpy(bool)


def colourless_images(context: Context) -> Iterator[Finding]:
    """Images without any colour among stained ones, whatever their mode says."""
    for site, rows, measured in context.readable():
        grey = np.array([m.looks["chroma"] < _CHROMA for m in measured])
        if grey.any():
            yield Finding(
                "grey", "warning", site, int(grey.sum()),
                f"{grey.sum()} of {len(rows)} images hold no colour",
                examples(list(rows["path"][grey])),
                "use the colour originals: the stain is what tells many classes apart.",
            )  # fmt: skip


def out_of_focus(context: Context) -> Iterator[Finding]:
    """Images with much less fine detail than the site's others."""
    for site, rows, measured in context.readable():
        if len(rows) < MIN_IMAGES:
            continue
        soft = robust_z(np.array([m.looks["focus"] for m in measured]), floor=0.1) < _SOFT
        if soft.any():
            yield Finding(
                "out-of-focus", "warning", site, int(soft.sum()),
                f"{soft.sum()} of {len(rows)} images hold far less fine detail than the site's others",
                examples(list(rows["path"][soft])),
                "look at them: blurred, enlarged, or from another camera; leave out what no eye can judge.",
            )  # fmt: skip


def colour_outliers(context: Context) -> Iterator[Finding]:
    """Images whose background differs from the site's: another stain, another lamp, another white balance."""
    for site, rows, measured in context.readable():
        if len(rows) < MIN_IMAGES:
            continue
        background = np.array([m.palette[-1] for m in measured if m.palette is not None])
        other = np.abs(robust_z(background, floor=_GREY_LEVELS)).max(axis=1) > _COLOUR
        if other.any():
            usual, found = (np.median(background[k], axis=0) * 255 for k in (~other, other))
            yield Finding(
                "colour-outlier", "warning", site, int(other.sum()),
                f"{other.sum()} of {len(rows)} images have another background (RGB {_rgb(found)}) than "
                f"the site's others (RGB {_rgb(usual)})",
                examples(list(rows["path"][other])),
                "look at them; if they come from another acquisition, give them a site of their own.",
            )  # fmt: skip


def _rgb(colour: Any) -> str:
    return " ".join(f"{value:.0f}" for value in colour)


CHECKS = (absolute_outliers, colourless_images, out_of_focus, colour_outliers)
