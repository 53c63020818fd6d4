"""Which device each process of a study trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from morphfed.experiment.resolve import Resolved

CONTEXT_BYTES = 2**30
"""Allowed for what a process takes on a GPU beside torch's own memory: the driver's context and the libraries' code."""

COPIES = 6
"""Copies of the weights that a federation holds beside the network: two moments, the download, the running mean, the
best round, and one private model."""


@dataclass(frozen=True)
class Place:
    """Where a unit is computed, and how.

    Attributes:
        device: as torch names it.
        sharing: processes that train on it at once.
        compiled: whether its training steps are compiled.
    """

    device: str
    sharing: int = 1
    compiled: bool = False


def devices_of(wanted: str, count: int | None = None) -> tuple[str, ...]:
    """The devices that a study's units are dealt out over.

    Args:
        wanted: ``compute.device`` as resolved. ``cuda`` means every GPU, ``cuda:1`` only that one.
        count: GPUs of this machine; None: asked of torch.
    """
    if wanted != "cuda":
        return (wanted,)
    if count is None:
        import torch

        count = torch.cuda.device_count()
    return tuple(f"cuda:{i}" for i in range(max(1, count)))


def deal(devices: Sequence[str], processes: int) -> list[str]:
    """A device for each process, in turn."""
    return list(islice(cycle(devices), processes))


def sharing(devices: Sequence[str], processes: int) -> int:
    """The most processes that have one device between them."""
    return -(-processes // len(devices))


def exact(device: str) -> torch.device:
    """The device with its number: tensors know themselves as on ``cuda:0``, never as on ``cuda``."""
    import torch

    return torch.device(f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device)


def fitting(asked: int, *, need: int, free: int) -> int:
    """How many of ``asked`` processes one GPU has the memory for; at least one is tried.

    Args:
        asked: processes on this GPU.
        need: bytes that each needs beside images.
        free: bytes that are free. Images may take their part of them; the processes have the reserve between them.
    """
    from morphfed.training.resident import RESERVE

    return max(1, min(asked, int(free * RESERVE) // max(1, need)))


def need_of(resolved: Resolved) -> int:
    """Bytes of a GPU that one process needs beside images: measured with a training step of each network.

    Leaves the memory as it was; the processes that train are others.
    """
    import torch

    from morphfed.training.precision import step_seconds

    most, size = 0, resolved.study.data.image_size
    device = exact(devices_of(resolved.study.compute.device)[0])
    for arm in {f"{a.model}|{a.train.batch_size}|{a.train.precision}": a for a in resolved.arms.values()}.values():
        torch.cuda.reset_peak_memory_stats(device)
        network, batch = resolved.network(arm, device), arm.train.batch_size
        step_seconds(
            network, precision=arm.train.precision, image_size=size, batch_size=batch, device=device, repeats=1
        )
        weights = sum(t.numel() * t.element_size() for t in network.state_dict().values())
        most = max(most, torch.cuda.max_memory_reserved(device) + COPIES * weights)
        del network
        torch.cuda.empty_cache()
    return most + CONTEXT_BYTES
