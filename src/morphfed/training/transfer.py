"""From host memory to the device, without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

DEPTH = 2
"""Batches that the host prepares ahead of the device."""


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in memory that a GPU can copy from by itself; as it is for every other device."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Begin to copy from host memory; on a GPU without waiting for the end."""
    return pinned(tensor, device).to(device, non_blocking=True)


def ahead(items: Iterator[T], *, depth: int, device: torch.device) -> Iterator[T]:
    """The same items in the same order, ``depth`` of them prepared ahead by a thread; 0: each when it is asked for."""
    if depth == 0:
        yield from items
        return
    end = object()

    def enter() -> None:  # a thread begins on GPU 0, where pinning would open a second context
        if device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.set_device(device)

    with ThreadPoolExecutor(1, thread_name_prefix="feed", initializer=enter) as worker:
        waiting: deque[Future[T | object]] = deque(worker.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(worker.submit(next, items, end))
            yield item  # type: ignore[misc]
