"""Mean and maximum pooling: what every bag model is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from morphfed.models.mil.base import (
    HEADS,
    HeadConfig,
    MilHead,
    MilOutput,
    at_least_single,
    is_long,
    mlp,
    over_blocks,
    xavier_normal,
)


class PoolingConfig(HeadConfig):
    """What is pooled."""

    level: Literal["embedding", "instance"] = Field(
        "embedding", description="embedding: pool, then classify (MI-Net); instance: classify, then pool (mi-Net)"
    )


class _Pooling(MilHead):
    """An embedding, a linear classifier, and a pooling before or after it."""

    Config: ClassVar[type[HeadConfig]] = PoolingConfig
    paper = "Wang et al., Revisiting multiple instance neural networks, Pattern Recognition 74, 2018"

    def __init__(self, in_features: int, classes: int, config: PoolingConfig) -> None:
        super().__init__(in_features, classes, config)
        widths = (in_features, *config.hidden)
        self.level = config.level
        self.embedding = mlp(widths, config.dropout)
        self.classifier = nn.Linear(widths[-1], classes)
        xavier_normal(self)

    def _blocks(self, bag: Tensor, reduce: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Of a long bag: logits or embedding of each block, reduced, ``(B, ·)``; scores of the instances ``(N, C)``."""
        shown = bag.new_empty(len(bag), self.classes)

        def block(start: int, instances: Tensor) -> Tensor:
            embedded = self.embedding(instances)
            with torch.set_grad_enabled(
                torch.is_grad_enabled() and self.level == "instance"
            ):  # else no loss is on them
                scores = self.classifier(embedded)
            shown[start : start + len(instances)] = scores.detach()
            return reduce(embedded if self.level == "embedding" else scores)

        return torch.stack(over_blocks(bag, block)), shown


@HEADS.register("mean")
class MeanPooling(_Pooling):
    """Every instance counts alike; both levels are the same function, as classifier and mean are linear."""

    title = "mean pooling"
    equation = "logits = W mean_i f(x_i) + b"

    def pool(self, bag: Tensor) -> MilOutput:
        """Pool one bag."""
        if is_long(bag):
            sums, instances = self._blocks(bag, lambda block: block.sum(0, dtype=at_least_single(block)))
            mean = sums.sum(0) / len(bag)
        else:
            embedded = self.embedding(bag)
            instances = self.classifier(embedded)
            mean = (embedded if self.level == "embedding" else instances).mean(0)
        logits = self.classifier(mean) if self.level == "embedding" else mean
        return MilOutput(logits, bag.new_full((len(bag),), 1 / len(bag)), instances)


@HEADS.register("max")
class MaxPooling(_Pooling):
    """The largest value of each feature (embedding), or of each class's score (instance)."""

    title = "maximum pooling"
    equation = "logits = W max_i f(x_i) + b, or max_i (W f(x_i) + b)"

    def pool(self, bag: Tensor) -> MilOutput:
        """Pool one bag."""
        if is_long(bag):
            tops, instances = self._blocks(bag, lambda block: block.amax(0))
            highest = tops.amax(0)
        else:
            embedded = self.embedding(bag)
            instances = self.classifier(embedded)
            highest = (embedded if self.level == "embedding" else instances).amax(0)
        logits = self.classifier(highest) if self.level == "embedding" else highest
        return MilOutput(logits, None, instances)
