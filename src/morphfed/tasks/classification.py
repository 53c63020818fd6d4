"""Single-cell classification: losses against class imbalance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from morphfed.core.config import Config
from morphfed.tasks.base import Loss, Losses, Task
from morphfed.tasks.coarse import Parents, parent_weights, with_parents
from morphfed.tasks.seesaw import log_mitigation, seesaw

if TYPE_CHECKING:
    from torch import Tensor

LossKind = Literal["cross_entropy", "focal", "class_balanced", "logit_adjusted", "seesaw"]


COUNTING: tuple[LossKind, ...] = ("class_balanced", "logit_adjusted", "seesaw")
"""Losses that depend on how often each class occurs."""


class LossConfig(Config):
    """Which loss a site minimises. Class counts are those of the site's own training part, or summed over the sites."""

    kind: LossKind = Field(
        "cross_entropy", description="cross_entropy, focal, class_balanced, logit_adjusted or seesaw"
    )
    gamma: float = Field(2.0, ge=0, description="γ of the focal loss (Lin et al. 2017)")
    beta: float = Field(0.99, ge=0, lt=1, description="β of the effective number of samples (Cui et al. 2019)")
    tau: float = Field(1.0, ge=0, description="τ of the logit adjustment (Menon et al. 2021)")
    p: float = Field(0.8, ge=0, description="p, power of the class counts' ratio in seesaw (Wang et al. 2021)")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    prior: Literal["site", "federation"] = Field(
        "site",
        description="whose class counts class_balanced, logit_adjusted and seesaw use; federation: each training site "
        "sends its counts once, before round 1, and uses their sum",
    )

    @model_validator(mode="after")
    def _counts_for_a_reason(self) -> LossConfig:
        # Counts of rare classes say something about a hospital's patients: they must not leave for nothing.
        if self.prior == "federation" and self.kind not in COUNTING:
            raise ValueError(f"prior = 'federation' needs kind = {' or '.join(COUNTING)}; {self.kind} uses no counts")
        return self


def make_loss(
    config: LossConfig, class_counts: Tensor, parents: Parents = (), *, device: torch.device | None = None
) -> Loss:
    """Build a loss for one site.

    Args:
        config: which.
        class_counts: integer ``(C,)``, training images of each class, at the site or at all sites (``config.prior``);
            zeros are allowed. Images with a coarser label are not among them.
        parents: coarser labels that may occur (:mod:`morphfed.tasks.coarse`).
        device: where the logits will be, so that no step has to bring weights there.

    Returns:
        Function of logits ``(N, C)`` and labels ``(N,)`` in ``0 … C + len(parents) - 1`` that returns the mean loss, a
        scalar.
    """
    counts = class_counts.to(torch.float32)
    smoothing = config.label_smoothing
    if config.kind == "focal":
        return lambda logits, labels: focal_loss(logits, labels, gamma=config.gamma, parents=parents)
    if config.kind == "class_balanced":
        weights = class_balanced_weights(counts, beta=config.beta)
        weights = parent_weights(weights, counts, parents).to(device=device)
        return lambda logits, labels: cross_entropy(
            logits, labels, weight=weights.to(logits.device, logits.dtype), smoothing=smoothing, parents=parents
        )
    if config.kind == "logit_adjusted":
        shift = logit_shift(counts, tau=config.tau).to(device=device)
        return lambda logits, labels: cross_entropy(
            logits + shift.to(logits.device, logits.dtype), labels, smoothing=smoothing, parents=parents
        )
    if config.kind == "seesaw":
        log_s = log_mitigation(counts, power=config.p).to(device=device)
        return lambda logits, labels: seesaw(logits, labels, log_s.to(logits.device)).mean()
    return lambda logits, labels: cross_entropy(logits, labels, smoothing=smoothing, parents=parents)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    smoothing: float = 0.0,
    parents: Parents = (),
) -> Tensor:
    """Weighted mean of ``(1 - ε) (-log p_y) + ε/C Σ_c -log p_c``; for a coarser label p_y is the sum over its classes.

    Without coarser labels it is torch's, to the bit. Smoothing says nothing about the label: its share of the target
    lies on all C classes alike, whatever the label.

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)``, in ``0 … C + len(parents) - 1``.
        weight: of the labels, ``(C + len(parents),)``; the smoothed share is weighed class by class, as torch does.
        smoothing: ε in [0, 1).
        parents: coarser labels.
    """
    if not parents:
        return F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    log_p = F.log_softmax(logits, dim=1)
    loss = F.nll_loss(with_parents(log_p, parents), labels, weight=weight)
    if smoothing == 0:
        return loss
    classes = log_p.shape[1]
    if weight is None:
        weight = torch.ones(classes + len(parents), device=log_p.device, dtype=log_p.dtype)
    spread = -(log_p * weight[:classes]).sum() / weight[labels].sum()
    return (1.0 - smoothing) * loss + smoothing / classes * spread


def focal_loss(logits: Tensor, labels: Tensor, *, gamma: float, parents: Parents = ()) -> Tensor:
    """Mean of ``-(1 - p_y)^γ log p_y`` (Lin et al. 2017, equation 4); γ = 0 is the cross-entropy.

    For a coarser label p_y is the sum over its classes.
    """
    log_p = with_parents(F.log_softmax(logits, dim=1), parents).gather(1, labels[:, None]).squeeze(1)
    missing = 1.0 - log_p.exp()
    if 0 < gamma < 1:
        missing = missing.clamp(min=1e-9)  # the slope of x^γ at 0 is infinite, and p of a coarser label is often 1
    return -(missing**gamma * log_p).mean()


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

    def criterion(
        self, losses: Losses, class_counts: Tensor, parents: Parents = (), *, device: torch.device | None = None
    ) -> Loss:
        """See :func:`make_loss`; targets are labels ``(N,)``."""
        return make_loss(losses.loss, class_counts, parents, device=device)

    def mean_loss(self, criterion: Loss, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Over all images at once: weights of classes do not add up over batches."""
        logits, labels = zip(*batches, strict=True)
        return float(criterion(torch.cat(logits), torch.cat(labels)))

    def answer(self, probabilities: Tensor) -> Tensor:
        """The probabilities."""
        return probabilities

    def nothing(self, classes: int) -> Tensor:
        """``(0, classes)``."""
        return torch.zeros(0, classes)

    def upright(self, probabilities: Tensor, view: int) -> Tensor:
        """A class does not turn with its picture."""
        return probabilities


CLASSIFICATION = Classification()
