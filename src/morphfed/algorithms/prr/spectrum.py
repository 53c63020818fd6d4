"""Weights as matrices, their low frequencies, and what several models' low frequencies have in common.

Everything is done on the half spectrum of a real matrix; the other half is its mirror image. A band that holds a
frequency and not its negative therefore counts by half there, which is exactly what taking the real part after a full
inverse transform does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

Phase = Literal["private", "arithmetic", "circular", "complex"]

_LEVEL = 1e-6
"""A mean of unit phasors that is shorter than this has no direction: the phases cancel."""


def shared_band(n: int, ratio: float, *, symmetric: bool) -> Tensor:
    """Which of a side's ``n`` frequencies are shared, bool ``(n,)`` in the order of the transform (0, 1, …, -2, -1).

    With ``b = ⌊n L / 2⌋``: the signed frequencies -b … b-1 as published, or -b … b.

    Args:
        n: ≥ 1.
        ratio: L in [0, 1].
        symmetric: share b as well as -b.
    """
    reach = math.floor(n * ratio / 2 + 1e-9)
    signed: Tensor = torch.fft.fftfreq(n, 1 / n).round().long()  # n / 2 appears as -n / 2
    return (signed >= -reach) & (signed <= reach if symmetric else signed < reach)


def band_weights(shape: tuple[int, ...], ratio: float, *, symmetric: bool) -> Tensor:
    """Share of a change that each coefficient of the half spectrum takes, float64: 1 within the band, 0 outside.

    Where the band holds a frequency and not its negative it is ½.

    Args:
        shape: ``(n,)`` or ``(rows, columns)`` of the real signal.
        ratio: L in [0, 1].
        symmetric: see :func:`shared_band`.

    Returns:
        ``(n // 2 + 1,)`` or ``(rows, columns // 2 + 1)``.
    """
    sides = [shared_band(n, ratio, symmetric=symmetric).double() for n in shape]
    mirrored = [side.roll(-1).flip(0) for side in sides]  # the value at -f
    there, back = (torch.outer(*pair) if len(shape) == 2 else pair[0] for pair in (sides, mirrored))
    both = (there + back) / 2
    return both[..., : shape[-1] // 2 + 1]


def matrix(weight: Tensor) -> Tensor:
    """The matrix whose frequencies are shared: inputs along rows, outputs along columns.

    A convolution's ``(O, I, kh, kw)`` becomes ``(I · kh, kw · O)``, row ``i · kh + a``, column ``b · O + o``;
    a linear layer's ``(O, I)`` stays as it is.
    """
    return plane(weight).mT if weight.ndim > 2 else plane(weight)


def plane(weight: Tensor) -> Tensor:
    """:func:`matrix`, transposed for convolutions: the orientation in which they lie in memory nearly as they are.

    A transposed matrix has the transposed spectrum, and the band is a product of its sides'.
    """
    if weight.ndim == 2:
        return weight
    first = unfolded(weight)
    return first.reshape(first.shape[0] * first.shape[1], -1)


def unfolded(weight: Tensor) -> Tensor:
    """:func:`plane` before its axes are joined, a view: ``(kw, O, I, kh)`` of a convolution."""
    return weight if weight.ndim == 2 else weight.movedim(-1, 0)


def weight_of(flat: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of :func:`plane`."""
    if len(shape) == 2:
        return flat
    return flat.reshape(shape[-1], *shape[:-1]).movedim(0, -1)


def share_band(
    models: Tensor, mean: Tensor, shares: Tensor, *, ratio: float, phase: Phase, symmetric: bool, sides: Literal[1, 2]
) -> Tensor:
    """Give every model the common low frequencies; the high ones stay its own.

    Args:
        models: real ``(K, …, n)`` or ``(K, …, rows, columns)``.
        mean: the models' weighted mean, without the first axis.
        shares: ``(K,)``, weights of the models in means; they sum to 1. A model of share 0 only receives.
        ratio: L in [0, 1].
        phase: what is averaged in the band. ``private``: amplitudes, each model keeps its phases; ``arithmetic``:
            amplitudes, and angles in (-π, π] as numbers; ``circular``: amplitudes, and angles as directions;
            ``complex``: the coefficients themselves.
        symmetric: see :func:`shared_band`.
        sides: axes of the transform.

    Returns:
        Like ``models``.
    """
    where = tuple(range(-sides, 0))
    shape = tuple(models.shape[-sides:])
    band = band_weights(shape, ratio, symmetric=symmetric).to(models.device, models.dtype)
    if phase == "complex":
        if bool((band == 1).all()):
            return mean.expand_as(models)
        change: Tensor = torch.fft.rfftn(mean - models, dim=where)
    else:
        own = _exactly_real(torch.fft.rfftn(models, dim=where), shape)
        change = _target(own, shares, phase).sub_(own)
    found: Tensor = torch.fft.irfftn(change.mul_(band), s=shape, dim=where)
    return found.add_(models)


def _exactly_real(spectrum: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Clear the rounding from the imaginary parts of coefficients that are their own mirror image.

    Their angle is 0 or π; rounding would make it -π in one model and π in another, whose mean is 0.
    """
    parts = torch.view_as_real(spectrum)
    ends = [[0, n // 2] if n % 2 == 0 else [0] for n in shape]
    if len(shape) == 1:
        for v in ends[0]:
            parts[..., v, 1] = 0.0
    else:
        for u in ends[0]:
            for v in ends[1]:
                parts[..., u, v, 1] = 0.0
    return spectrum


def _target(own: Tensor, shares: Tensor, phase: Phase) -> Tensor:
    """What the coefficients become inside the band, ``(K, …)``."""
    amplitude = own.abs()
    common = _mean(amplitude, shares)
    if phase == "arithmetic":
        angle = own.angle()
        return torch.polar(common, _mean(angle, shares)).expand_as(own).clone()
    # A coefficient of 0 has the phase 0, as atan2 says.
    unit = torch.where(amplitude > 0, own / amplitude, torch.ones_like(own))
    if phase == "circular":
        resultant = torch.view_as_complex(_mean(torch.view_as_real(unit), shares))
        length = resultant.abs()
        unit = torch.where(length > _LEVEL, resultant / length, unit)
    target: Tensor = common * unit
    return target


def _mean(values: Tensor, shares: Tensor) -> Tensor:
    mean: Tensor = torch.tensordot(shares.to(values.device, values.dtype), values, dims=1)
    return mean
