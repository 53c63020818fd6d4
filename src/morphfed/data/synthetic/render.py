"""One picture: red cells and platelets around, the cell in the middle, then light, lens and camera."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphfed.core.errors import ConfigError, did_you_mean
from morphfed.data.synthetic.canvas import Canvas, Plane, Point, Window
from morphfed.data.synthetic.cells import PAINTERS, platelet
from morphfed.data.synthetic.sites import HAEM, Film, SyntheticSite

CELL_CLASSES: tuple[str, ...] = tuple(PAINTERS)
"""The classes that can be drawn; names of the ontology."""

_EVANS_FUNG = (
    0.81,
    7.83,
    -4.39,
)  # Evans & Fung, Microvasc Res 1972: a red cell's thickness in µm over its radius


def render_cell(
    cell_class: str, site: SyntheticSite, rng: np.random.Generator, *, film: Film | None = None
) -> NDArray[np.uint8]:
    """Draw one stained cell.

    Args:
        cell_class: one of :data:`CELL_CLASSES`.
        site: the laboratory.
        rng: all randomness; the same state gives the same picture.
        film: the patient's film; a fresh one is drawn when None.

    Returns:
        Array (image_px, image_px, 3), RGB.

    Raises:
        ConfigError: there is no such class.
    """
    if cell_class not in PAINTERS:
        raise ConfigError(
            f"There is no synthetic cell '{cell_class}'.{did_you_mean(cell_class, PAINTERS)}",
            fix=f"choose one of: {', '.join(CELL_CLASSES)}.",
        )
    film = film or site.film(rng)
    canvas = Canvas(site.image_px, site.um_per_px, rng)
    centre = (float(rng.normal(0, 0.5)), float(rng.normal(0, 0.5)))
    reach = {"monocyte": 8.6, "lymphocyte": 4.9, "erythroblast": 5.0, "platelet": 1.7}.get(cell_class, 6.8)
    _red_cells(canvas, film, centre, keep_off=reach)
    for _ in range(rng.poisson(0.25)):
        _stray_platelet(canvas, centre, reach)
    PAINTERS[cell_class](canvas, centre)
    return _photograph(canvas, site, film)


def _red_cells(canvas: Canvas, film: Film, centre: Point, *, keep_off: float) -> None:
    """Scatter red cells that touch and overlap a little, and that the cell in the middle has pushed aside."""
    rng, half = canvas.rng, canvas.half + 3.0
    wanted = rng.poisson(film.red_cells * (2 * half) ** 2 / 100)
    placed: list[Point] = []
    for _ in range(6 * wanted):
        if len(placed) >= wanted:
            break
        x, y = rng.uniform(-half, half, 2)
        if np.hypot(x - centre[0], y - centre[1]) < keep_off + 0.40 * film.red_cell_um:
            continue
        if any(np.hypot(x - px, y - py) < rng.uniform(0.80, 1.0) * film.red_cell_um for px, py in placed):
            continue
        placed.append((float(x), float(y)))
        _red_cell(canvas, film, (float(x), float(y)))


def _red_cell(canvas: Canvas, film: Film, at: Point) -> None:
    rng, radius = canvas.rng, canvas.rng.normal(film.red_cell_um, 0.3) / 2
    window = _window(canvas, at, 1.3 * radius)
    if window is None:
        return
    inside = canvas.blob(at, radius, roughness=0.05, aspect=float(np.exp(rng.normal(0, 0.09))), window=window)
    rho = np.clip(1 - inside / radius, 0, 0.97) ** 2
    c0, c1, c2 = _EVANS_FUNG
    disc = (c0 + c1 * rho + c2 * rho**2) * np.sqrt(1 - rho) / 2.3
    pallor = np.clip(film.pallor + rng.normal(0, 0.15), 0, 1)
    thickness = (1 - pallor) * 0.85 + pallor * disc
    canvas.dye[HAEM][window] += canvas.soft(inside, 0.25) * thickness.astype(np.float32) * rng.uniform(0.88, 1.1)


def _window(canvas: Canvas, at: Point, reach: float) -> Window | None:
    """Rows and columns within ``reach`` µm of a point, or None when that lies outside the field."""
    low = [int(np.floor((a - reach + canvas.half) / canvas.um_per_px)) for a in (at[1], at[0])]
    high = [int(np.ceil((a + reach + canvas.half) / canvas.um_per_px)) for a in (at[1], at[0])]
    if min(high) <= 0 or max(low) >= canvas.side:
        return None
    rows, columns = (slice(max(a, 0), min(b, canvas.side)) for a, b in zip(low, high, strict=True))
    return rows, columns


def _stray_platelet(canvas: Canvas, centre: Point, reach: float) -> None:
    x, y = canvas.rng.uniform(-canvas.half, canvas.half, 2)
    if np.hypot(x - centre[0], y - centre[1]) > reach + 2:
        platelet(canvas, (float(x), float(y)))


def _photograph(canvas: Canvas, site: SyntheticSite, film: Film) -> NDArray[np.uint8]:
    """Beer–Lambert law, uneven light, point spread, camera curve and noise."""
    rng = canvas.rng
    density = np.tensordot(canvas.dye, film.vectors, axes=(0, 0))  # (side, side, 3)
    light = np.exp(-density) * film.background
    light *= _illumination(canvas, site)[..., None]
    sigma = site.blur * rng.uniform(0.8, 1.3) / site.um_per_px
    if sigma > 0.2:
        light = ndimage.gaussian_filter(light, (sigma, sigma, 0), truncate=3)
    light = np.clip(light, 0, 1) ** np.float32(site.contrast * np.exp(rng.normal(0, 0.02)))
    light += rng.standard_normal(light.shape, np.float32) * np.sqrt(0.2 + 0.8 * light) * np.float32(site.noise)
    return np.clip(np.rint(light * 255), 0, 255).astype(np.uint8)


def _illumination(canvas: Canvas, site: SyntheticSite) -> Plane:
    angle = canvas.rng.uniform(0, 2 * np.pi)
    slope = (canvas.x * np.float32(np.cos(angle)) + canvas.y * np.float32(np.sin(angle))) / np.float32(canvas.half)
    corner = (canvas.x**2 + canvas.y**2) / np.float32(2 * canvas.half**2)
    return np.asarray(1 - site.gradient * (slope + 1) / 2 - site.vignette * corner, np.float32)
