"""How well drawn masks agree with true ones, case by case: Dice, IoU, 95 % Hausdorff distance.

A mask holds 0 for the background and k for the k-th of K structures. **Empty masks**: where neither the truth nor the
prediction shows a structure there is nothing to agree on, and Dice, IoU and distance are NaN (the case is left out of
that structure's means). Where only one of the two shows it, Dice and IoU are 0 and the distance, which does not exist,
is NaN; such cases are counted as missed or false.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from morphfed.evaluation.metrics import Floats, mean_of_defined, ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Masks = NDArray[np.uint8]


def overlaps(truth: Masks, predicted: Masks, structures: int) -> tuple[Floats, Floats, Floats]:
    """Pixels of each structure in each case, ``(N, K)`` each: in both masks, in the truth, in the prediction.

    Args:
        truth, predicted: ``(N, H, W)``, values 0 … K.
        structures: K.
    """
    n, c = len(truth), structures + 1
    cells = np.arange(n)[:, None] * c * c + (truth.reshape(n, -1).astype(np.int64) * c + predicted.reshape(n, -1))
    table = np.bincount(cells.ravel(), minlength=n * c * c).reshape(n, c, c).astype(np.float64)
    both = np.einsum("ncc->nc", table)
    return both[:, 1:], table.sum(axis=2)[:, 1:], table.sum(axis=1)[:, 1:]


def dice(both: Floats, truth: Floats, predicted: Floats) -> Floats:
    """``2 |A ∩ B| / (|A| + |B|)`` (Dice 1945), from pixels; NaN where both are empty."""
    return ratio(2 * both, truth + predicted)


def iou(both: Floats, truth: Floats, predicted: Floats) -> Floats:
    """``|A ∩ B| / |A ∪ B|`` (Jaccard 1912), from pixels; NaN where both are empty."""
    return ratio(both, truth + predicted - both)


def hausdorff95(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """95 % Hausdorff distance of two regions, in pixels; NaN where either is empty.

    The larger of the two directed distances; a directed one is the 95th percentile, over the border pixels of one
    region, of the distance to the nearest border pixel of the other (Maier-Hein et al. 2024, *Metrics reloaded*).
    A border pixel is one of the region with a neighbour (of four) that is not, or at the picture's edge.

    Args:
        truth, predicted: ``(H, W)``.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    if not truth.any() or not predicted.any():
        return float("nan")
    a, b = (region & ~binary_erosion(region) for region in (truth, predicted))
    to_a, to_b = distance_transform_edt(~a), distance_transform_edt(~b)
    return float(max(np.percentile(to_b[a], 95), np.percentile(to_a[b], 95)))


def distances(truth: Masks, predicted: Masks, structures: int) -> Floats:
    """:func:`hausdorff95` of each structure in each case, ``(N, K)``."""
    found = np.full((len(truth), structures), np.nan)
    for n, (t, p) in enumerate(zip(truth, predicted, strict=True)):
        for k in range(structures):
            found[n, k] = hausdorff95(t == k + 1, p == k + 1)
    return found


def mean_over_cases(values: Floats, weights: Floats | None = None) -> Floats:
    """Mean of each structure over the cases in which it is defined, ``(K, ...)``; NaN where it is in none.

    Args:
        values: ``(N, K)``, NaN where not defined.
        weights: None (every case once), ``(N,)`` or ``(N, B)``.
    """
    w = np.ones(len(values)) if weights is None else weights
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).T @ w, defined.astype(np.float64).T @ w)


def mean_over_structures(values: Floats) -> Floats:
    """Unweighted mean over structures, ``(K, ...)`` → ``(...)``; those that are NaN are left out."""
    return mean_of_defined(values)


def validation_metrics(truth: Masks, predicted: Masks) -> dict[str, float]:
    """Mean Dice and IoU of a site's validation part: over cases, then over structures; nothing without a structure."""
    structures = max(1, int(truth.max()), int(predicted.max()))  # one that neither shows is not defined anyhow
    pixels = overlaps(truth, predicted, structures)
    found = {"dice": dice(*pixels), "iou": iou(*pixels)}
    means = {name: float(mean_over_structures(mean_over_cases(values))) for name, values in found.items()}
    return {name: mean for name, mean in means.items() if np.isfinite(mean)}
