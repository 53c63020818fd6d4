"""Pictures with outlines: what is true, and what a model drew, of a site's best, middle and worst cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.evaluation.masks import mean_over_structures
from morphfed.experiment.pictures import data_uri

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from morphfed.evaluation.cases import Cases
    from morphfed.training.dataset import MaskSet

EACH = 2
"""Cases of each kind."""

LEAST_SIDE = 192
"""Small pictures are enlarged to this side, so that an outline covers little of them."""

TRUTH = (255, 255, 255)
DRAWN = {
    "blue": (0, 90, 255),
    "orange": (230, 97, 0),
    "green": (0, 158, 115),
    "pink": (204, 121, 167),
    "yellow": (240, 228, 66),
}
"""Colours of the structures in turn, after Okabe and Ito: told apart also by most colour-blind readers."""


def overlays(cases: Cases, data: MaskSet, drawn: Mapping[str, NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """The best, the middle and the worst cases by mean Dice, as pictures.

    Args:
        cases: scores.
        data: the pictures and true masks.
        drawn: id → mask ``(S, S)``.
    """
    dice = cases.values("dice")
    means = mean_over_structures(dice.T)
    known = np.flatnonzero(~np.isnan(means))
    order = known[np.lexsort((cases.ids[known], means[known]))]
    middle = max(0, (len(order) - EACH) // 2)
    chosen = {"worst": order[:EACH], "median": order[middle : middle + EACH], "best": order[::-1][:EACH]}
    rows = {str(name): i for i, name in enumerate(data.ids)}
    found, taken = [], set()
    for kind, some in chosen.items():
        for i in some.tolist():
            if i in taken:  # few cases: none is shown twice
                continue
            taken.add(i)
            name = str(cases.ids[i])
            at = np.array([rows[name]])
            picture, truth = data.store.gather(data.rows[at])[0], data.masks.gather(data.labels[at])[0]
            each = {s: None if np.isnan(v) else float(v) for s, v in zip(cases.structures, dice[i], strict=True)}
            image = with_outlines(picture, truth=truth, drawn=drawn[name])
            found.append({"path": name, "kind": kind, "dice": float(means[i]), "structures": each, "image": image})
    return found


def with_outlines(
    picture: NDArray[np.uint8], *, truth: NDArray[np.uint8] | None = None, drawn: NDArray[np.uint8] | None = None
) -> str:
    """A picture with the outlines of two masks, as a data URI.

    Args:
        picture: ``(S, S, 3)``.
        truth: ``(S, S)``, outlined in white where ``drawn`` is given, else in the structures' colours.
        drawn: ``(S, S)``, outlined in the structures' colours.
    """
    factor = max(1, -(-LEAST_SIDE // picture.shape[0]))
    canvas = picture.repeat(factor, axis=0).repeat(factor, axis=1).copy()
    colours = list(DRAWN.values())
    if drawn is None:
        truth, drawn = None, truth
    for mask, plain in ((truth, True), (drawn, False)):
        if mask is None:
            continue
        large = mask.repeat(factor, axis=0).repeat(factor, axis=1)
        for k in range(1, int(mask.max()) + 1):
            canvas[_outline(large == k, factor)] = TRUTH if plain else colours[(k - 1) % len(colours)]
    return data_uri(canvas, lines=True)


def _outline(region: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The rim of a region, ``width`` pixels wide; along the picture's own edge there is none."""
    from scipy.ndimage import binary_erosion

    return np.asarray(region & ~binary_erosion(region, border_value=1, iterations=width))
