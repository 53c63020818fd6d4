"""What a multiple-instance head is: one bag of features in, the bag's logits and what each instance counted out.

Every parameter of a head is under one of three modules, so that an algorithm tells the parts apart by name:
``embedding`` (instance by instance, before pooling), ``attention`` (whatever weighs or mixes instances) and
``classifier``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from morphfed.core.config import Config
from morphfed.core.memory import give_back_freed_memory
from morphfed.core.registry import Registry

Part = Literal["embedding", "attention", "classifier"]
PARTS: tuple[Part, ...] = ("embedding", "attention", "classifier")

LONG, BLOCK = 32_768, 4_096
"""A bag of more than ``LONG`` instances goes through a head in blocks of ``BLOCK``, which are computed again on the way
back: beside the bag itself only one block is ever held."""

T = TypeVar("T")
Criterion = Callable[[Tensor], Tensor]
"""The task's loss of one bag's logits ``(C,)``: a scalar."""


class HeadConfig(Config):
    """What all heads share."""

    hidden: tuple[int, ...] = Field((512,), description="widths of the layers before pooling; [] takes features as is")
    dropout: float = Field(0.25, ge=0, lt=1, description="after each hidden layer and in the attention")


@dataclass(frozen=True)
class MilOutput:
    """What a head says of one bag of N instances and C classes.

    Attributes:
        logits: ``(C,)``.
        attention: ``(N,)``, non-negative, sums to 1; None where the head has no such weights.
        instances: ``(N, C)`` score of each instance alone; None where the head has none.
        embedded: ``(N, H)`` instances after the embedding, for losses; None where none wants them or the bag is long.
        streams: ``(S, C)`` logits on each of which the task's loss is taken, then averaged; None: ``logits`` alone.
    """

    logits: Tensor
    attention: Tensor | None = None
    instances: Tensor | None = None
    embedded: Tensor | None = None
    streams: Tensor | None = None


class MilHead(nn.Module, ABC):
    """Classifies a bag.

    Subclasses set the class variables, build those of ``embedding``, ``attention`` and ``classifier`` that they have,
    and implement :meth:`pool`. They are built with fresh weights from torch's global generator.

    Args:
        in_features: D, width of the features.
        classes: C, outputs.
        config: an instance of ``Config``.

    Attributes:
        bag_weight: factor of the task's loss beside :meth:`loss_terms`.
    """

    Config: ClassVar[type[HeadConfig]] = HeadConfig
    title: ClassVar[str]
    equation: ClassVar[str]
    paper: ClassVar[str]
    order_matters: ClassVar[bool] = False
    """Whether the order of the instances changes the result."""

    bag_weight: float = 1.0

    def __init__(self, in_features: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.in_features, self.classes, self.config = in_features, classes, config

    def forward(self, bag: Tensor) -> MilOutput:
        """Classify one bag.

        Args:
            bag: ``(N, D)`` floats, N ≥ 1.

        Raises:
            ValueError: another shape, or no instance.
        """
        if bag.ndim != 2 or bag.shape[1] != self.in_features or not len(bag):
            raise ValueError(f"a bag is (N, {self.in_features}) with N of at least 1, not {tuple(bag.shape)}")
        return self.pool(bag)

    @abstractmethod
    def pool(self, bag: Tensor) -> MilOutput:
        """:meth:`forward` of a bag whose shape is right."""

    def loss_terms(self, bag: Tensor, output: MilOutput, label: int | Tensor) -> Tensor | None:
        """What the head's paper adds to the task's loss, weighted; None: nothing.

        Args:
            bag: ``(N, D)``, as given to :meth:`forward`.
            output: its answer, with gradients.
            label: the bag's class, 0 to C − 1.
        """
        return None

    def loss(self, bag: Tensor, output: MilOutput, label: int | Tensor, criterion: Criterion) -> Tensor:
        """All that is minimised for one bag: ``bag_weight · criterion + loss_terms``.

        Args:
            bag: ``(N, D)``.
            output: the head's answer to it.
            label: the bag's class.
            criterion: the task's loss of ``(C,)`` logits.
        """
        streams = output.logits[None] if output.streams is None else output.streams
        total = self.bag_weight * torch.stack([criterion(logits) for logits in streams]).mean()
        extra = self.loss_terms(bag, output, label)
        return total if extra is None else total + extra


HEADS: Registry[type[MilHead]] = Registry("MIL head", package="morphfed.models.mil", group="morphfed.mil_heads")
"""Heads by name; a module of this package, or an entry point of another, adds one."""


def part_keys(head: nn.Module, part: Part) -> tuple[str, ...]:
    """State-dict keys of one part, in order; empty where the head has no such part."""
    return tuple(key for key in head.state_dict() if key.split(".", 1)[0] == part)


def mlp(widths: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Linear, ReLU and dropout from each width to the next; nothing for a single width."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def is_long(bag: Tensor) -> bool:
    """Whether a bag is embedded block by block."""
    return len(bag) > LONG


def at_least_single(tensor: Tensor) -> torch.dtype:
    """The type to sum in: sums over 100,000 instances are lost in half precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def over_blocks(bag: Tensor, of: Callable[[int, Tensor], T]) -> list[T]:
    """What ``of`` says of each :data:`BLOCK` instances of a long bag; with gradients it is computed again for them.

    Args:
        bag: ``(N, D)``.
        of: the number of the block's first instance, and the block ``(n, D)`` → small tensors, each of which the loss
            depends on: what is computed again for one that it does not depend on is never given back.
    """

    def block(start: int) -> T:
        if bag.device.type == "cpu":  # what a block leaves behind has holes that the next one's tensors do not fit into
            give_back_freed_memory()
        return of(start, bag[start : start + BLOCK])

    starts = range(0, len(bag), BLOCK)
    if not torch.is_grad_enabled():
        return [block(start) for start in starts]
    return [checkpoint(block, start, use_reentrant=False) for start in starts]


class SoftmaxSums:
    """``Σ_i softmax(s)_i h_i`` over blocks of instances: sums with the highest score so far taken out (Milakov,
    Gimelshein, Online normalizer calculation for softmax, 2018)."""

    @staticmethod
    def of(scores: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One block, ``(n, K)`` and ``(n, H)`` → highest and sum of weights, ``(K,)``, weighted sum, ``(K, H)``."""
        scores = scores.to(at_least_single(scores))
        highest = scores.detach().amax(0)
        weights = torch.exp(scores - highest)
        return highest, weights.sum(0), weights.T @ embedded

    @staticmethod
    def pooled(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Of all blocks: ``(K, H)``."""
        highest, sums, vectors = (torch.stack(column) for column in zip(*parts, strict=True))
        scale = torch.exp(highest - highest.amax(0))
        total = (scale * sums).sum(0)
        return (scale[..., None] * vectors).sum(0) / total[:, None]


def xavier_normal(module: nn.Module) -> None:
    """Fill every linear layer as CLAM and HistoFL do: Xavier-normal weights, zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
