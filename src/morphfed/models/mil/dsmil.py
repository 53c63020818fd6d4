"""Dual-stream multiple-instance learning (Li et al. 2021): the critical instance, and attention by likeness to it."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from morphfed.models.mil.base import (
    HEADS,
    HeadConfig,
    MilHead,
    MilOutput,
    SoftmaxSums,
    is_long,
    mlp,
    over_blocks,
    xavier_normal,
)


class DsmilConfig(HeadConfig):
    """As published the features go in as they are."""

    hidden: tuple[int, ...] = Field((), description="widths of the layers before pooling; [] takes features as is")
    query: int = Field(128, ge=1, description="width of the queries that are compared")


class _Streams(nn.Module):
    """Classifier of single instances, and of the C pooled vectors side by side."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.instance, self.bag = nn.Linear(width, classes), nn.Linear(classes * width, classes)


@HEADS.register("dsmil")
class Dsmil(MilHead):
    """The mean of two streams: the highest instance score of each class, and a pooled vector for each class.

    The queries are a two-layer network (ReLU, tanh) and the products are divided by the root of their width, as in the
    authors' implementation; there the task's loss is taken on either stream, as it is here.
    """

    Config: ClassVar[type[HeadConfig]] = DsmilConfig
    title = "dual-stream MIL"
    equation = "logits = ½ (max_i W₀ h_i + W_b Σ_i U(h_i, h_m) h_i), U = softmax_i(⟨q_i, q_m⟩ / √d)"
    paper = "Li, Li, Eliceiri, Dual-stream multiple instance learning network, CVPR 2021, equations 3–7"

    def __init__(self, in_features: int, classes: int, config: DsmilConfig) -> None:
        super().__init__(in_features, classes, config)
        widths = (in_features, *config.hidden)
        self.embedding = mlp(widths, config.dropout)
        self.attention = nn.Sequential(
            nn.Linear(widths[-1], config.query), nn.ReLU(), nn.Linear(config.query, config.query), nn.Tanh()
        )
        self.classifier = _Streams(widths[-1], classes)
        self._scale = 1 / math.sqrt(config.query)
        xavier_normal(self)

    def pool(self, bag: Tensor) -> MilOutput:
        """Pool one bag; the attention shown is that of the class with the highest logit."""
        instances, highest, weights, vectors = self._by_blocks(bag) if is_long(bag) else self._whole(bag)
        pooled = self.classifier.bag(vectors.flatten())
        logits = (highest + pooled) / 2
        return MilOutput(logits, weights[:, logits.argmax()], instances, streams=torch.stack([highest, pooled]))

    def _whole(self, bag: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores ``(N, C)``, the highest ``(C,)``, attention ``(N, C)`` and pooled vectors ``(C, H)``."""
        embedded = self.embedding(bag)
        instances = self.classifier.instance(embedded)
        highest, critical = instances.max(0)
        queries = self.attention(embedded)
        weights = torch.softmax(queries @ queries[critical].T * self._scale, dim=0)
        return instances, highest, weights, weights.T @ embedded

    def _by_blocks(self, bag: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same of a long bag: first every instance's score, then the likeness to the critical ones."""
        instances = torch.cat(over_blocks(bag, lambda _, block: self.classifier.instance(self.embedding(block))))
        highest, critical = instances.max(0)
        wanted = self.attention(self.embedding(bag[critical]))
        likeness = bag.new_empty(len(bag), self.classes)

        def block(start: int, part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            embedded = self.embedding(part)
            alike = self.attention(embedded) @ wanted.T * self._scale
            likeness[start : start + len(part)] = alike.detach()
            return SoftmaxSums.of(alike, embedded)

        vectors = SoftmaxSums.pooled(over_blocks(bag, block))
        return instances, highest, torch.softmax(likeness, dim=0), vectors
