"""Whether bf16 is faster here: measured, because on CPUs without the instructions it is several times slower."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor, nn

WORTHWHILE = 1.10
"""bf16 must be this much faster to be chosen; below it the noise of the measurement decides."""


def step_seconds(
    model: nn.Module,
    *,
    precision: str,
    image_size: int,
    batch_size: int,
    device: torch.device,
    repeats: int = 3,
    width: int | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Seconds of the fastest of ``repeats`` forward-and-backward passes (the weights do not change).

    Args:
        repeats: after a first pass that allocates; 0: the first pass itself is timed.
        width: the network takes feature vectors of this many numbers in place of images.
        forward: what is called in place of ``model`` (the same, compiled).
    """
    call = model if forward is None else forward
    if width is None:
        images = torch.randn(batch_size, 3, image_size, image_size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
    else:
        images = torch.randn(batch_size, width, device=device)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = call(images)
        targets = torch.zeros(logits.shape[:1] + logits.shape[2:], dtype=torch.int64, device=device)
        torch.autograd.backward(F.cross_entropy(logits.float(), targets))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    model.zero_grad(set_to_none=True)
    return min(times[1:] or times)


def bag_seconds(head: nn.Module, *, instances: int, precision: str, device: torch.device, repeats: int = 3) -> float:
    """Seconds of the fastest of ``repeats`` forward-and-backward passes of a MIL head over one bag, as step_seconds."""
    bag = torch.randn(instances, int(head.in_features), device=device)  # type: ignore[arg-type]
    label = torch.zeros((), dtype=torch.int64, device=device)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = head(bag)
        loss = head.loss(bag, output, label, lambda z: F.cross_entropy(z[None].float(), label[None]))  # type: ignore[operator]
        torch.autograd.backward(loss)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    head.zero_grad(set_to_none=True)
    return min(times[1:] or times)


def faster_precision(model: nn.Module, *, image_size: int, batch_size: int, device: torch.device) -> str:
    """``bf16`` where it is at least ``WORTHWHILE`` times faster than fp32 for this network, else ``fp32``."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shape = {"image_size": image_size, "batch_size": batch_size, "device": device}
    fp32 = step_seconds(model, precision="fp32", **shape)  # type: ignore[arg-type]
    bf16 = step_seconds(model, precision="bf16", **shape)  # type: ignore[arg-type]
    model.load_state_dict(state)  # running statistics have moved
    return "bf16" if fp32 > WORTHWHILE * bf16 else "fp32"
