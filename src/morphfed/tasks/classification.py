"""Single-cell classification: losses against class imbalance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from morphfed.core.config import Config
from morphfed.tasks.base import Loss, Losses, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

LossKind = Literal["cross_entropy", "focal", "class_balanced", "logit_adjusted"]


COUNTING: tuple[LossKind, ...] = ("class_balanced", "logit_adjusted")
"""Losses that depend on how often each class occurs."""


class LossConfig(Config):
    """Which loss a site minimises. Class counts are those of the site's own training part, or summed over the sites."""

    kind: LossKind = Field("cross_entropy", description="cross_entropy, focal, class_balanced or logit_adjusted")
    gamma: float = Field(2.0, ge=0, description="γ of the focal loss (Lin et al. 2017)")
    beta: float = Field(0.99, ge=0, lt=1, description="β of the effective number of samples (Cui et al. 2019)")
    tau: float = Field(1.0, ge=0, description="τ of the logit adjustment (Menon et al. 2021)")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    prior: Literal["site", "federation"] = Field(
        "site",
        description="whose class counts class_balanced and logit_adjusted use; federation: each training site sends "
        "its counts once, before round 1, and uses their sum",
    )

    @model_validator(mode="after")
    def _counts_for_a_reason(self) -> LossConfig:
        # Counts of rare classes say something about a hospital's patients: they must not leave for nothing.
        if self.prior == "federation" and self.kind not in COUNTING:
            raise ValueError(f"prior = 'federation' needs kind = {' or '.join(COUNTING)}; {self.kind} uses no counts")
        return self


def make_loss(config: LossConfig, class_counts: Tensor) -> Loss:
    """Build a loss for one site.

    Args:
        config: which.
        class_counts: integer ``(C,)``, training images of each class, at the site or at all sites (``config.prior``);
            zeros are allowed.

    Returns:
        Function of logits ``(N, C)`` and labels ``(N,)`` that returns the mean loss, a scalar.
    """
    counts = class_counts.to(torch.float32)
    if config.kind == "focal":
        return lambda logits, labels: focal_loss(logits, labels, gamma=config.gamma)
    if config.kind == "class_balanced":
        weights = class_balanced_weights(counts, beta=config.beta)
        return lambda logits, labels: F.cross_entropy(
            logits,
            labels,
            weight=weights.to(logits.device, logits.dtype),
            label_smoothing=config.label_smoothing,
        )
    if config.kind == "logit_adjusted":
        shift = logit_shift(counts, tau=config.tau)
        return lambda logits, labels: F.cross_entropy(
            logits + shift.to(logits.device, logits.dtype), labels, label_smoothing=config.label_smoothing
        )
    return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)


def focal_loss(logits: Tensor, labels: Tensor, *, gamma: float) -> Tensor:
    """Mean of ``-(1 - p_y)^γ log p_y`` (Lin et al. 2017, equation 4); γ = 0 is the cross-entropy."""
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    return -((1.0 - log_p.exp()) ** gamma * log_p).mean()


def class_balanced_weights(counts: Tensor, *, beta: float) -> Tensor:
    """Weights ``∝ (1 - β) / (1 - β^n_c)`` (Cui et al. 2019, equation 2), mean 1 over the classes present.

    A class that the site has no image of gets weight 1: it never occurs as a label there.
    """
    present = counts > 0
    weights = torch.ones_like(counts)
    effective = (1.0 - beta ** counts[present]) / (1.0 - beta)
    raw = 1.0 / effective
    weights[present] = raw * (len(raw) / raw.sum())
    return weights


def logit_shift(counts: Tensor, *, tau: float) -> Tensor:
    """``τ log π_c`` (Menon et al. 2021, equation 10), π from counts with a floor of half an image."""
    share = counts.clamp(min=0.5)
    return tau * torch.log(share / share.sum())


class Classification(Task):
    """One class an image; an answer is its probabilities, float32 ``(n, C)``."""

    name: ClassVar[str] = "classification"
    validation: ClassVar[frozenset[str]] = frozenset({"balanced_accuracy", "macro_f1", "loss"})

    def criterion(self, losses: Losses, class_counts: Tensor) -> Loss:
        """See :func:`make_loss`; targets are classes ``(N,)``."""
        return make_loss(losses.loss, class_counts)

    def mean_loss(self, criterion: Loss, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Over all images at once: weights of classes do not add up over batches."""
        logits, labels = zip(*batches, strict=True)
        return float(criterion(torch.cat(logits), torch.cat(labels)))

    def answer(self, probabilities: Tensor) -> NDArray[np.float32]:
        """The probabilities."""
        found: NDArray[np.float32] = probabilities.cpu().numpy()
        return found

    def nothing(self, classes: int) -> NDArray[np.float32]:
        """``(0, classes)``."""
        return torch.zeros(0, classes).numpy()

    def upright(self, probabilities: Tensor, view: int) -> Tensor:
        """A class does not turn with its picture."""
        return probabilities


CLASSIFICATION = Classification()
