"""Ditto: a personal model beside the global one, held near it.

Li, Hu, Beirami, Smith: Ditto: fair and robust federated learning through personalization. ICML 2021.
Equation (Ditto) and algorithm 1: the global ``w`` is FedAvg's; each site also solves
``min_v F_k(v) + (λ / 2) ‖v - w^t‖²`` for its own ``v_k``, from where it stopped in the round before.

* ``w^t`` is the *downloaded* model of the round, as in algorithm 1, not the one that comes out of it.
* ``v_k`` starts as the first download; its running statistics and site-local norms are its own. The pull acts on the
  parameters that travel.
* The paper chooses λ for each site on validation images, from {0.1, 1, 2}, or takes 1 (0.1 under strong attacks)
  where a site has too few. Here it is one number for all sites.
* Global and personal model meet batches in orders of their own (in the authors' code, the same).
"""

from __future__ import annotations

from typing import cast

from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Answer, Facts, SiteHalf, SiteWork
from morphfed.algorithms.fedavg import FedAvgConfig, averaging, mean_alone
from morphfed.algorithms.fedprox import proximal_gradient
from morphfed.core.types import Tensors


class DittoConfig(FedAvgConfig):
    """Keys of Ditto."""

    lam: float = Field(1.0, ge=0, description="λ, pull of a personal model v_k to the global one; 0: each for itself")
    personal_epochs: int | None = Field(
        None, ge=1, description="passes over the personal model v_k in a round; empty: train.local_epochs"
    )


class DittoSite(SiteHalf):
    """Train the global model, then the personal one.

    Args:
        lam: λ ≥ 0.
        personal_epochs: passes over the personal model; None: as many as over the global one.
    """

    def __init__(self, lam: float, personal_epochs: int | None) -> None:
        self._lam, self._personal_epochs = lam, personal_epochs

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """One round of both; the network ends as the global one, which is uploaded."""
        personal = dict(work.state) or _copy(work)
        report = work.fit()
        trained = _copy(work)
        work.load(personal)
        pull = proximal_gradient(work.model, download, self._lam) if self._lam else None
        report += work.fit(after_backward=pull, epochs=self._personal_epochs, slot="personal")
        work.state.update(_copy(work))
        work.load(trained)
        return Answer(work.current(), report)

    def personal(self, state: Tensors) -> Tensors:
        """v_k; before the first round there is none."""
        return state


def _copy(work: SiteWork) -> Tensors:
    """All that training changes, as it stands: also the parts that do not travel."""
    state = work.model.state_dict()
    return {name: state[name].clone() for name in work.layout.order}


def _site(config: AlgorithmConfig) -> DittoSite:
    keys = cast("DittoConfig", config)
    return DittoSite(keys.lam, keys.personal_epochs)


def _passes(config: AlgorithmConfig, local_epochs: int) -> int:
    personal = cast("DittoConfig", config).personal_epochs
    return local_epochs + (local_epochs if personal is None else personal)


ALGORITHMS.register("ditto")(
    Algorithm(
        name="ditto",
        title="personal models near the global one",
        paper="Li et al., ICML 2021",
        equation="v_k ← argmin_v F_k(v) + (λ / 2) ‖v - w^t‖²  beside  w ← Σ_k (n_k / n) w_k",
        config=DittoConfig,
        site=_site,
        coordinator=averaging,
        facts=Facts(
            travels="the global model, both ways",
            stays="images, labels, optimiser state, the personal model",
            memory="2 models, whatever the number of sites; each site keeps its personal model",
            cost="2 × local training (1 + personal_epochs / local_epochs)",
        ),
        passes=_passes,
        note=lambda config, sites: "each site also trains its personal model: more steps a round than FedAvg",
        sums=mean_alone,
    )
)
