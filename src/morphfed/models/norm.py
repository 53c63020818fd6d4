"""Normalisation layers, found by module type and never by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

Norm = Literal["batch", "group", "local"]

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ALL = (*_BATCH, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of all batch normalisation layers."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, _BATCH))


def frozen_norms(model: nn.Module) -> Iterator[nn.Module]:
    """Batch norms that have weights, none of them trained: their statistics must not move either."""
    for _, layer in batch_norms(model):
        own = list(layer.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            yield layer


def norm_keys(model: nn.Module) -> frozenset[str]:
    """State-dict keys (weights, biases, statistics, counters) of every normalisation layer."""
    keys = set()
    for name, module in model.named_modules():
        if isinstance(module, _ALL):
            keys |= {f"{name}.{key}" if name else key for key in module.state_dict()}
    return frozenset(keys)


def batch_to_group(model: nn.Module, groups: int = 32) -> int:
    """Replace every ``BatchNorm2d`` by a ``GroupNorm`` that keeps its affine weights; return how many.

    Group norm has no running statistics, so nothing about a site's scanner is averaged into the model
    (Wu & He 2018; Hsieh et al. 2020 for its use in federation). The number of groups is the largest divisor of the
    channels that is at most ``groups``. An activation fused into the layer (timm's ``BatchNormAct2d``) is kept.
    """
    replaced = 0
    for name, child in list(model.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, _group_norm(child, groups))
            replaced += 1
        else:
            replaced += batch_to_group(child, groups)
    return replaced


def _group_norm(layer: nn.BatchNorm2d, groups: int) -> nn.Module:
    channels = layer.num_features
    count = max(d for d in range(1, min(groups, channels) + 1) if channels % d == 0)
    norm = nn.GroupNorm(count, channels, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        with torch.no_grad():
            norm.weight.copy_(layer.weight)
            norm.bias.copy_(layer.bias)
    extra = [getattr(layer, part) for part in ("drop", "act") if isinstance(getattr(layer, part, None), nn.Module)]
    extra = [module for module in extra if not isinstance(module, nn.Identity)]
    return nn.Sequential(norm, *extra) if extra else norm
