"""A site's bags as the trainer sees them: read from disk batch by batch, long ones one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from morphfed.models.bags import Bags
from morphfed.training.dataset import ImageSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from morphfed.data.bags.store import BagStore
    from morphfed.training.dataset import Gather

NUMBERS_AT_ONCE = 2**24
"""Features, 64 MiB of them, that go through a network at once. A longer bag goes alone; the gradients of a batch's bags
add up, so that a batch of 16 slides needs the memory of one."""


@dataclass(frozen=True)
class BagSet(ImageSet):
    """Labelled bags.

    Attributes:
        store: a :class:`BagStore`.
        rows: int64 ``(N,)``, numbers of the bags in the store.
        sizes: int64 ``(N,)``, instances of each.
        dim: D.
        max_instances: instances of a bag that a training step draws without replacement; None: all of them.
    """

    sizes: NDArray[np.int64]
    dim: int
    max_instances: int | None = None

    @property
    def pictures(self) -> bool:
        """False: nothing is to be perturbed or normalised."""
        return False

    def pieces(self, where: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Neighbours of a batch together as long as they are short, a long bag alone."""
        most = NUMBERS_AT_ONCE // self.dim
        found: list[list[int]] = []
        room = 0
        for bag in where.tolist():
            size = int(self.sizes[bag])
            if not found or size > room:
                found.append([])
                room = most
            found[-1].append(bag)
            room -= size
        return [np.array(piece, dtype=np.int64) for piece in found]

    def read(self, rows: NDArray[np.int64]) -> Any:
        """Bags whole, in host memory: :class:`Bags`."""
        return self._read(rows, [None] * len(rows))

    def sample(self, where: NDArray[np.int64], generator: Generator) -> tuple[Any, Tensor]:
        """Bags as training takes them, at most ``max_instances`` of each, and labels int64 ``(n,)``."""
        drawn = [self._draw(int(self.sizes[bag]), generator) for bag in where]
        return self._read(self.rows[where], drawn), self.targets(where)

    def stored(self) -> Mapping[str, tuple[Gather, NDArray[np.int64]]]:
        """Nothing that could stay on a device: bags are read from disk as they are asked for."""
        return {}

    def _draw(self, size: int, generator: Generator) -> NDArray[np.int64] | None:
        if self.max_instances is None or size <= self.max_instances:
            return None
        chosen: NDArray[np.int64] = (
            torch.randperm(size, generator=generator)[: self.max_instances].sort().values.numpy()
        )
        return chosen

    def _read(self, rows: NDArray[np.int64], chosen: list[NDArray[np.int64] | None]) -> Bags:
        store: BagStore = self.store  # type: ignore[assignment]  # bags are of different lengths, which no gather has
        bags = [torch.from_numpy(_owned(store.read(int(row), some))) for row, some in zip(rows, chosen, strict=True)]
        features = bags[0] if len(bags) == 1 else torch.cat(bags)  # a bag alone is not copied
        return Bags(features, tuple(len(bag) for bag in bags))


def _owned(bag: NDArray[np.float32]) -> NDArray[np.float32]:
    """torch takes no array that must not be written to; a mapped file is copied once, anything else as it is."""
    return bag if bag.flags.writeable else bag.copy()
