"""What a synthetic tissue is made of: glands, stroma and tumours as densities of haematoxylin and eosin.

Sizes in µm after textbooks of histology: a resting nucleus is 6–8 µm wide, a malignant one larger and less even; a
gland of the colon is 60–90 µm across.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphfed.data.synthetic.canvas import Canvas, Plane

GLASS, TISSUE, TUMOUR = 0, 1, 2
"""Values of the masks."""

_COARSE = 8.0  # µm per pixel on which shapes of hundreds of µm are drawn


class Tissue:
    """A square slide in micrometres.

    Args:
        side_um: of the square.
        um_per_px: size of a pixel.
        rng: all randomness.

    Attributes:
        side: pixels.
        inside: (side, side) distance inside the tissue in µm, negative on glass.
        tumour: (side, side) distance inside the tumour; all negative where there is none.
        haematoxylin, eosin: (side, side) densities.
    """

    def __init__(self, side_um: float, um_per_px: float, rng: np.random.Generator) -> None:
        self.side, self.um_per_px, self.rng = round(side_um / um_per_px), um_per_px, rng
        self._shapes = Canvas(max(8, round(side_um / _COARSE)), _COARSE, rng)
        radius = rng.uniform(0.30, 0.38) * side_um
        shift = rng.uniform(-0.06, 0.06, 2) * side_um
        self._centre = (float(shift[0]), float(shift[1]))
        self._radius = radius
        self.inside = self._fine(
            self._shapes.blob(self._centre, radius, roughness=0.22, aspect=float(rng.uniform(0.7, 1.4)))
            + 12 * self._shapes.noise(40)
        )
        self.tumour: Plane = np.full_like(self.inside, -1e3)
        self.haematoxylin: Plane = np.zeros_like(self.inside)
        self.eosin: Plane = np.zeros_like(self.inside)

    def _fine(self, coarse: NDArray[np.floating]) -> Plane:
        """From the coarse grid to the slide's pixels."""
        at = ((np.arange(self.side) + 0.5) * self.um_per_px / _COARSE - 0.5).astype(np.float32)
        rows = _interpolated(np.asarray(coarse, np.float32), at)
        return np.ascontiguousarray(_interpolated(np.ascontiguousarray(rows.T), at).T)

    def noise(self, grain: float) -> Plane:
        """Smooth noise of zero mean and unit spread, bumps about ``grain`` µm wide."""
        return Canvas.noise(self._like(), grain)

    def _like(self) -> Canvas:
        canvas = Canvas.__new__(Canvas)
        canvas.side, canvas.um_per_px, canvas.rng = self.side, self.um_per_px, self.rng
        return canvas

    def grow_tumour(self, share: float) -> None:
        """Place a tumour of about ``share`` of the tissue's area inside it."""
        radius = self._radius * np.sqrt(share)
        turn, away = self.rng.uniform(0, 2 * np.pi), self.rng.uniform(0.1, 0.9) * max(0.0, self._radius - radius) * 0.8
        at = (self._centre[0] + away * np.cos(turn), self._centre[1] + away * np.sin(turn))
        shape = self._shapes.blob(at, radius, roughness=0.15, aspect=float(self.rng.uniform(0.75, 1.3)))
        self.tumour = np.minimum(self._fine(shape + 6 * self._shapes.noise(30)), self.inside - 10)

    def lay_ground(self) -> None:
        """Connective tissue: eosin in bundles, thinned in the tumour."""
        cover = np.clip(self.inside / 8 + 0.5, 0, 1)
        bundles = 1 + 0.18 * self.noise(14) + 0.12 * self.noise(2.5)
        self.eosin += cover * 0.55 * np.clip(bundles, 0.2, 2)
        self.haematoxylin += cover * 0.05
        sick = np.clip(self.tumour / 10 + 0.5, 0, 1)
        self.eosin *= 1 - 0.35 * sick
        self.haematoxylin += 0.16 * sick

    def scatter(self, per_mm2: float) -> NDArray[np.float64]:
        """Points (n, 2) in µm from the left upper corner, about evenly spaced, over the whole square."""
        gap = 1000 / np.sqrt(per_mm2)
        count = int(self.side * self.um_per_px / gap) + 1
        grid = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2)
        return np.asarray((grid + 0.5 + self.rng.uniform(-0.38, 0.38, grid.shape)) * gap, np.float64)

    def value(self, plane: Plane, points: NDArray[np.float64]) -> Plane:
        """A plane at points; far below zero outside the square."""
        at = np.floor(points / self.um_per_px).astype(int)
        within = ((at >= 0) & (at < self.side)).all(axis=1)
        at = np.clip(at, 0, self.side - 1)
        return np.where(within, plane[at[:, 1], at[:, 0]], np.float32(-1e3)).astype(np.float32)

    def nuclei(
        self,
        points: NDArray[np.float64],
        *,
        radius: tuple[float, float],
        aspect: tuple[float, float],
        angle: NDArray[np.floating] | None = None,
        depth: float,
    ) -> None:
        """Stain an oval nucleus at each point.

        Args:
            points: (n, 2) in µm.
            radius: range, of a circle of the same area.
            aspect: range of length over width.
            angle: (n,) of the long axis; None: any.
            depth: density of haematoxylin.
        """
        count, rng = len(points), self.rng
        turn = rng.uniform(0, np.pi, count) if angle is None else angle
        size, long = rng.uniform(*radius, count), np.sqrt(rng.uniform(*aspect, count))
        shade = depth * rng.uniform(0.75, 1.2, count)
        reach = int(np.ceil(radius[1] * np.sqrt(aspect[1]) / self.um_per_px)) + 1
        step = np.arange(-reach, reach + 1)
        first = np.floor(points / self.um_per_px).astype(np.int64)
        columns, rows = first[:, 0, None, None] + step[None, None, :], first[:, 1, None, None] + step[None, :, None]
        dx = ((columns + 0.5) * self.um_per_px - points[:, 0, None, None]).astype(np.float32)
        dy = ((rows + 0.5) * self.um_per_px - points[:, 1, None, None]).astype(np.float32)
        cos, sin = (f(turn)[:, None, None].astype(np.float32) for f in (np.cos, np.sin))
        length, width = ((size * s)[:, None, None].astype(np.float32) for s in (long, 1 / long))
        off = np.sqrt(((dx * cos + dy * sin) / length) ** 2 + ((dy * cos - dx * sin) / width) ** 2)
        soft = np.float32(0.5 * self.um_per_px) / size[:, None, None].astype(np.float32)
        dense = shade[:, None, None].astype(np.float32) * np.clip((1 - off) / (2 * soft) + 0.5, 0, 1)
        rows, columns = np.broadcast_arrays(rows, columns)
        hit = (dense > 0) & (rows >= 0) & (rows < self.side) & (columns >= 0) & (columns < self.side)
        np.maximum.at(self.haematoxylin, (rows[hit], columns[hit]), dense[hit])

    def glands(
        self, where: Plane, *, gap: float, radius: tuple[float, float], nucleus: tuple[float, float], depth: float
    ) -> None:
        """Rings of cells around an empty lumen, wherever ``where`` is at least a gland's radius.

        Args:
            where: distance inside the region in µm.
            gap: µm between neighbouring glands.
            radius: range of a gland's.
            nucleus: range of a nucleus's radius.
            depth: of the nuclei.
        """
        rng = self.rng
        centres = self.scatter(1e6 / gap**2)
        sizes = rng.uniform(*radius, len(centres))
        fit = self.value(where, centres) > sizes * 0.8
        points, angles = [], []
        for (x, y), size in zip(centres[fit].tolist(), sizes[fit].tolist(), strict=True):
            self._gland_body(x, y, size)
            count = max(5, int(2 * np.pi * 0.74 * size / (2.5 * float(np.mean(nucleus)))))
            turn = np.arange(count) * 2 * np.pi / count + rng.normal(0, 0.12, count)
            ring = 0.74 * size + rng.normal(0, 0.06 * size, count)
            points.append(np.stack([x + ring * np.cos(turn), y + ring * np.sin(turn)], axis=1))
            angles.append(turn)
        if points:
            self.nuclei(
                np.concatenate(points), radius=nucleus, aspect=(1.3, 2.0), angle=np.concatenate(angles), depth=depth
            )

    def _gland_body(self, x: float, y: float, size: float) -> None:
        """The cytoplasm around a lumen."""
        reach = int(np.ceil(size / self.um_per_px)) + 2
        column, row = int(x / self.um_per_px), int(y / self.um_per_px)
        rows = slice(max(0, row - reach), max(0, row + reach))
        columns = slice(max(0, column - reach), max(0, column + reach))
        dy = (np.arange(self.side, dtype=np.float32)[rows] + 0.5) * self.um_per_px - y
        dx = (np.arange(self.side, dtype=np.float32)[columns] + 0.5) * self.um_per_px - x
        away = np.hypot(dx[None, :], dy[:, None])
        body = np.clip((size - away) / 2 + 0.5, 0, 1)
        lumen = np.clip((0.42 * size - away) / 2 + 0.5, 0, 1)
        for plane, cytoplasm in ((self.eosin, 0.62), (self.haematoxylin, 0.12)):
            part = plane[rows, columns]
            part += body * (cytoplasm - part)
            part *= 1 - 0.93 * lumen

    def regions(self) -> NDArray[np.uint8]:
        """``(side, side)``: glass, tissue or tumour."""
        found = np.where(self.inside > 0, TISSUE, GLASS).astype(np.uint8)
        found[self.tumour > 0] = TUMOUR
        return found

    def flow(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Direction of fibres at points, turning over hundreds of µm."""
        field = ndimage.gaussian_filter(self._shapes.noise(60), 2)
        return np.asarray(1.5 * self.value(self._fine(field), points), np.float64)


def _interpolated(plane: Plane, at: NDArray[np.float32]) -> Plane:
    """Rows of a plane at fractional places, linearly; beyond the ends the end."""
    low = np.clip(np.floor(at).astype(int), 0, len(plane) - 2)
    share = np.clip(at - low, 0, 1)[:, None]
    return np.asarray(plane[low] * (1 - share) + plane[low + 1] * share, np.float32)
