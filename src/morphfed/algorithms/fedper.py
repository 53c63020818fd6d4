"""FedPer: the body is shared, each site keeps a classifier of its own.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated learning with personalization layers. arXiv:1912.00818, 2019.
Algorithms 1 and 2: with ``w_k = (W_B, W_{P_k})``, base and personalisation layers, a site trains both together and
the coordinator averages ``W_B ← Σ_k (n_k / n) W_{B,k}``.

``W_P`` is the classifier (``Layout.head``), the smallest choice of the paper, which also tries more layers.
"""

from __future__ import annotations

from morphfed.algorithms.base import ALGORITHMS, Algorithm, Facts
from morphfed.algorithms.fedavg import FedAvgConfig, PlainSite, averaging, mean_alone
from morphfed.core.errors import ConfigError
from morphfed.models.layout import Layout


class FedPerConfig(FedAvgConfig):
    """Keys of FedPer."""


def need_head(layout: Layout, algorithm: str) -> None:
    """Refuse a network whose classifier is not known; ``algorithm`` is named in the message.

    Raises:
        ConfigError: the layout names no head.
    """
    if not layout.head:
        raise ConfigError(
            f"{algorithm}: this network's classifier is not known, expected one that model.name tells.",
            fix="choose a timm or torchvision classifier in model.name, or another algorithm for this arm.",
        )


def body(layout: Layout, algorithm: str) -> tuple[str, ...]:
    """All that is trained, less the classifier.

    Raises:
        ConfigError: the layout names no head.
    """
    need_head(layout, algorithm)
    return layout.without(layout.head)


ALGORITHMS.register("fedper")(
    Algorithm(
        name="fedper",
        title="shared body, personal classifier",
        paper="Arivazhagan et al., arXiv:1912.00818, 2019",
        equation="W_B ← Σ_k (n_k / n) W_{B,k};  W_{P_k} stays at site k",
        config=FedPerConfig,
        site=lambda config: PlainSite(),
        coordinator=averaging,
        facts=Facts(
            travels="the body, both ways",
            stays="images, labels, optimiser state, the classifier",
            memory="2 bodies, whatever the number of sites",
            cost="1 × local training",
        ),
        travels=lambda config, layout: body(layout, "fedper"),
        newcomer=lambda config: "",
        sums=mean_alone,
    )
)
