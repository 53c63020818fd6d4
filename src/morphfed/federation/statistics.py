"""Sums over the sites' images outside the rounds: what is sent, how much of it, and what for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.errors import FederationError
from morphfed.privacy.egress import Statistic
from morphfed.tasks.rejection import THRESHOLDS, counts_below
from morphfed.tasks.temperature import POINTS, loss_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CLASS_COUNTS = "class_counts"
TEMPERATURE = "temperature"
CONFIDENCE = "confidence"

SUMS: Mapping[str, Callable[[NDArray[np.int64], Floats, Floats], Floats]] = MappingProxyType(
    {TEMPERATURE: loss_sums, CONFIDENCE: counts_below}
)
"""Rows of sums over validation images: labels ``(N,)``, probabilities ``(N, C)``, points ``(G,)`` → ``(G,)``."""


def class_counts(classes: int) -> dict[str, Statistic]:
    """Declares that a site's number of training images of each class may leave it."""
    return {CLASS_COUNTS: Statistic(classes, "class counts summed over the sites, for the loss's class prior")}


def temperature_losses() -> dict[str, Statistic]:
    """Declares that a site's summed validation losses over a grid of temperatures may leave it."""
    why = "summed validation losses by temperature, and images: fitting one temperature for the model"
    return {TEMPERATURE: Statistic(POINTS + 1, why)}


def confidence_counts() -> dict[str, Statistic]:
    """Declares that a site's histogram of its validation images' confidence may leave it."""
    why = "validation images by confidence: choosing the confidence below which a cell is rejected"
    return {CONFIDENCE: Statistic(len(THRESHOLDS) + 1, why)}


def added_up(statistic: str, found: Mapping[str, Floats], length: int) -> tuple[Floats, int]:
    """Rows of the sites added up: sums ``(G,)``, and the images behind them.

    Args:
        statistic: its name, for messages.
        found: site → row ``(G + 1,)``.
        length: G.

    Raises:
        FederationError: a row has another length, or a number that is negative or not finite; names the site.
    """
    for site, values in found.items():
        if values.shape != (length + 1,) or not np.isfinite(values).all() or values.min() < 0:
            raise FederationError(
                f"Site '{site}': its row '{statistic}' is not {length + 1} finite numbers of at least 0.",
                fix="look at the site's validation images, or switch evaluation.calibrate and evaluation.unknown off.",
            )
    total = np.sum(list(found.values()), axis=0)
    return np.asarray(total[:-1]), int(total[-1])


def summed_counts(found: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Sum of the sites' class counts, int64 ``(C,)``.

    Args:
        found: site → counts ``(C,)``, at least one site.

    Raises:
        FederationError: a site's counts have another length, are negative, or are all 0; names the site.
    """
    length = len(next(iter(found.values())))
    for site, counts in found.items():
        if counts.shape != (length,) or not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0:
            raise FederationError(
                f"Site '{site}': its class counts are {counts.tolist()}, {length} whole numbers ≥ 0 were expected.",
                fix="give every site the study's classes, or set train.loss.prior = 'site'.",
            )
        if not counts.any():
            raise FederationError(
                f"Site '{site}': it counts no training image of any class.",
                fix="hold the site out, or bring images of the study's classes.",
            )
    return np.asarray(np.sum(list(found.values()), axis=0), dtype=np.int64)
