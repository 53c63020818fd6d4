"""Segmentation: losses over the pixels of masks, 0 the background and k the k-th structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from morphfed.core.config import Config
from morphfed.tasks.base import Loss, Losses, Task

if TYPE_CHECKING:
    from torch import Tensor

    from morphfed.tasks.coarse import Parents


class MaskLossConfig(Config):
    """What a site minimises over masks: a weighted sum of terms, those of :data:`TERMS`. Only in segmentation."""

    cross_entropy: float = Field(1.0, ge=0, description="weight of the mean cross-entropy over pixels")
    dice: float = Field(1.0, ge=0, description="weight of 1 − soft Dice, mean over structures (Milletari et al. 2016)")

    @model_validator(mode="after")
    def _something(self) -> MaskLossConfig:
        if not any(getattr(self, term) for term in TERMS):
            raise ValueError("at least one weight must be above 0")
        return self


def _pixel_cross_entropy(class_counts: Tensor) -> Loss:
    return lambda logits, masks: F.cross_entropy(logits, masks)


def _soft_dice(class_counts: Tensor) -> Loss:
    return soft_dice


def soft_dice(logits: Tensor, masks: Tensor, *, smooth: float = 1.0) -> Tensor:
    """``1 − mean_k (2 Σ p_k t_k + s) / (Σ p_k + Σ t_k + s)`` over the structures k; the sums are over the whole batch.

    Milletari et al. 2016 (V-Net) without their squares, as Drozdzal et al. 2016 have it. Sums over the batch, because
    a structure that one picture lacks would otherwise weigh as much there as everywhere else.

    Args:
        logits: ``(N, C, H, W)``; channel 0, the background, has no term of its own.
        masks: integers ``(N, H, W)``.
        smooth: s > 0; keeps the term of a structure that the batch lacks defined.
    """
    p = torch.softmax(logits, dim=1)
    t = F.one_hot(masks, logits.shape[1]).movedim(-1, 1).to(p.dtype)
    over = (0, 2, 3)
    overlap, size = (p * t).sum(over), p.sum(over) + t.sum(over)
    return 1.0 - ((2.0 * overlap + smooth) / (size + smooth))[1:].mean()


TERMS: Mapping[str, Callable[[Tensor], Loss]] = MappingProxyType(
    {"cross_entropy": _pixel_cross_entropy, "dice": _soft_dice}
)
"""Weight in :class:`MaskLossConfig` → the term, made from the pixels of each class ``(C,)`` in the training part (or at
all sites). A further term, such as one that weighs pixels by their class's frequency, is an entry here and a weight
there."""


def make_mask_loss(config: MaskLossConfig, class_counts: Tensor) -> Loss:
    """Build the loss of one site.

    Args:
        config: weights.
        class_counts: integer ``(C,)``, training pixels of each class, background first.

    Returns:
        Function of logits ``(N, C, H, W)`` and integer masks ``(N, H, W)``.
    """
    weights = {term: getattr(config, term) for term in TERMS}
    terms = [(weight, TERMS[term](class_counts)) for term, weight in weights.items() if weight]

    def loss(logits: Tensor, masks: Tensor) -> Tensor:
        whole = masks.long()
        return torch.stack([weight * term(logits, whole) for weight, term in terms]).sum()

    return loss


class Segmentation(Task):
    """One class a pixel; an answer is the most probable one, uint8 ``(n, H, W)``."""

    name: ClassVar[str] = "segmentation"
    validation: ClassVar[frozenset[str]] = frozenset({"dice", "iou"})

    def criterion(
        self, losses: Losses, class_counts: Tensor, parents: Parents = (), *, device: torch.device | None = None
    ) -> Loss:
        """See :func:`make_mask_loss`."""
        return make_mask_loss(losses.mask_loss, class_counts)

    def mean_loss(self, criterion: Loss, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Mean over batches, weighted by their images: all masks at once would not fit into memory."""
        total, images = torch.zeros(()), 0
        for logits, masks in batches:
            total = total.to(logits.device) + criterion(logits, masks).detach() * len(masks)
            images += len(masks)
        return float(total) / images

    def answer(self, probabilities: Tensor) -> Tensor:
        """Index of the most probable class of each pixel, the first of equals."""
        return probabilities.argmax(dim=1).to(torch.uint8)

    def nothing(self, classes: int) -> Tensor:
        """``(0, 0, 0)``."""
        return torch.zeros(0, 0, 0, dtype=torch.uint8)

    def upright(self, probabilities: Tensor, view: int) -> Tensor:
        """Mirror back, then turn back."""
        if view % 2:
            probabilities = probabilities.flip(3)
        return torch.rot90(probabilities, -(view // 2), (2, 3)) if view // 2 else probabilities


SEGMENTATION = Segmentation()
