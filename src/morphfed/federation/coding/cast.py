"""Fewer bits a number: bfloat16 (8 bits of precision, the range of float32) and float16 (11 bits, up to 65,504)."""

from __future__ import annotations

from typing import ClassVar

import torch

from morphfed.core.types import Spec, Tensors
from morphfed.federation.coding.base import CODECS, Codec

VALUES = "values"


class Cast(Codec):
    """Rounds to the nearest number of :attr:`dtype`, ties to even (IEEE 754); beyond its range to its largest."""

    dtype: ClassVar[torch.dtype]

    def parts(self, spec: Spec) -> dict[str, Spec]:
        """As many numbers in another type."""
        return {VALUES: Spec(spec.shape, str(self.dtype).removeprefix("torch."))}

    def encode(self, tensor: torch.Tensor, seed: int) -> Tensors:
        """Clamped, then cast."""
        top = torch.finfo(self.dtype).max
        # Beyond half a step above the largest number the cast would give infinity.
        return {VALUES: tensor.clamp(-top, top).to(self.dtype)}

    def decode(self, parts: Tensors, spec: Spec) -> torch.Tensor:
        """Exact: each number of the short type is one of the long one."""
        return parts[VALUES].to(getattr(torch, spec.dtype))


class Float32(Cast):
    """Nothing is left out, nothing is saved: tensors of float32 are then sent as they are."""

    dtype = torch.float32


class BFloat16(Cast):
    """Half the bytes; relative error at most 2⁻⁸."""

    dtype = torch.bfloat16


class Float16(Cast):
    """Half the bytes; relative error at most 2⁻¹¹ from 6·10⁻⁵ up, absolute 3·10⁻⁸ below."""

    dtype = torch.float16


CODECS.register("fp32")(Float32)
CODECS.register("bf16")(BFloat16)
CODECS.register("fp16")(Float16)
