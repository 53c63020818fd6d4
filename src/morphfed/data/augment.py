"""Augmentation on whole batches of tensors, drawn from a generator that the caller owns.

Geometry (flips, right angles, small affine) is one 2×3 matrix and one resampling per image. Colour (stain strength in
optical-density space, hue, saturation, brightness) is one affine map of the three channels before and after the
logarithm. Own code because the libraries at hand draw from the global generator, which breaks "same seed, same bytes"
as soon as two sites share a process, and none perturbs stain vectors (docs/decisions/0003-augmentation.md).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field

from morphfed.core.config import Config

if TYPE_CHECKING:
    from torch import Generator, Tensor


class AugmentConfig(Config):
    """What is perturbed, and how much. A strength of 0 (or false) switches a perturbation off."""

    flips: bool = Field(True, description="mirror at random, horizontally and vertically")
    right_angles: bool = Field(True, description="turn by a random multiple of 90 degrees")
    rotate_degrees: float = Field(15.0, ge=0, le=180, description="further rotation, uniform in ± this")
    scale: float = Field(0.10, ge=0, lt=1, description="zoom, log-uniform in 1 / (1 + s) … 1 + s")
    shift: float = Field(0.05, ge=0, le=0.5, description="translation, uniform in ± this share of the side")
    stain: float = Field(0.2, ge=0, le=2, description="sd of the log of each stain's strength")
    stain_mix: float = Field(0.05, ge=0, le=1, description="sd of the mixing between the density channels")
    background: float = Field(0.05, ge=0, le=1, description="sd of an offset of the optical density, per channel")
    hue: float = Field(0.03, ge=0, le=0.5, description="hue rotation, uniform in ± this share of the circle")
    saturation: float = Field(0.15, ge=0, le=1, description="uniform in 1 ± this")
    brightness: float = Field(0.10, ge=0, le=1, description="uniform in 1 ± this")
    strength: float = Field(1.0, ge=0, le=3, description="multiplies all colour perturbations")


NO_AUGMENTATION = AugmentConfig(
    flips=False, right_angles=False, rotate_degrees=0, scale=0, shift=0, stain=0, stain_mix=0, background=0,
    hue=0, saturation=0, brightness=0,
)  # fmt: skip


class Augment:
    """Perturb batches.

    Args:
        config: what and how much.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        c = config
        self._moves = bool(c.flips or c.right_angles or c.rotate_degrees or c.scale or c.shift)
        self._stains = bool(c.strength and (c.stain or c.stain_mix or c.background))
        self._colours = bool(c.strength and (c.hue or c.saturation or c.brightness))

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Perturb each image of a batch on its own.

        Args:
            images: float ``(N, 3, H, W)`` in [0, 1].
            generator: CPU generator; the same state gives the same result on every device.

        Returns:
            Same shape and range.
        """
        return self.apply(images, self.draw(len(images), generator))

    def draw(self, n: int, generator: Generator) -> Tensor:
        """Draw what happens to ``n`` images: one flat float32 tensor in host memory, so that it travels in one copy.

        Its blocks are, where switched on: moves ``(n, 2, 3)``, stain mixing ``(n, 3, 3)``, stain offsets ``(n, 3, 1)``
        and colour mixing ``(n, 3, 3)``; at most 27 numbers an image. Empty where nothing is perturbed.
        """
        parts: list[Tensor] = []
        if self._moves:
            parts.append(self._geometry(n, generator))
        if self._stains:
            parts += self._stain_changes(n, generator)
        if self._colours:
            parts.append(self._colour(n, generator))
        return torch.cat([part.reshape(-1) for part in parts]) if parts else torch.empty(0)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Perturb images as drawn; nothing waits for the device.

        Args:
            images: float ``(N, 3, H, W)`` in [0, 1].
            draws: of :meth:`draw` for ``N`` images, on the same device.
        """
        at = 0

        def block(*shape: int) -> Tensor:
            nonlocal at
            start, at = at, at + len(images) * math.prod(shape)
            return draws[start:at].view(-1, *shape)

        if self._moves:
            images = move(images, block(2, 3))
        if self._stains:
            density = -torch.log(images.clamp(min=1.0 / 255.0))
            density = mix_channels(density, block(3, 3)) + block(3, 1, 1).to(images.dtype)
            images = torch.exp(-density.clamp_(min=0.0))
        if self._colours:
            images = mix_channels(images, block(3, 3)).clamp_(0, 1)
        return images

    def with_masks(self, images: Tensor, masks: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Perturb images as :meth:`apply` does, and move their masks alike; the masks' values stay.

        Args:
            images: float ``(N, 3, H, W)`` in [0, 1].
            masks: uint8 ``(N, H, W)``.
            draws: as in :meth:`apply`.
        """
        if self._moves:
            matrices = draws[: 6 * len(masks)].view(-1, 2, 3)
            masks = move(masks[:, None].float(), matrices, mode="nearest")[:, 0].to(masks.dtype)
        return self.apply(images, draws), masks

    def _geometry(self, n: int, g: Generator) -> Tensor:
        c = self.config
        angle = _uniform(n, c.rotate_degrees * math.pi / 180, g)
        if c.right_angles:
            angle = angle + torch.randint(0, 4, (n,), generator=g) * (math.pi / 2)
        mirror = torch.ones(n, 2)
        if c.flips:
            mirror = 1.0 - 2.0 * torch.randint(0, 2, (n, 2), generator=g)
        zoom = torch.exp(_uniform(n, math.log1p(c.scale), g))
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        matrix = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1) * mirror[:, None, :]
        offset = (torch.rand(n, 2, 1, generator=g) * 2 - 1) * (2 * c.shift)
        return torch.cat([matrix, offset], dim=2)

    def _stain_changes(self, n: int, g: Generator) -> list[Tensor]:
        """Mixing ``(n, 3, 3)`` and offset ``(n, 3, 1)`` of the optical density."""
        c = self.config
        strength = torch.exp(torch.randn(n, 3, generator=g) * (c.stain * c.strength))
        mixing = torch.diag_embed(strength) + torch.randn(n, 3, 3, generator=g) * (c.stain_mix * c.strength)
        return [mixing, torch.randn(n, 3, 1, generator=g) * (c.background * c.strength)]

    def _colour(self, n: int, g: Generator) -> Tensor:
        c = self.config
        turn = _uniform(n, 2 * math.pi * c.hue * c.strength, g)
        saturation = 1 + _uniform(n, min(1.0, c.saturation * c.strength), g)
        brightness = 1 + _uniform(n, min(1.0, c.brightness * c.strength), g)
        rotation = torch.zeros(n, 3, 3)
        rotation[:, 0, 0] = 1
        rotation[:, 1, 1] = rotation[:, 2, 2] = torch.cos(turn) * saturation
        rotation[:, 1, 2] = -torch.sin(turn) * saturation
        rotation[:, 2, 1] = torch.sin(turn) * saturation
        mixing: Tensor = brightness[:, None, None] * (torch.linalg.inv(_YIQ) @ rotation @ _YIQ)
        return mixing


# Luma and two chroma axes (NTSC): hue turns the chroma plane, saturation stretches it, luma stays.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def _uniform(n: int, half_width: float, generator: Generator) -> Tensor:
    return (torch.rand(n, generator=generator) * 2 - 1) * half_width


def move(images: Tensor, matrices: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Resample images under affine maps (output → input, normalised coordinates), border reflected.

    Args:
        images: ``(N, C, H, W)``.
        matrices: ``(N, 2, 3)``.
        mode: ``bilinear``; ``nearest`` for masks, whose values must not mix.
    """
    n, channels, height, width = images.shape
    grid = F.affine_grid(matrices.to(images.device, images.dtype), [n, channels, height, width], align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="reflection", align_corners=False)


def mix_channels(images: Tensor, matrices: Tensor) -> Tensor:
    """Apply one 3×3 matrix per image to its channels.

    Args:
        images: ``(N, 3, H, W)``.
        matrices: ``(N, 3, 3)``.
    """
    n, _, height, width = images.shape
    flat = images.reshape(n, 3, height * width)
    return torch.bmm(matrices.to(images.device, images.dtype), flat).reshape(n, 3, height, width)
