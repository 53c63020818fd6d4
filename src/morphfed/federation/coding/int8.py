"""One byte a number: whole multiples of a scale, from -127 to 127.

``q = round(x / s)`` with ``s = max|x| / 127``; read back as ``q s``: the scheme of Jacob et al., Quantization and
training of neural networks for efficient integer-arithmetic-only inference, CVPR 2018, section 2.1, with zero point 0.
The scale is a tensor's, or each output channel's own (the first axis). Stochastic rounding takes ``⌊x / s + u⌋`` with u
uniform in [0, 1), whose mean is ``x / s`` (Alistarh et al., QSGD, NeurIPS 2017, section 3.1); nearest is closer in each
number, and the error that error feedback carries is then at most half a step.
"""

from __future__ import annotations

import torch

from morphfed.core.types import Spec, Tensors
from morphfed.federation.coding.base import CODECS, Codec

CODES, SCALE = "codes", "scale"
LIMIT = 127


class Int8(Codec):
    """Codes ``q`` in the tensor's shape; scales ``s``, float32 ``(C,)`` by channel or ``()``."""

    keys = frozenset({"scale", "rounding"})

    def parts(self, spec: Spec) -> dict[str, Spec]:
        """One int8 a number, one float32 a scale; vectors and single numbers have one scale."""
        return {CODES: Spec(spec.shape, "int8"), SCALE: Spec(self._scales(spec.shape), "float32")}

    def _scales(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:1] if self._config.scale == "channel" and len(shape) > 1 else ()

    def encode(self, tensor: torch.Tensor, seed: int) -> Tensors:
        """A channel of zeros has the scale 0."""
        shape = self._scales(tuple(tensor.shape))
        rows = tensor.reshape(*shape or (1,), -1)
        scale = rows.abs().amax(dim=1).to(torch.float32) / LIMIT
        steps = rows / torch.where(scale > 0, scale, 1.0)[:, None]
        if self._config.rounding == "stochastic":
            # Drawn on the processor: the same numbers wherever the tensor is.
            draw = torch.rand(rows.shape, generator=torch.Generator().manual_seed(seed)).to(rows.device)
            steps = (steps + draw).floor()
        codes = steps.round().clamp(-LIMIT, LIMIT).to(torch.int8)
        return {CODES: codes.reshape(tensor.shape), SCALE: scale.reshape(shape)}

    def decode(self, parts: Tensors, spec: Spec) -> torch.Tensor:
        """``q s``.

        Raises:
            ValueError: a scale that is negative or not finite, or the code -128.
        """
        codes, scale = parts[CODES], parts[SCALE].reshape(-1, 1)
        if not bool((scale.isfinite() & (scale >= 0)).all()):
            raise ValueError("a scale is not a finite number of at least 0")
        if bool((codes < -LIMIT).any()):
            raise ValueError(f"a code lies outside -{LIMIT} … {LIMIT}")
        dtype: torch.dtype = getattr(torch, spec.dtype)
        return (codes.reshape(len(scale), -1).to(dtype) * scale.to(dtype)).reshape(spec.shape)


CODECS.register("int8")(Int8)
