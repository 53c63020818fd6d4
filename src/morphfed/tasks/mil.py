"""Multiple-instance learning: one class a bag of instances, a slide or a patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F

from morphfed.models.mil import MilHead, MilOutput
from morphfed.tasks.base import Loss, Losses
from morphfed.tasks.classification import Classification, class_balanced_weights, make_loss

if TYPE_CHECKING:
    from torch import Tensor

    from morphfed.models.bags import Bags
    from morphfed.tasks.coarse import Parents


@dataclass(frozen=True)
class BagAnswer:
    """What a head says of several bags.

    Attributes:
        head: the head.
        bags: what it was shown.
        outputs: one a bag.
    """

    head: MilHead
    bags: Bags
    outputs: list[MilOutput]


class Mil(Classification):
    """One class a bag; an answer is its probabilities, float32 ``(n, C)``.

    The network is a :class:`MilHead`, which sees one bag at a time. What a head adds to the loss (CLAM's loss over
    instances, DSMIL's second stream) is its own, :meth:`MilHead.loss`.
    """

    name: ClassVar[str] = "mil"

    def respond(self, network: Callable[[Any], Any], inputs: Any) -> BagAnswer:
        """Bag by bag."""
        return BagAnswer(cast("MilHead", network), inputs, [network(bag) for bag in inputs])

    def logits(self, answer: BagAnswer) -> Tensor:
        """``(n, C)``."""
        return torch.stack([output.logits for output in answer.outputs])

    def loss(self, answer: BagAnswer, targets: Tensor, criterion: Loss) -> Tensor:
        """Mean over bags of the head's loss, whose term for the label is the criterion of one bag's logits."""
        losses = [
            answer.head.loss(bag, output, label, lambda z, y=label: criterion(z[None].float(), y[None]))  # type: ignore[misc]
            for bag, output, label in zip(answer.bags, answer.outputs, targets, strict=True)
        ]
        return torch.stack(losses).mean()

    def criterion(
        self, losses: Losses, class_counts: Tensor, parents: Parents = (), *, device: torch.device | None = None
    ) -> Loss:
        """As in classification, but a class-balanced loss is the mean of ``w_y (-log p_y)``.

        Classification divides by the batch's sum of weights. A bag alone would then weigh 1 whatever its class, and
        slides often come alone.
        """
        config = losses.loss
        if config.kind != "class_balanced":
            return make_loss(config, class_counts, parents, device=device)
        weights = class_balanced_weights(class_counts.to(torch.float32), beta=config.beta).to(device=device)
        smoothing = config.label_smoothing

        def balanced(logits: Tensor, labels: Tensor) -> Tensor:
            each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
            return (weights.to(logits.device, logits.dtype)[labels] * each).mean()

        return balanced


MIL = Mil()
