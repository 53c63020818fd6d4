"""One temperature for a federation's model, fitted over the sites' validation parts; no image and no label moves.

Each site sends, for a grid of temperatures, the summed log loss of its validation images and how many they are. The
coordinator adds the rows up: the sums are those of the pooled images, and so is the minimum. A second grid between the
best temperature's neighbours and a parabola through its best three points find it to about a millionth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from morphfed.core.errors import FederationError
from morphfed.core.types import Tensors
from morphfed.federation.statistics import TEMPERATURE, added_up
from morphfed.privacy.egress import NUMBER_BYTES
from morphfed.tasks.temperature import POINTS, RANGE, bracket, grid, vertex

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from morphfed.federation.transports.base import Transport


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        temperature: T > 0; 1 leaves the probabilities as they are.
        images: validation images behind it, all sites together.
        loss_before: their mean log loss at T = 1; None without images.
        loss_after: the least that the finer grid found.
        bytes_up, bytes_down: what the fit moved beside the model: rows of sums; T to each site.
        note: why T was left at 1; empty if it was fitted.
    """

    temperature: float
    images: int
    loss_before: float | None
    loss_after: float | None
    bytes_up: int
    bytes_down: int
    note: str = ""


def fit_temperature(
    transport: Transport, downloads: Mapping[str, Tensors], *, rounds: int, views: Literal[1, 8] = 1
) -> Temperature:
    """Fit T to the model as each site uses it (with its own norms or head, where it has any).

    Args:
        transport: reaches the training sites, which hold their private state already.
        downloads: site → travelling tensors of the model that it is tested with.
        rounds: rounds that are over.
        views: as in the prediction that T is meant for.

    Raises:
        FederationError: a site's row has another length, a number that is not finite, or another count of images
            than before; names the site.
    """
    temperatures = grid(*RANGE)

    def ask(at: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
        return added_up(TEMPERATURE, transport.validation_sums(TEMPERATURE, rounds, downloads, at, views=views), POINTS)

    losses, images = ask(temperatures)
    row = NUMBER_BYTES * (POINTS + 1) * len(downloads)
    sent = NUMBER_BYTES * len(downloads)
    if not images:
        return Temperature(1.0, 0, None, None, row, sent, "no training site has validation images")
    before = float(losses[POINTS // 2]) / images
    between = bracket(temperatures, losses)
    if between is None:
        note = (
            f"the best temperature lies outside {RANGE[0]:g} to {RANGE[1]:g} (few validation images, no mistake among "
            "them, or a model that has hardly learned)"
        )
        return Temperature(1.0, images, before, before, row, sent, note)
    fine = grid(*between)
    finer, again = ask(fine)
    if again != images:
        raise FederationError(
            f"The sites counted {images} validation images, then {again}.", fix="restart the sites; their data changed."
        )
    return Temperature(vertex(fine, finer), images, before, float(finer.min()) / images, 2 * row, sent)
