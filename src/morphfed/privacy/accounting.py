"""(ε, δ) of repeated Gaussian releases, counted by Google's ``dp-accounting``."""

from __future__ import annotations

import math
from importlib.util import find_spec

from morphfed.core.errors import MissingExtraError


def need_accounting() -> None:
    """Refuse at the start what would fail after training.

    Raises:
        MissingExtraError: ``dp-accounting`` is not installed.
    """
    if find_spec("dp_accounting") is None:
        raise MissingExtraError(
            "federation.noise.kind = 'calibrated' counts ε with dp-accounting, which is not installed.",
            fix="pip install 'morphfed[privacy]'.",
        )


def epsilon(multiplier: float, releases: int, delta: float) -> float:
    """ε at ``delta`` of ``releases`` Gaussian mechanisms, chosen one after the other in whatever way.

    R of them tell exactly as much as one with the multiplier ``m / √R`` (Dong, Roth, Su: Gaussian differential
    privacy. J R Stat Soc B 84:3–37, 2022, corollary 2), whose ε has a closed form (Balle, Wang: Improving the
    Gaussian mechanism. ICML 2018, theorem 8). Everybody takes part every time: sampling gains nothing.

    Args:
        multiplier: standard deviation of the noise over the sensitivity, > 0.
        releases: ≥ 0.
        delta: in (0, 1).

    Returns:
        The smallest that holds; 0 for no release.

    Raises:
        MissingExtraError: ``dp-accounting`` is not installed.
    """
    if not releases:
        return 0.0
    need_accounting()
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(multiplier / math.sqrt(releases), delta))
