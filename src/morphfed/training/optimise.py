"""Optimisers, their schedule, and their state as named tensors (no pickles)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from morphfed.training.config import TrainConfig

if TYPE_CHECKING:
    from morphfed.core.types import Tensors


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser; vectors (biases, norms) get no weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def learning_rate(config: TrainConfig, progress: float) -> float:
    """The rate at ``progress`` in [0, 1] of the whole run; depends on nothing else, so a resumed run meets the same."""
    if progress < config.warmup:
        return config.lr * max(progress / config.warmup, 1e-3)
    if config.schedule == "constant":
        return config.lr
    along = (progress - config.warmup) / (1.0 - config.warmup)
    floor = config.final_lr
    return config.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, along))))


def export_state(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's moments as ``{"index/key": tensor}``."""
    out: Tensors = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            if value is not None:
                out[f"{index}/{key}"] = torch.as_tensor(value)
    return out


def import_state(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Inverse of :func:`export_state` on a fresh optimiser of the same model.

    Moments get the memory layout of their parameters: files have lost it, and fused steps walk through memory.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/", 1)
        parameter = parameters[int(index)]
        own = tensor.shape == parameter.shape
        state.setdefault(int(index), {})[key] = (
            torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor) if own else tensor.clone()
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
