"""FedRep: a shared representation under personal heads, trained one after the other.

Collins, Hassani, Mokhtari, Shakkottai: Exploiting shared representations for personalized federated learning.
ICML 2021. Algorithm 1: in each round a site first fits its head ``h_k`` to the downloaded representation ``φ`` for
several passes, then moves ``φ_k`` with that head fixed; the coordinator averages ``φ ← mean_k φ_k``.

The part that is not trained stands still altogether: while the head is fitted, the body's norms neither learn nor
count. A round has ``head_epochs + max(1, local_epochs - head_epochs)`` passes, so with ``local_epochs = 1`` twice
those of FedAvg. The paper fits the head with many passes for each over the body; the default here stays near FedAvg's
budget, ``head_epochs = 10`` is nearer to the paper. Each part has a learning-rate schedule and an optimiser of its own.
The paper's mean over sites is unweighted (``weighting = "uniform"``); the default here is that of the other arms.
"""

from __future__ import annotations

from typing import cast

from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Answer, Facts, SiteHalf, SiteWork
from morphfed.algorithms.fedavg import FedAvgConfig, averaging, mean_alone
from morphfed.algorithms.fedper import body
from morphfed.core.types import Tensors


class FedRepConfig(FedAvgConfig):
    """Keys of FedRep."""

    head_epochs: int = Field(1, ge=1, description="τ, passes over the head h_k before those over the body φ")


class HeadThenBody(SiteHalf):
    """Fit the head with the body still, then the body with the head still.

    Args:
        head_epochs: passes over the head; the body gets the rest of ``train.local_epochs``, at least one.
    """

    def __init__(self, head_epochs: int) -> None:
        self._head_epochs = head_epochs

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """One round of both."""
        head = work.layout.head & work.layout.parameters
        rest = work.layout.parameters - head
        first = work.fit(only=head, epochs=self._head_epochs, slot="head")
        second = work.fit(only=rest, epochs=max(1, work.epochs - self._head_epochs), slot="body")
        return Answer(work.current(), first + second)


def _site(config: AlgorithmConfig) -> HeadThenBody:
    return HeadThenBody(cast("FedRepConfig", config).head_epochs)


def _passes(config: AlgorithmConfig, local_epochs: int) -> int:
    head = cast("FedRepConfig", config).head_epochs
    return head + max(1, local_epochs - head)


ALGORITHMS.register("fedrep")(
    Algorithm(
        name="fedrep",
        title="shared representation, personal heads in turn",
        paper="Collins et al., ICML 2021",
        equation="h_k ← argmin_h F_k(φ, h),  φ_k ← φ - η ∇_φ F_k(φ, h_k),  then  φ ← Σ_k (n_k / n) φ_k",
        config=FedRepConfig,
        site=_site,
        coordinator=averaging,
        facts=Facts(
            travels="the body, both ways",
            stays="images, labels, optimiser state, the classifier",
            memory="2 bodies, whatever the number of sites",
            cost="head_epochs passes over the head, max(1, local_epochs - head_epochs) over the body",
        ),
        passes=_passes,
        travels=lambda config, layout: body(layout, "fedrep"),
        newcomer=lambda config: "",
        note=lambda config, sites: "classifier and body are trained in turn, which can take more steps than FedAvg's",
        sums=mean_alone,
    )
)
