"""Temperature scaling (Guo et al. 2017, section 4.2): one number that softens or sharpens a model's probabilities.

``q_c ∝ exp(z_c / T)`` for logits z. Log-probabilities are logits, so ``q_c ∝ p_c^(1/T)``: the probabilities suffice,
also those averaged over several views of a picture. The order of the classes stays; T > 1 makes a model less sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LOWEST = float(np.finfo(np.float32).tiny)
"""Probabilities come as float32: what underflowed to 0 counts as the least number."""
RANGE = (0.1, 10.0)
POINTS = 65
"""Odd, so that T = 1 is in the middle of the first grid."""


def normalised(logs: NDArray[np.floating]) -> Floats:
    """Logits ``(N, C)`` as log-probabilities: less the logarithm of the sum of each row's exponentials."""
    logs = logs.astype(np.float64)
    return np.asarray(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))


def log_odds(logs: NDArray[np.floating]) -> Floats:
    """``log p_c - log(1 - p_c)`` from log-probabilities ``(N, C)``, each from the other classes' own.

    A probability that rounds to 1 leaves no ``1 - p`` to take a logarithm of; the sum over the others does.
    """
    logs = logs.astype(np.float64)
    rest = [np.logaddexp.reduce(np.delete(logs, c, axis=1), axis=1) for c in range(logs.shape[1])]
    return np.asarray(logs - np.stack(rest, axis=1))


def _scaled(probabilities: NDArray[np.floating], temperature: float) -> Floats:
    """Normalised ``log p / T``, ``(N, C)``."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), LOWEST)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def tempered(probabilities: NDArray[np.floating], temperature: float) -> Floats:
    """Probabilities ``(N, C)`` at another temperature > 0."""
    return np.asarray(np.exp(_scaled(probabilities, temperature)))


def loss_sums(labels: NDArray[np.int64], probabilities: NDArray[np.floating], temperatures: Floats) -> Floats:
    """Sum over the images of ``−log q_y`` at each of the temperatures, ``(G,)``.

    Args:
        labels: ``(N,)``.
        probabilities: ``(N, C)`` at temperature 1.
        temperatures: ``(G,)``, > 0.
    """
    rows = np.arange(len(labels))
    return np.array([-_scaled(probabilities, float(t))[rows, labels].sum() for t in temperatures])


def grid(low: float, high: float) -> Floats:
    """:data:`POINTS` temperatures at even steps of log T from ``low`` to ``high``."""
    return np.asarray(np.geomspace(low, high, POINTS))


def bracket(temperatures: Floats, losses: Sequence[float] | Floats) -> tuple[float, float] | None:
    """Neighbours of the grid's best temperature, between which the minimum lies; None: it lies outside the grid.

    The loss is convex in 1/T (a sum of log-sum-exps less a linear term), so it has one minimum.
    """
    best = int(np.argmin(losses))
    if best in (0, len(temperatures) - 1):
        return None
    return float(temperatures[best - 1]), float(temperatures[best + 1])


def vertex(temperatures: Floats, losses: Floats) -> float:
    """Minimum of the parabola in log T through the best point of a fine grid and its neighbours."""
    at = int(np.clip(np.argmin(losses), 1, len(losses) - 2))
    before, here, after = (float(v) for v in losses[at - 1 : at + 2])
    bend = before - 2 * here + after
    step = float(np.log(temperatures[at + 1] / temperatures[at]))
    shift = 0.5 * (before - after) / bend if bend > 0 else 0.0
    return float(temperatures[at]) * float(np.exp(np.clip(shift, -1.0, 1.0) * step))
