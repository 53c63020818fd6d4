"""Attention-based pooling, plain and gated (Ilse et al. 2018)."""

from __future__ import annotations

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


class AttentionConfig(HeadConfig):
    """Widths of the attention."""

    attention: int = Field(256, ge=1, description="L, width of the attention's hidden layer")


class PlainAttention(nn.Module):
    """``w^T tanh(V h)``: one number an instance."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.v, self.w = nn.Linear(width, hidden), nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, embedded: Tensor) -> Tensor:
        """``(N, H)`` → ``(N,)``, before the softmax."""
        scores: Tensor = self.w(self.dropout(torch.tanh(self.v(embedded))))[:, 0]
        return scores


class GatedAttention(nn.Module):
    """``w^T (tanh(V h) ⊙ sigmoid(U h))``: one number an instance."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.v, self.u, self.w = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, embedded: Tensor) -> Tensor:
        """``(N, H)`` → ``(N,)``, before the softmax."""
        gate = self.dropout(torch.sigmoid(self.u(embedded)))
        scores: Tensor = self.w(self.dropout(torch.tanh(self.v(embedded))) * gate)[:, 0]
        return scores


def pooled_by_attention(bag: Tensor, embed: nn.Module, score: nn.Module, classify: nn.Linear) -> MilOutput:
    """``classify(Σ_i a_i h_i)`` with ``h = embed(bag)`` and ``a = softmax(score(h))``; long bags block by block."""
    if not is_long(bag):
        embedded = embed(bag)
        attention = torch.softmax(score(embedded), dim=0)
        return MilOutput(classify(attention @ embedded), attention, classify(embedded), embedded)

    # What no loss is taken on is written into memory of its own: kept results between the blocks' large tensors would
    # leave holes, of which none is large enough for the next block's.
    scores, shown = bag.new_empty(len(bag)), bag.new_empty(len(bag), classify.out_features)

    def block(start: int, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedded = embed(instances)
        scored = score(embedded)
        with torch.no_grad():
            scores[start : start + len(instances)] = scored
            shown[start : start + len(instances)] = classify(embedded)
        return SoftmaxSums.of(scored[:, None], embedded)

    pooled = SoftmaxSums.pooled(over_blocks(bag, block))[0]
    return MilOutput(classify(pooled), torch.softmax(scores, dim=0), shown)


@HEADS.register("abmil")
class Abmil(MilHead):
    """A weighted mean of the embedded instances; a small network gives the weights."""

    Config: ClassVar[type[HeadConfig]] = AttentionConfig
    scorer: ClassVar[type[PlainAttention | GatedAttention]] = PlainAttention
    title = "attention-based pooling"
    equation = "logits = W Σ_i a_i h_i + b, a = softmax(w^T tanh(V h_i))"
    paper = "Ilse, Tomczak, Welling, Attention-based deep multiple instance learning, ICML 2018, equation 8"

    def __init__(self, in_features: int, classes: int, config: AttentionConfig) -> None:
        super().__init__(in_features, classes, config)
        widths = (in_features, *config.hidden)
        self.embedding = mlp(widths, config.dropout)
        self.attention = self.scorer(widths[-1], config.attention, config.dropout)
        self.classifier = nn.Linear(widths[-1], classes)
        xavier_normal(self)

    def pool(self, bag: Tensor) -> MilOutput:
        """Pool one bag; ``logits = Σ_i a_i instances_i``."""
        return pooled_by_attention(bag, self.embedding, self.attention, self.classifier)


@HEADS.register("gated_abmil")
class GatedAbmil(Abmil):
    """As ``abmil`` with a second, gating layer; the network of CLAM "small" and of HistoFL."""

    scorer = GatedAttention
    title = "gated attention-based pooling"
    equation = "logits = W Σ_i a_i h_i + b, a = softmax(w^T (tanh(V h_i) ⊙ sigmoid(U h_i)))"
    paper = "Ilse, Tomczak, Welling, Attention-based deep multiple instance learning, ICML 2018, equation 9"
