"""Independent random streams by name, so that adding a site or an arm changes nobody else's draws."""

from __future__ import annotations

import hashlib
from operator import index
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
    text = "\x1f".join([str(int(seed)), *map(_tagged, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _tagged(name: str | int) -> str:
    """Text of a name: alike for a NumPy or enum value and the plain one, and never two names in one."""
    if isinstance(name, str):
        return "str:" + str.__str__(name).replace("\\", "\\\\").replace("\x1f", "\\x1f")
    return f"int:{index(name)}"


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for this seed and path of names."""
    return np.random.default_rng(derive(seed, *names))


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """A torch CPU generator for this seed and path of names."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
