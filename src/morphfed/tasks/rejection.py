"""“None of these”: cells whose confidence, the largest probability, is below a threshold are left to a person.

The largest probability (Hendrycks and Gimpel 2017) is the score here, not the energy or the largest logit: cells of
other types look much like those of the study (near out-of-distribution), where scores of the logits are not better
throughout (Zhang et al. 2023, OpenOOD v1.5), and it serves best to find a model's own mistakes (Jaeger et al. 2023),
which the same threshold should stop. It needs the probabilities alone, and it is what the risk–coverage curve uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

THRESHOLDS = 1.0 / (1.0 + np.exp(-np.linspace(-3.0, 12.0, 241)))
"""Confidences at even steps of their log-odds: fine near 1, where a trained model's are."""
ACCEPTED = 0.95
"""Share of the validation images that the threshold has to accept."""


def confidence(probabilities: NDArray[np.floating]) -> Floats:
    """Largest probability of each image, ``(N,)``."""
    return np.asarray(probabilities.max(axis=1), dtype=np.float64)


def counts_below(labels: NDArray[np.int64], probabilities: Floats, thresholds: Floats) -> Floats:
    """Images whose confidence is below each threshold, ``(G,)``; ``labels`` are not used."""
    return np.searchsorted(np.sort(confidence(probabilities)), thresholds, side="left").astype(np.float64)


def choose(below: Floats, images: int, accepted: float = ACCEPTED) -> tuple[float, float]:
    """The highest of :data:`THRESHOLDS` that accepts at least the share ``accepted``, and the share that it accepts.

    Args:
        below: images below each threshold, ``(G,)``.
        images: all of them, > 0.

    Returns:
        ``(0.0, 1.0)`` where even the lowest threshold accepts too few.
    """
    fitting = np.flatnonzero(below <= (1.0 - accepted) * images + 1e-9)
    if not len(fitting):
        return 0.0, 1.0
    at = int(fitting[-1])
    return float(THRESHOLDS[at]), 1.0 - float(below[at]) / images
