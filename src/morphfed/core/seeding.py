"""Independent random streams by name, so that adding a site or an arm changes nobody else's draws."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends on ``seed`` and the path of ``names`` only.

    Example:
        >>> derive(0, "order", "kampala", 3) == derive(0, "order", "kampala", 3)
        True
        >>> derive(0, "order", "kampala", 3) == derive(0, "order", "kampala", 4)
        False
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(n).__name__}:{n}" for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for this seed and path of names."""
    return np.random.default_rng(derive(seed, *names))


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """A torch CPU generator for this seed and path of names."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
