"""Sums over the sites' images outside the rounds: what is sent, how much of it, and what for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.errors import FederationError
from morphfed.privacy.egress import Statistic
from morphfed.tasks.temperature import POINTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_COUNTS = "class_counts"
TEMPERATURE = "temperature"


def class_counts(classes: int) -> dict[str, Statistic]:
    """Declares that a site's number of training images of each class may leave it."""
    return {CLASS_COUNTS: Statistic(classes, "class counts summed over the sites, for the loss's class prior")}


def temperature_losses() -> dict[str, Statistic]:
    """Declares that a site's summed validation losses over a grid of temperatures may leave it."""
    why = "summed validation losses by temperature, and images: fitting one temperature for the model"
    return {TEMPERATURE: Statistic(POINTS + 1, why)}


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
