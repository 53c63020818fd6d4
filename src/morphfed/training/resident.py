"""Images and features that stay on a GPU: copied there once, in the type in which they are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from morphfed.training.transfer import send

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from morphfed.training.dataset import Gather

RESERVE = 0.5
"""Share of a GPU's free memory that images never take: weights, moments and activations need it."""

CHUNK_BYTES = 64 * 2**20
"""Copied at once while the rows are brought to the device."""


@dataclass(frozen=True)
class Room:
    """What images need on a device, and what they may take there; bytes.

    Attributes:
        needed: by the images.
        free: measured on the device before anything is copied.
        processes: that share the device.
    """

    needed: int
    free: int
    processes: int = 1

    @property
    def allowed(self) -> int:
        """What this process may take: its part of the free memory less the reserve."""
        return int(self.free * (1.0 - RESERVE)) // self.processes

    @property
    def fits(self) -> bool:
        """Whether the images stay on the device."""
        return self.needed <= self.allowed


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that is not taken, by this or by any other process; 0 for every other device."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


class ResidentStore:
    """Some rows of a store, on a device.

    Args:
        store: where the rows come from; it goes on serving what the host asks for.
        rows: int64, all that will be asked of the device; repeats are kept once.
        device: where they go.

    Attributes:
        values: ``(M, *shape)``, in the store's type.

    Raises:
        torch.OutOfMemoryError: the device has not the memory.
    """

    def __init__(self, store: Gather, rows: NDArray[np.int64], device: torch.device) -> None:
        self._store, self._rows = store, np.unique(rows)
        first = store.gather(self._rows[:1])
        self.values = torch.empty(
            (len(self._rows), *first.shape[1:]), dtype=torch.from_numpy(first).dtype, device=device
        )
        step = max(1, CHUNK_BYTES // max(1, first.nbytes))
        for start in range(0, len(self._rows), step):
            part = torch.from_numpy(store.gather(self._rows[start : start + step]))
            self.values[start : start + len(part)].copy_(part)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The store's rows that are on the device, ascending."""
        return self._rows

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Rows of the store in host memory, resident or not."""
        return self._store.gather(rows)

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows of the store lie in ``values``.

        Raises:
            KeyError: a row is not on the device.
        """
        found = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        if not np.array_equal(self._rows[found], rows):
            raise KeyError(f"row {rows[self._rows[found] != rows][0]} is not on the device")
        return found.astype(np.int64, copy=False)

    def take(self, places: Tensor) -> Tensor:
        """Rows by their places, int64 ``(n,)`` on the device; gathered there."""
        return self.values.index_select(0, places)

    def fetch(self, rows: NDArray[np.int64]) -> Tensor:
        """Rows of the store, on the device."""
        return self.take(send(torch.from_numpy(self.places(rows)), self.values.device))


def bytes_of(store: Gather, rows: NDArray[np.int64]) -> int:
    """Memory that rows of a store take, repeats counted once."""
    different = np.unique(rows)
    one = store.gather(different[:1])
    return len(different) * math.prod(one.shape[1:]) * one.itemsize
