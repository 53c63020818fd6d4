"""The arms that federation is judged against: every site alone, and all images in one place.

Both run through the same round loop as one-site federations, so they see the same steps, schedule and selection.
"""

from __future__ import annotations

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Facts
from morphfed.algorithms.fedavg import PlainSite
from morphfed.algorithms.mean import Averaging
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout


class LocalConfig(AlgorithmConfig):
    """``local`` has no keys."""


class CentralisedConfig(AlgorithmConfig):
    """``centralised`` has no keys."""


def _keep(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> Averaging:
    # The mean of one model is that model, bit for bit.
    return Averaging(initial, weighting="uniform")


ALGORITHMS.register("local")(
    Algorithm(
        name="local",
        title="every site alone",
        paper="baseline",
        equation="w_k ← argmin F_k(w)",
        config=LocalConfig,
        site=lambda config: PlainSite(),
        coordinator=_keep,
        facts=Facts("nothing", "everything", "1 model a site", "1 × local training"),
        kind="baseline",
    )
)

ALGORITHMS.register("centralised")(
    Algorithm(
        name="centralised",
        title="all training images in one place",
        paper="baseline; needs pooled images, which hospitals usually may not give",
        equation="w ← argmin Σ_k (n_k / n) F_k(w)",
        config=CentralisedConfig,
        site=lambda config: PlainSite(),
        coordinator=_keep,
        facts=Facts("the images", "nothing", "1 model", "1 × local training"),
        kind="baseline",
    )
)
