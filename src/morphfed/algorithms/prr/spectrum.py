"""Weights as matrices, their low frequencies, and what several models' low frequencies have in common.

Everything is done on the half spectrum of a real matrix; the other half is its mirror image. A band that holds a
frequency and not its negative therefore counts by half there, which is exactly what taking the real part after a full
inverse transform does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
    models: Sequence[Tensor],
    mean: Tensor,
    shares: Sequence[float],
    *,
    ratio: float,
    phase: Phase,
    symmetric: bool,
    sides: Literal[1, 2],
) -> Iterator[Tensor]:
    """Give every model the common low frequencies; the high ones stay its own.

    Models are looked at one at a time, in their order, so that a step uses the memory of the one before again; all
    phases but ``complex`` look at each twice, and hold the spectra of all.

    Args:
        models: K real tensors ``(…, n)`` or ``(…, rows, columns)``, which are not changed. They may be made as they
            are asked for, in the memory of the one before.
        mean: the models' weighted mean, of the same shape.
        shares: K weights of the models in means; they sum to 1. A model of share 0 only receives.
        ratio: L in [0, 1].
        phase: what is averaged in the band. ``private``: amplitudes, each model keeps its phases; ``arithmetic``:
            amplitudes, and angles in (-π, π] as numbers; ``circular``: amplitudes, and angles as directions;
            ``complex``: the coefficients themselves.
        symmetric: see :func:`shared_band`.
        sides: axes of the transform.

    Yields:
        Each model afterwards, in memory of its own.
    """
    shape = tuple(mean.shape[-sides:])
    band = band_weights(shape, ratio, symmetric=symmetric).to(mean.device, mean.dtype)
    if phase == "complex":
        whole, band = bool((band == 1).all()), _complex(band)
        for k in range(len(models)):
            yield mean.clone() if whole else _moved(models[k], _spectrum(mean - models[k], sides), band, sides)
        return
    band = _complex(band)
    spectra = [_exactly_real(_spectrum(models[k], sides), shape) for k in range(len(models))]
    target = _Target(spectra, shares, phase)
    for k in range(len(models)):
        yield _moved(models[k], target.change(spectra, k), band, sides)


def _complex(band: Tensor) -> Tensor:
    """The same numbers as what they multiply: a product of two kinds would convert them anew each time."""
    return torch.complex(band, torch.zeros_like(band))


def _spectrum(values: Tensor, sides: Literal[1, 2]) -> Tensor:
    """Half spectrum of the last one or two axes."""
    found: Tensor = torch.fft.rfft(values, dim=-1)
    return torch.fft.fft(found, dim=-2) if sides == 2 else found


def _moved(model: Tensor, change: Tensor, band: Tensor, sides: Literal[1, 2]) -> Tensor:
    """``model`` with the change of its spectrum, of which each coefficient takes the share ``band``."""
    change.mul_(band)
    if sides == 2:
        change = torch.fft.ifft(change, dim=-2)
    found: Tensor = torch.fft.irfft(change, n=model.shape[-1], dim=-1)
    return found.add_(model)


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


class _Target:
    """What coefficients become inside the band.

    Args:
        spectra: of the K models.
        shares: their weights.
        phase: any but ``complex``.
    """

    def __init__(self, spectra: Sequence[Tensor], shares: Sequence[float], phase: Phase) -> None:
        self._amplitude = torch.zeros_like(spectra[0].real)
        self._common: Tensor | None = None
        self._open: Tensor | None = None
        parts = None if phase == "private" else torch.zeros_like(spectra[0] if phase == "circular" else self._amplitude)
        for own, share in zip(spectra, shares, strict=True):
            self._amplitude.add_(own.abs(), alpha=share)
            if parts is not None:
                parts.add_(_unit(own) if phase == "circular" else own.angle(), alpha=share)
        if parts is None:
            return
        if phase == "arithmetic":
            self._common = torch.polar(self._amplitude, parts)
            return
        self._open = parts.abs() <= _LEVEL
        self._common = parts.sgn_().mul_(self._amplitude)

    def change(self, spectra: Sequence[Tensor], k: int) -> Tensor:
        """What model k's coefficients would change by if all of them were in the band, in new memory."""
        own = spectra[k]
        if self._common is None:
            return _unit(own).mul_(self._amplitude).sub_(own)
        if self._open is None:
            return self._common - own
        return torch.where(self._open, _unit(own).mul_(self._amplitude), self._common).sub_(own)


def _unit(spectrum: Tensor) -> Tensor:
    """Phases as numbers of amplitude 1; a coefficient of 0 has the phase 0, as atan2 says."""
    found: Tensor = spectrum.sgn()
    found.real.masked_fill_(found == 0, 1.0)
    return found
