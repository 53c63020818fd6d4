"""Multiple-instance heads: one bag of features ``(N, D)`` with one label. A file a head.

Example:
    >>> import torch
    >>> from morphfed.models.mil import build_head
    >>> head = build_head("gated_abmil", in_features=1024, classes=2)
    >>> sum(p.numel() for p in head.parameters())
    788739
    >>> head(torch.zeros(5, 1024)).logits.shape
    torch.Size([2])
"""

from __future__ import annotations

from typing import Any

from morphfed.core.config import validate
from morphfed.models.mil.base import HEADS, PARTS, HeadConfig, MilHead, MilOutput, Part, part_keys

__all__ = ["HEADS", "PARTS", "HeadConfig", "MilHead", "MilOutput", "Part", "build_head", "part_keys"]


def build_head(name: str, in_features: int, classes: int, **options: Any) -> MilHead:
    """Build a head with fresh weights, drawn from torch's global generator.

    Args:
        name: of :data:`HEADS`.
        in_features: D, width of the features.
        classes: C, outputs; for survival the number of time bins.
        options: fields of the head's ``Config``.

    Raises:
        ConfigError: no such head, an unknown option, or a value out of range.
    """
    kind = HEADS[name]
    return kind(in_features, classes, validate(kind.Config, options, where=f"MIL head '{name}'"))
