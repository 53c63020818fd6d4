"""Survival from bags: the hazard of an event in each bin of time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from morphfed.core.config import Config
from morphfed.tasks.base import Loss, Losses
from morphfed.tasks.mil import Mil

if TYPE_CHECKING:
    from torch import Tensor

    from morphfed.tasks.coarse import Parents

_SURE = 1e-7
"""Hazards that were rounded to 0 or 1 are taken to be this far from it, where their logit is asked for."""


class SurvivalLossConfig(Config):
    """The likelihood of discrete hazards."""

    alpha: float = Field(
        0.15, ge=0, le=1, description="α: censored bags weigh 1 − α, bags with an event 1; HistoFL has 0.15"
    )


def hazard_nll(logits: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    """Mean negative log likelihood of discrete hazards, censored bags weighed less (HistoFL; Zadeh and Schmid 2020).

    With hazards ``h_k = σ(z_k)``, survival ``S_k = Π_{j ≤ k} (1 − h_j)`` and ``S_{−1} = 1``, for a bag of bin Y::

        event at Y:     u = −log S_{Y−1} − log h_Y
        censored in Y:  c = −log S_Y
        loss = (1 − α) (u + c) + α u     that is u for an event, (1 − α) c for a censored bag

    Computed from logits, so that no hazard has to be kept away from 0 and 1.

    Args:
        logits: z, ``(n, K)``.
        labels: int64 ``(n,)``: Y for an event, K + Y for a censored bag.
        alpha: α in [0, 1].
    """
    bins = logits.shape[1]
    at = (labels % bins)[:, None]
    log_survival = F.logsigmoid(-logits).cumsum(dim=1)
    before = F.pad(log_survival, (1, 0)).gather(1, at)
    event = -(before + F.logsigmoid(logits).gather(1, at)).squeeze(1)
    censored = -log_survival.gather(1, at).squeeze(1)
    return torch.where(labels < bins, event, (1 - alpha) * censored).mean()


class Survival(Mil):
    """When an event comes; an answer is the hazard of each of K bins of time, float32 ``(n, K)``.

    A hazard is the probability of the event in a bin for those whom it has not met before.
    """

    name: ClassVar[str] = "survival"
    validation: ClassVar[frozenset[str]] = frozenset({"c_index", "loss"})

    def probabilities(self, logits: Tensor) -> Tensor:
        """Hazards: each its own sigmoid."""
        return logits.sigmoid()

    def criterion(
        self, losses: Losses, class_counts: Tensor, parents: Parents = (), *, device: torch.device | None = None
    ) -> Loss:
        """See :func:`hazard_nll`."""
        alpha = losses.survival_loss.alpha
        return lambda logits, labels: hazard_nll(logits, labels, alpha=alpha)

    def mean_loss(self, criterion: Loss, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """From logarithms of hazards, which unlike those of classes are no logits."""
        logs, labels = zip(*batches, strict=True)
        return float(criterion(torch.logit(torch.cat(logs).exp(), eps=_SURE), torch.cat(labels)))


SURVIVAL = Survival()
