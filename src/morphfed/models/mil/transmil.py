"""TransMIL (Shao et al. 2021): two transformer layers over instances and a class token, positions by convolutions."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from morphfed.core.errors import ConfigError
from morphfed.models.mil.base import HEADS, HeadConfig, MilHead, MilOutput, mlp, xavier_normal


class TransMilConfig(HeadConfig):
    """Sizes as published: width 512, 8 heads, 256 landmarks."""

    hidden: tuple[int, ...] = Field((512,), min_length=1, description="widths of the layers before the transformer")
    dropout: float = Field(0.1, ge=0, lt=1, description="after each self-attention; none elsewhere")
    heads: int = Field(8, ge=1, description="of the self-attention")
    attention: Literal["nystrom", "exact"] = Field(
        "nystrom", description="nystrom: by landmarks, exact where a bag has no more tokens than these; exact: always"
    )
    landmarks: int = Field(256, ge=1, description="of the Nyström approximation")
    pinv_steps: int = Field(6, ge=1, description="iterations of its pseudo-inverse")


class SelfAttention(nn.Module):
    """Multi-head self-attention with a depth-wise convolution of the values along the sequence (33 wide) added.

    Nyström approximation: Xiong et al., Nyströmformer, AAAI 2021, equations 11–14. Landmarks are means of m segments,
    as equal as the length allows (theirs pads with zeros, which are then attended to).
    """

    def __init__(self, width: int, config: TransMilConfig) -> None:
        super().__init__()
        self.heads, self.landmarks, self.steps = config.heads, config.landmarks, config.pinv_steps
        self.exact = config.attention == "exact"
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.residual = nn.Conv1d(config.heads, config.heads, 33, padding=16, groups=config.heads, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(T, W)`` → ``(T, W)``, and the first token's attention to each: ``(T,)``, mean over heads, detached."""
        count, width = tokens.shape
        q, k, v = self.qkv(tokens).reshape(count, 3, self.heads, -1).permute(1, 2, 0, 3)  # each (heads, T, W / heads)
        q = q * q.shape[-1] ** -0.5
        if self.exact or count <= self.landmarks:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)
            row = torch.softmax(q[:, :1].detach() @ k.detach().mT, dim=-1)[:, 0]
        else:
            mixed, row = self._nystrom(q, k, v)
        per_channel = v.permute(2, 0, 1)  # (W / heads, heads, T): every channel of a head has the head's kernel
        mixed = mixed + self.residual(per_channel).permute(1, 2, 0)
        result: Tensor = self.dropout(self.out(mixed.permute(1, 0, 2).reshape(count, width)))
        return result, row.mean(0)

    def _nystrom(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        q_few, k_few = (F.adaptive_avg_pool1d(x.mT, self.landmarks).mT for x in (q, k))
        to_few = torch.softmax(q @ k_few.mT, dim=-1)
        among = pseudo_inverse(torch.softmax(q_few @ k_few.mT, dim=-1), self.steps)
        from_few = torch.softmax(q_few @ k.mT, dim=-1)
        row = ((to_few[:, :1].detach() @ among.detach()) @ from_few.detach())[:, 0]
        return (to_few @ among) @ (from_few @ v), row


def pseudo_inverse(matrix: Tensor, steps: int) -> Tensor:
    """Moore–Penrose inverse of each of ``(..., m, m)`` by iteration (Razavi et al. 2014; Nyströmformer, equation 11).

    ``Z ← ¼ Z (13 I − A Z (15 I − A Z (7 I − A Z)))`` from ``Aᵀ / (‖A‖₁ ‖A‖_∞)``.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    sizes = matrix.abs()
    scale = sizes.sum(-2).amax(-1) * sizes.sum(-1).amax(-1)
    found = matrix.mT / scale[..., None, None]
    for _ in range(steps):
        product = matrix @ found
        inner = 7 * identity - product
        inner = 15 * identity - product @ inner
        found = found @ (13 * identity - product @ inner) / 4
    return found


class Positions(nn.Module):
    """PPEG: the instances laid out in a square in their order, plus depth-wise convolutions 7, 5 and 3 wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.middle, self.narrow = (
            nn.Conv2d(width, width, side, padding=side // 2, groups=width) for side in (7, 5, 3)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """``(1 + s², W)`` → the same; the class token passes."""
        token, rest = tokens[:1], tokens[1:]
        side = math.isqrt(len(rest))
        plane = rest.T.reshape(1, -1, side, side)
        plane = plane + self.wide(plane) + self.middle(plane) + self.narrow(plane)
        return torch.cat([token, plane.flatten(2)[0].T])


class Transformer(nn.Module):
    """All between embedding and classifier: class token, layer, positions, layer, norm."""

    def __init__(self, width: int, config: TransMilConfig) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, width))
        self.norm1, self.layer1 = nn.LayerNorm(width), SelfAttention(width, config)
        self.positions = Positions(width)
        self.norm2, self.layer2 = nn.LayerNorm(width), SelfAttention(width, config)
        self.norm = nn.LayerNorm(width)

    def forward(self, instances: Tensor) -> tuple[Tensor, Tensor]:
        """``(s², W)`` → the class token ``(W,)`` and its attention to each instance ``(s²,)``."""
        tokens = torch.cat([self.token, instances])
        tokens = tokens + self.layer1(self.norm1(tokens))[0]
        tokens = self.positions(tokens)
        mixed, row = self.layer2(self.norm2(tokens))
        return self.norm((tokens + mixed)[0]), row[1:]


@HEADS.register("transmil")
class TransMil(MilHead):
    """Instances see each other; their order counts, through positions and the convolution of the values.

    The sequence is filled up to a square with its own first instances. The attention shown is the class token's in the
    second layer: mean over heads, negative parts (the approximation has some) cut off, repeated instances summed,
    scaled to a sum of 1.
    """

    Config: ClassVar[type[HeadConfig]] = TransMilConfig
    order_matters: ClassVar[bool] = True
    title = "TransMIL"
    equation = "x ← x + MSA(LN x); x ← PPEG x; x ← x + MSA(LN x); logits = W LN(x_class) + b"
    paper = "Shao et al., TransMIL: Transformer based correlated multiple instance learning, NeurIPS 2021"

    def __init__(self, in_features: int, classes: int, config: TransMilConfig) -> None:
        super().__init__(in_features, classes, config)
        width = config.hidden[-1]
        if width % config.heads:
            raise ConfigError(
                f"MIL head 'transmil': the last of hidden = {width} is no multiple of heads = {config.heads}.",
                fix="choose another width or number of heads.",
            )
        self.embedding = mlp((in_features, *config.hidden), 0.0)
        self.attention = Transformer(width, config)
        self.classifier = nn.Linear(width, classes)
        xavier_normal(self)

    def pool(self, bag: Tensor) -> MilOutput:
        """Pool one bag."""
        embedded = self.embedding(bag)
        side = math.isqrt(len(bag) - 1) + 1
        more = side**2 - len(bag)
        token, row = self.attention(torch.cat([embedded, embedded[:more]]))
        row = row.clamp_min(1e-12)
        weights = row[: len(bag)].clone()
        weights[:more] += row[len(bag) :]
        return MilOutput(self.classifier(token), weights / weights.sum())
