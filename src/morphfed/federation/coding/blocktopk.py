"""The largest of every 256 numbers, in two bytes each: a position within its block, and a multiple of a scale.

Taking the m largest of each block of b keeps at least the share m/b of the squared length, as taking them of the whole
tensor does (Stich, Cordonnier, Jaggi: Sparsified SGD with memory. NeurIPS 2018, definition 2.1, block by block), and a
position is one byte where it would be four: at the same bytes four times as many numbers travel. Values are whole
multiples of ``s = max|x| / 127``, as in ``int8``. It needs error feedback.
"""

from __future__ import annotations

import math

import torch

from morphfed.core.types import Spec, Tensors
from morphfed.federation.coding.base import CODECS, Codec

CODES, INDEX, SCALE = "codes", "index", "scale"
BLOCK, LIMIT = 256, 127


class BlockTopK(Codec):
    """Codes int8 and positions uint8, both ``(B, m)`` for B blocks, positions rising in a row; scale float32 ``()``.

    A tensor's numbers are cut into blocks as they stand. The last block may be short: positions behind its end have
    the code 0.
    """

    keys = frozenset({"share"})

    def parts(self, spec: Spec) -> dict[str, Spec]:
        """``m = ⌈share · b⌉`` of each block of b = 256 numbers, or of all of a smaller tensor."""
        blocks, _, kept = self._blocks(math.prod(spec.shape))
        table = (blocks, kept)
        return {CODES: Spec(table, "int8"), INDEX: Spec(table, "uint8"), SCALE: Spec((), "float32")}

    def _blocks(self, n: int) -> tuple[int, int, int]:
        """Blocks, numbers in each, and how many of them are kept."""
        size = min(BLOCK, n)
        return -(-n // size), size, min(size, max(1, math.ceil(round(self._config.share * size, 6))))

    def encode(self, tensor: torch.Tensor, seed: int) -> Tensors:
        """The largest of each block, in the order in which they stand."""
        flat = tensor.reshape(-1)
        blocks, size, kept = self._blocks(flat.numel())
        rows = torch.nn.functional.pad(flat, (0, blocks * size - flat.numel())).reshape(blocks, size)
        index = rows.abs().topk(kept, dim=1, sorted=False).indices.sort(dim=1).values
        scale = flat.abs().amax().to(torch.float32) / LIMIT
        codes = (rows.gather(1, index) / torch.where(scale > 0, scale, 1.0)).round().clamp(-LIMIT, LIMIT)
        return {CODES: codes.to(torch.int8), INDEX: index.to(torch.uint8), SCALE: scale}

    def decode(self, parts: Tensors, spec: Spec) -> torch.Tensor:
        """Zero wherever nothing was sent.

        Raises:
            ValueError: positions outside their block or the tensor, twice the same, or not in order; a scale that is
                negative or not finite; the code -128.
        """
        n, codes, scale = math.prod(spec.shape), parts[CODES], parts[SCALE]
        blocks, size, _ = self._blocks(n)
        index = parts[INDEX].to(torch.int64)
        if not bool(scale.isfinite() & (scale >= 0)):
            raise ValueError("a scale is not a finite number of at least 0")
        if bool((codes < -LIMIT).any()):
            raise ValueError(f"a code lies outside -{LIMIT} … {LIMIT}")
        if not bool((index < size).all()):
            raise ValueError(f"a position lies outside 0 … {size - 1}")
        if not bool((index[:, 1:] > index[:, :-1]).all()):
            raise ValueError("its positions are not in increasing order")
        dtype: torch.dtype = getattr(torch, spec.dtype)
        rows = torch.zeros(blocks, size, dtype=dtype, device=codes.device)
        rows.scatter_(1, index, codes.to(dtype) * scale.to(dtype))
        flat = rows.reshape(-1)
        if bool(flat[n:].any()):
            raise ValueError(f"a position lies behind the last of {n} numbers")
        return flat[:n].reshape(spec.shape)


CODECS.register("blocktopk")(BlockTopK)
