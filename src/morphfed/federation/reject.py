"""The confidence below which a cell is called none of the classes, chosen over the sites' validation parts.

Each site sends a histogram (how many validation images lie below each of a fixed row of confidences); the coordinator
adds them up and takes the highest confidence that still accepts 95 % of the images of all training sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from morphfed.core.types import Tensors
from morphfed.federation.statistics import CONFIDENCE, added_up
from morphfed.privacy.egress import NUMBER_BYTES
from morphfed.tasks.rejection import THRESHOLDS, choose

if TYPE_CHECKING:
    from morphfed.federation.transports.base import Transport


@dataclass(frozen=True)
class Threshold:
    """A chosen threshold.

    Attributes:
        threshold: cells of less confidence are rejected; None where no site has validation images.
        accepted: share of the validation images that it accepts.
        images: validation images behind it, all sites together.
        bytes_up, bytes_down: what choosing it moved beside the model: histograms; the threshold to each site.
    """

    threshold: float | None
    accepted: float | None
    images: int
    bytes_up: int
    bytes_down: int


def choose_threshold(
    transport: Transport,
    downloads: Mapping[str, Tensors],
    *,
    rounds: int,
    temperature: float = 1.0,
    views: Literal[1, 8] = 1,
) -> Threshold:
    """Choose the threshold for the model as each site uses it.

    Args:
        transport: reaches the training sites, which hold their private state already.
        downloads: site → travelling tensors of the model that it is tested with.
        rounds: rounds that are over.
        temperature: of the model's probabilities.
        views: as in the prediction that the threshold is meant for.

    Raises:
        FederationError: a site's histogram cannot be one; names the site.
    """
    found = transport.validation_sums(CONFIDENCE, rounds, downloads, THRESHOLDS, temperature=temperature, views=views)
    below, images = added_up(CONFIDENCE, found, len(THRESHOLDS))
    up = NUMBER_BYTES * (len(THRESHOLDS) + 1) * len(downloads)
    down = NUMBER_BYTES * len(downloads)
    if not images:
        return Threshold(None, None, 0, up, down)
    threshold, accepted = choose(below, images)
    return Threshold(threshold, accepted, images, up, down)
