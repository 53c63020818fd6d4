"""FedBN: FedAvg whose normalisation layers stay at their site.

Li, Jiang, Zhang, Kamp, Dou: FedBN: federated learning on non-IID features via local batch normalization. ICLR 2021.
Algorithm 1: ``w ← Σ_k (n_k / n) w_k`` over all layers but normalisation; each site keeps its own scale, shift and
running statistics, and is judged with them.

Wider than the paper: *all* normalisation layers stay (group and layer norms too), found by module type, not batch
norms only. A site that took no part has no norms: it uses the scale and shift that training started from and
re-estimates the statistics on its own images without labels (``experiment.train_unit``), which is adaptation.
"""

from __future__ import annotations

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Facts
from morphfed.algorithms.fedavg import FedAvgConfig, PlainSite, averaging, mean_alone
from morphfed.models.layout import Layout


class FedBNConfig(FedAvgConfig):
    """Keys of FedBN."""


def without_norms(config: AlgorithmConfig, layout: Layout) -> tuple[str, ...]:
    """All that is trained, less normalisation layers with their statistics."""
    return layout.without(layout.norms)


ALGORITHMS.register("fedbn")(
    Algorithm(
        name="fedbn",
        title="FedAvg with site-local normalisation",
        paper="Li et al., ICLR 2021",
        equation="w ← Σ_k (n_k / n) w_k over all layers but normalisation",
        config=FedBNConfig,
        site=lambda config: PlainSite(),
        coordinator=averaging,
        facts=Facts(
            travels="the model without its normalisation layers, both ways",
            stays="images, labels, optimiser state, normalisation: scale, shift, running statistics",
            memory="2 models, whatever the number of sites",
            cost="1 × local training",
        ),
        travels=without_norms,
        newcomer=lambda config: (
            "the global model with the norms that training started from, "
            "their running statistics re-estimated on the newcomer's own unlabelled images"
        ),
        sums=mean_alone,
    )
)
