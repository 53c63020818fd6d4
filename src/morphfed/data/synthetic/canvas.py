"""A square field in micrometres on which dyes are laid, and the soft shapes that cells are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Plane = NDArray[np.float32]
Point = tuple[float, float]
Window = tuple[slice, slice]
WHOLE: Window = (slice(None), slice(None))


class Canvas:
    """Dye densities over a square field.

    Args:
        side: pixels of one side.
        um_per_px: size of a pixel.
        rng: every draw of this picture comes from it.

    Attributes:
        x, y: (side, side) coordinates of the pixels' centres in µm; the field's middle is (0, 0).
        dye: (4, side, side) densities in the order of :data:`morphfed.data.synthetic.sites.AZURE` and so on.
    """

    def __init__(self, side: int, um_per_px: float, rng: np.random.Generator) -> None:
        self.side, self.um_per_px, self.rng = side, um_per_px, rng
        axis = ((np.arange(side) - (side - 1) / 2) * um_per_px).astype(np.float32)
        self.x, self.y = np.meshgrid(axis, axis)
        self.dye: NDArray[np.float32] = np.zeros((4, side, side), np.float32)

    @property
    def half(self) -> float:
        """Half the field's side in µm."""
        return self.side * self.um_per_px / 2

    def noise(self, grain: float) -> Plane:
        """Smooth noise of zero mean and unit spread with bumps about ``grain`` µm wide (Gaussian sigma)."""
        sigma = max(grain / self.um_per_px, 0.3)
        if sigma > 4:  # coarse noise is drawn on a coarser grid: same look, a tenth of the time
            step = int(sigma // 2)
            few = self.rng.standard_normal((self.side // step + 3,) * 2, np.float32)
            plane = ndimage.gaussian_filter(few, sigma / step, mode="wrap")
            plane = ndimage.zoom(plane, step, order=1)[: self.side, : self.side]
        else:
            plane = ndimage.gaussian_filter(
                self.rng.standard_normal((self.side, self.side), np.float32), sigma, mode="wrap", truncate=3
            )
        return np.asarray((plane - plane.mean()) / (plane.std() + 1e-6), np.float32)

    def soft(self, distance: Plane, edge: float = 0.0) -> Plane:
        """Coverage 0–1 from a distance in µm (positive inside); the edge is ``edge`` µm, at least a pixel."""
        return np.asarray(np.clip(distance / max(edge, self.um_per_px) + 0.5, 0.0, 1.0), np.float32)

    def blob(
        self, centre: Point, radius: float, *, roughness: float, aspect: float = 1.0, window: Window = WHOLE
    ) -> Plane:
        """Distance inside a wavy ellipse: harmonics k = 2–7 of amplitude ``roughness`` × radius / k."""
        turn = self.rng.uniform(0, np.pi)
        dx, dy = self.x[window] - np.float32(centre[0]), self.y[window] - np.float32(centre[1])
        stretch = np.sqrt(aspect)
        unit = (dx + 1j * dy) * np.complex64(np.exp(-1j * turn))
        unit = unit.real * np.float32(stretch) + 1j * unit.imag / np.float32(stretch)
        reach = np.abs(unit)
        unit = unit / (reach + np.float32(1e-6))
        edge = np.full_like(dx, radius)
        power = unit
        for k in range(2, 8):
            power = power * unit
            amplitude = radius * roughness * self.rng.normal(0, 1) / k
            edge += (power * np.complex64(amplitude * np.exp(1j * self.rng.uniform(0, 2 * np.pi)))).real
        return np.asarray(edge - reach, np.float32)

    def beads(self, points: NDArray[np.floating], radii: NDArray[np.floating]) -> Plane:
        """Distance inside a union of discs: ``points`` (n, 2) and ``radii`` (n,), both in µm."""
        out = np.full_like(self.x, -1e3)
        for (px, py), radius in zip(points.astype(np.float32), radii.astype(np.float32), strict=True):
            np.maximum(out, radius - np.hypot(self.x - px, self.y - py), out=out)
        return out

    def granules(self, where: Plane, per_um2: float, radius: float) -> Plane:
        """Scatter about ``per_um2`` granules a µm² over ``where``; density 0–1, saturating on overlap."""
        hit = self.rng.random(where.shape, np.float32) < where * np.float32(per_um2 * self.um_per_px**2)
        weight = hit * self.rng.uniform(0.6, 1.4, where.shape).astype(np.float32)
        sigma = max(0.6 * radius / self.um_per_px, 0.45)
        heap = ndimage.gaussian_filter(weight, sigma, truncate=3) * np.float32(2 * np.pi * sigma**2)
        return np.asarray(1 - np.exp(-1.5 * heap), np.float32)

    def replace(self, cover: Plane, *, azure: object = 0.0, blue: object = 0.0, eosin: object = 0.0) -> None:
        """Put something opaque to what lies beneath: inside ``cover`` the dyes become those given."""
        keep = 1 - cover
        for index, density in enumerate((azure, blue, eosin, 0.0)):
            self.dye[index] *= keep
            if not (isinstance(density, float) and density == 0.0):
                self.dye[index] += cover * np.asarray(density, np.float32)
