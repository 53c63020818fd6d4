"""The few shapes that several floors hand to each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]
"""Named tensors; the order of names is the order of the model's state dict."""


@dataclass(frozen=True)
class Spec:
    """What one declared tensor looks like."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        """The spec of a tensor."""
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    @property
    def nbytes(self) -> int:
        """Bytes of such a tensor."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return math.prod(self.shape) * dtype.itemsize


@dataclass(frozen=True)
class Upload:
    """What a site sends after a round of training.

    Attributes:
        site: the site's name.
        round: the round it answers, from 1.
        tensors: declared tensors; in process they are references that the receiver must not change.
        weight: number of training images, > 0.
        metrics: declared counts and means (loss, steps).
    """

    site: str
    round: int
    tensors: Tensors
    weight: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A site that could not answer a round, and why."""

    site: str
    round: int
    reason: str


def nbytes(tensors: Tensors) -> int:
    """Bytes of all tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
