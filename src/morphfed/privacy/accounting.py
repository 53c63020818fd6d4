"""(ε, δ) of repeated Gaussian releases, counted by Google's ``dp-accounting``."""

from __future__ import annotations

from functools import lru_cache
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


@lru_cache(maxsize=4096)
def epsilon(multiplier: float, releases: int, delta: float) -> float:
    """ε at ``delta`` of ``releases`` Gaussian mechanisms, by their privacy loss distribution.

    Every participant takes part every time, so nothing is gained by sampling.

    Args:
        multiplier: standard deviation of the noise over the sensitivity, > 0.
        releases: ≥ 0.
        delta: in (0, 1).

    Returns:
        A tight upper bound; 0 for no release.

    Raises:
        MissingExtraError: ``dp-accounting`` is not installed.
    """
    if not releases:
        return 0.0
    need_accounting()
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(multiplier), releases))
    return float(accountant.get_epsilon(delta))
