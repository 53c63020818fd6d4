"""Only the largest: the k numbers of a tensor with the greatest magnitude, and where they are.

Stich, Cordonnier, Jaggi: Sparsified SGD with memory. NeurIPS 2018, definition 2.2 (top_k); here tensor by tensor,
``k = ⌈share · n⌉``. It needs the memory of what was not sent, error feedback: without it a weight that is never among
the largest is never learnt.
"""

from __future__ import annotations

import math

import torch

from morphfed.core.types import Spec, Tensors
from morphfed.federation.coding.base import CODECS, Codec

VALUES, INDEX = "values", "index"


class TopK(Codec):
    """Values ``(k,)`` in the tensor's type; positions ``(k,)`` in the flattened tensor, strictly increasing."""

    keys = frozenset({"share"})

    def parts(self, spec: Spec) -> dict[str, Spec]:
        """Positions take the smallest type that reaches the last number."""
        n = math.prod(spec.shape)
        kept = (self._kept(n),)
        return {VALUES: Spec(kept, spec.dtype), INDEX: Spec(kept, _positions(n))}

    def _kept(self, n: int) -> int:
        # Of 0.1 · 30 = 3.0000000000000004 three are meant.
        return min(n, max(1, math.ceil(round(self._config.share * n, 6))))

    def encode(self, tensor: torch.Tensor, seed: int) -> Tensors:
        """The largest, in the order in which they stand."""
        flat = tensor.reshape(-1)
        index = flat.abs().topk(self._kept(flat.numel()), sorted=False).indices.sort().values
        return {VALUES: flat[index], INDEX: index.to(getattr(torch, _positions(flat.numel())))}

    def decode(self, parts: Tensors, spec: Spec) -> torch.Tensor:
        """Zero wherever nothing was sent.

        Raises:
            ValueError: positions outside the tensor, twice the same, or not in order.
        """
        n, index = math.prod(spec.shape), parts[INDEX].to(torch.int64)
        if not bool(((index >= 0) & (index < n)).all()):
            raise ValueError(f"a position lies outside 0 … {n - 1}")
        if not bool((index[1:] > index[:-1]).all()):
            raise ValueError("its positions are not in increasing order")
        values = parts[VALUES]
        return (
            torch.zeros(n, dtype=values.dtype, device=values.device).index_copy_(0, index, values).reshape(spec.shape)
        )


def _positions(n: int) -> str:
    return next((name for name in ("int16", "int32") if n - 1 <= torch.iinfo(getattr(torch, name)).max), "int64")


CODECS.register("topk")(TopK)
