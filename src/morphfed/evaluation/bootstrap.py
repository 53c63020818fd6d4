"""Intervals by resampling patients, or images where no patient is known.

Clusters are drawn with replacement, without strata: each resample gives every image a whole-number weight,
the number of times its cluster was drawn. A class that a resample does not hold is left out of that
resample's class means, the rule by which the estimate itself is made. Strata by class would keep a class's
count fixed; the only basophil of a test set would then be in every resample exactly once, as if its outcome
were certain.
``docs/explanation/evaluation.md`` has the measured coverage of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from morphfed.core.seeding import numpy_stream
from morphfed.evaluation.metrics import Floats, measure
from morphfed.evaluation.predictions import J, Judged, Predictions, in_order

LEVEL = 0.95
RESAMPLES = 2000

_CHUNK_NUMBERS = 1 << 18  # weights held at once: 2 MiB stay near the core (measured against 8 and 32 MiB)


def cluster_codes(clusters: NDArray[np.str_]) -> tuple[NDArray[np.int64], int]:
    """Number the clusters: codes ``(N,)`` in ``0 … K-1``, and K."""
    names, codes = np.unique(clusters, return_inverse=True)
    return codes.astype(np.int64), len(names)


def resampled_weights(
    codes: NDArray[np.int64], count: int, resamples: int, stream: np.random.Generator
) -> Iterator[Floats]:
    """Image weights of ``resamples`` cluster bootstraps, in pieces ``(N, b)``.

    Args:
        codes: cluster of each image, ``(N,)`` in ``0 … count-1``.
        count: number of clusters K; each resample draws K of them with replacement.
        stream: same state, same weights.
    """
    step = max(1, _CHUNK_NUMBERS // max(len(codes), 1))
    for start in range(0, resamples, step):
        width = min(step, resamples - start)
        # One cell for each (cluster, resample) pair, counted in a single pass.
        cells = stream.integers(0, count, size=(count, width)) * width + np.arange(width)
        drawn = np.bincount(cells.ravel(), minlength=count * width).reshape(count, width).astype(np.float64)
        yield drawn[codes] if not _identity(codes) else drawn


def _identity(codes: NDArray[np.int64]) -> bool:
    return bool((codes == np.arange(len(codes))).all())


def _stream(predictions: Judged, seed: int) -> np.random.Generator:
    """A stream that depends on the images and their clusters alone.

    Every model that is judged on the same images therefore meets the same resamples: that is what pairs them.
    """
    text = "\x1e".join([*predictions.ids.tolist(), "\x1d", *predictions.clusters.tolist()])
    return numpy_stream(seed, "bootstrap", hashlib.sha256(text.encode()).hexdigest())


def replicate(
    predictions: J,
    statistic: Callable[[J, Floats], dict[str, Floats]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Floats]:
    """Evaluate ``statistic`` on every resample.

    Args:
        statistic: takes predictions (sorted by id) and weights ``(N, b)``, returns named arrays ``(..., b)``.

    Returns:
        name → array ``(..., resamples)``; empty for predictions without images.
    """
    if not len(predictions) or not resamples:
        return {}
    p = in_order(predictions)
    codes, count = cluster_codes(p.clusters)
    pieces = [statistic(p, w) for w in resampled_weights(codes, count, resamples, _stream(p, seed))]
    return {name: np.concatenate([piece[name] for piece in pieces], axis=-1) for name in pieces[0]}


def replicate_metrics(
    predictions: Predictions, metrics: tuple[str, ...], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Floats]:
    """Each of ``metrics`` on every resample: name → ``(resamples,)``, NaN where it cannot be computed."""

    def statistic(p: Predictions, w: Floats) -> dict[str, Floats]:
        return measure(p.labels, p.probabilities, w, metrics, ranking=p.ranking)

    return replicate(predictions, statistic, resamples=resamples, seed=seed)


def interval(
    replicates: Floats,
    clusters: int,
    *,
    inflated: float | None = None,
    most: float = 1.0,
    level: float = LEVEL,
) -> tuple[float | None, float | None]:
    """Expanded percentile interval of a statistic from its bootstrap replicates ``(B,)``.

    The percentile interval is too narrow when clusters are few, by the factor between a normal quantile with
    the plug-in variance and Student's t; the tail is moved to make up for it
    (Hesterberg 2015, arXiv:1411.5279):
    ``α'/2 = Φ(−sqrt(K/(K−1)) t(1−α/2; K−1))``. At K = 100 that is 0.0231 in place of 0.025.

    Args:
        replicates: NaN where a resample does not define the statistic; those are left out.
        clusters: K, independent units that were resampled.
        inflated: the estimate itself, given for a statistic in [0, ``most``] that noise alone moves to one side
            (a sum of absolute values, an extreme, a range). The estimate already carries that bias once and each
            replicate twice, so the interval is shifted back by twice ``mean(replicates) − estimate``, kept
            inside [0, ``most``] and, if need be, stretched to the estimate.
        most: largest value of the statistic; infinite for a distance.

    Returns:
        low and high; None with fewer than two clusters, or with fewer than half of the resamples defined.
    """
    from scipy.stats import norm, t

    defined = replicates[~np.isnan(replicates)]
    if clusters < 2 or not len(defined) or 2 * len(defined) < len(replicates):
        return None, None
    tail = float(norm.cdf(-np.sqrt(clusters / (clusters - 1)) * t.ppf(0.5 + level / 2, clusters - 1)))
    low, high = (float(v) for v in np.quantile(defined, [tail, 1 - tail]))
    if inflated is None:
        return low, high
    shift = 2 * (float(defined.mean()) - inflated)
    return max(0.0, min(low - shift, inflated)), min(most, max(high - shift, inflated))


def proportion_interval(share: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson score interval of a proportion: of use where the bootstrap has nothing to vary (0 of n, n of n).

    Args:
        share: the proportion, in [0, 1].
        n: independent observations behind it, above 0; need not be whole.
    """
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + level / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
