"""How each kind of cell is built. Sizes are diameters in a dried film, in µm.

What tells the classes apart, and their sizes, follow the ICSH recommendations on peripheral blood cell
morphology (Palmer et al., Int J Lab Hematol 2015) and Bain, Blood Cells: A Practical Guide (5th ed.).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from morphfed.data.synthetic.canvas import Canvas, Plane, Point
from morphfed.data.synthetic.sites import AZURE, BLUE, EOSIN

Painter = Callable[[Canvas, Point], float]


def neutrophil(canvas: Canvas, centre: Point) -> float:
    """Segmented: 2–5 lobes on thin bridges, pale pink cytoplasm with fine granules; 12–14 µm."""
    radius = canvas.rng.uniform(12.0, 14.2) / 2
    body = _granulocyte(canvas, centre, radius)
    lobes = int(canvas.rng.choice([2, 3, 4, 5], p=[0.15, 0.45, 0.3, 0.1]))
    size = {2: 2.5, 3: 2.15, 4: 1.85, 5: 1.65}[lobes] * radius / 6.5
    _nucleus(canvas, _lobed(canvas, centre, lobes, size, 0.50 * radius), within=body, clumping=0.42)
    return radius


def band(canvas: Canvas, centre: Point) -> float:
    """Band neutrophil: a curved sausage without a bridge, otherwise as the segmented form; 12–14.5 µm."""
    radius = canvas.rng.uniform(12.0, 14.5) / 2
    body = _granulocyte(canvas, centre, radius)
    points = _arc(canvas, centre, bend=0.52 * radius, span=canvas.rng.uniform(2.9, 4.3), count=22)
    along = np.linspace(-1, 1, len(points))
    waist = canvas.rng.uniform(0.05, 0.28)
    width = canvas.rng.uniform(1.5, 1.95) * (1 - waist * (1 - along**2)) * radius / 6.5
    _nucleus(canvas, canvas.beads(points, width), within=body, clumping=0.36)
    return radius


def lymphocyte(canvas: Canvas, centre: Point) -> float:
    """Round dense nucleus that nearly fills a small cell, a thin rim of clear blue; 8–11 µm."""
    rng = canvas.rng
    radius = rng.uniform(8.0, 10.8) / 2
    body = canvas.blob(centre, radius, roughness=0.06, aspect=rng.uniform(0.85, 1.15)) + 0.10 * canvas.noise(0.5)
    rim = 1 + 0.5 * np.exp(-((body / 0.5) ** 2))
    canvas.replace(canvas.soft(body, 0.3), blue=0.62 * rim * (1 + 0.10 * canvas.noise(0.4)), eosin=0.05)
    fill = rng.uniform(0.80, 0.93)
    inner = canvas.blob(_near(rng, centre, 0.06 * radius), fill * radius, roughness=0.03, aspect=rng.uniform(0.9, 1.1))
    if rng.random() < 0.3:
        inner = _indent(canvas, inner, centre, fill * radius, depth=0.15)
    _nucleus(canvas, inner, within=body, density=0.95, clumping=0.27, grain=0.6)
    return radius


def monocyte(canvas: Canvas, centre: Point) -> float:
    """Large; kidney-shaped or folded lacy nucleus, grey-blue ground-glass cytoplasm, vacuoles; 15–19 µm."""
    rng = canvas.rng
    radius = rng.uniform(15.0, 18.6) / 2
    body = canvas.blob(centre, radius, roughness=0.075, aspect=rng.uniform(0.85, 1.15)) + 0.18 * canvas.noise(0.9)
    cover = canvas.soft(body, 0.35)
    glass = 1 + 0.16 * canvas.noise(0.28) + 0.10 * canvas.noise(1.0)
    canvas.replace(cover, blue=0.52 * glass, eosin=0.13 * glass)
    dust = canvas.granules(cover, per_um2=1.2, radius=0.18)
    canvas.dye[AZURE] += 0.10 * dust * cover
    middle = _near(rng, centre, 0.12 * radius)
    points = _arc(canvas, middle, bend=rng.uniform(0.30, 0.42) * radius, span=rng.uniform(2.4, 4.2), count=16)
    width = rng.uniform(0.38, 0.46) * radius * (1 + 0.08 * rng.standard_normal(16).cumsum() / 3)
    nucleus = canvas.beads(points, width) + np.float32(0.22) * canvas.noise(1.1)
    _vacuoles(canvas, body, nucleus, count=int(rng.poisson(2.5)))
    _nucleus(canvas, nucleus, within=body, density=0.80, clumping=0.30, grain=0.36)
    return radius


def eosinophil(canvas: Canvas, centre: Point) -> float:
    """Two (or three) lobes, cytoplasm packed with coarse orange granules; 12–15 µm."""
    rng = canvas.rng
    radius = rng.uniform(12.4, 15.0) / 2
    body = canvas.blob(centre, radius, roughness=0.035, aspect=rng.uniform(0.9, 1.1))
    cover = canvas.soft(body, 0.25)
    canvas.replace(cover, eosin=0.38, blue=0.08)
    inside = canvas.soft(body - 0.35, 0.2)
    grains = canvas.granules(inside, per_um2=rng.uniform(2.2, 3.4), radius=rng.uniform(0.30, 0.40))
    canvas.dye[EOSIN] += grains * inside * rng.uniform(0.50, 0.75)
    lobes = int(rng.choice([2, 3], p=[0.85, 0.15]))
    size = (2.75 if lobes == 2 else 2.25) * radius / 6.8
    shift = _near(rng, centre, 0.22 * radius)
    _nucleus(canvas, _lobed(canvas, shift, lobes, size, 0.42 * radius), within=body, density=0.92, clumping=0.3)
    return radius


def basophil(canvas: Canvas, centre: Point) -> float:
    """Coarse purple-black granules over all of the cell, hiding a pale lobed nucleus; 11–13.5 µm."""
    rng = canvas.rng
    radius = rng.uniform(11.0, 13.5) / 2
    body = canvas.blob(centre, radius, roughness=0.06, aspect=rng.uniform(0.85, 1.15)) + 0.10 * canvas.noise(0.5)
    cover = canvas.soft(body, 0.3)
    canvas.replace(cover, eosin=0.22, blue=0.22, azure=0.12)
    lobes = int(rng.choice([2, 3]))
    nucleus = _lobed(canvas, centre, lobes, 0.46 * radius, 0.40 * radius)
    _nucleus(canvas, nucleus, within=body, density=0.70, clumping=0.18, grain=0.9)
    inside = canvas.soft(body + np.float32(0.15), 0.2)
    patches = np.clip(0.75 + 0.45 * np.tanh(canvas.noise(1.3)), 0.1, 1).astype(np.float32)
    grains = canvas.granules(inside * patches, rng.uniform(1.8, 3.4), rng.uniform(0.26, 0.40))
    canvas.dye[AZURE] += grains * inside * rng.uniform(0.85, 1.1)
    return radius


def platelet(canvas: Canvas, centre: Point) -> float:
    """Fragment with a pale blue edge and a heap of violet granules; 2.5–5 µm."""
    radius = canvas.rng.uniform(2.6, 4.8) / 2
    body = canvas.blob(centre, radius, roughness=0.16, aspect=canvas.rng.uniform(0.75, 1.3))
    cover = canvas.soft(body, 0.5)
    heap = canvas.granules(canvas.soft(body - 0.2 * radius, 0.6), per_um2=4.5, radius=0.22)
    canvas.replace(cover, blue=0.30, eosin=0.10, azure=0.06 + 0.55 * heap)
    return radius


def erythroblast(canvas: Canvas, centre: Point) -> float:
    """Nucleated red cell: small round ink-black nucleus, grey-pink to blue cytoplasm; 8–11 µm."""
    rng = canvas.rng
    radius = rng.uniform(8.2, 11.0) / 2
    body = canvas.blob(centre, radius, roughness=0.03, aspect=rng.uniform(0.9, 1.1))
    ripe = rng.uniform(0.0, 1.0)
    cloud = 1 + 0.08 * canvas.noise(0.6)
    canvas.replace(canvas.soft(body, 0.3), blue=(0.75 - 0.45 * ripe) * cloud, eosin=(0.12 + 0.25 * ripe) * cloud)
    inner = canvas.blob(_near(rng, centre, 0.15 * radius), rng.uniform(0.52, 0.66) * radius, roughness=0.02)
    _nucleus(canvas, inner, within=body, density=1.2, clumping=0.42, grain=0.5)
    return radius


PAINTERS: dict[str, Painter] = {
    "neutrophil": neutrophil,
    "band": band,
    "lymphocyte": lymphocyte,
    "monocyte": monocyte,
    "eosinophil": eosinophil,
    "basophil": basophil,
    "platelet": platelet,
    "erythroblast": erythroblast,
}
"""Ontology name → painter, which lays one cell on a canvas and returns its radius in µm."""


def _granulocyte(canvas: Canvas, centre: Point, radius: float) -> Plane:
    """Lay a neutrophil's cytoplasm and return the distance inside the cell."""
    rng = canvas.rng
    body = canvas.blob(centre, radius, roughness=0.045, aspect=rng.uniform(0.88, 1.14))
    cover = canvas.soft(body, 0.3)
    cloud = 1 + 0.12 * canvas.noise(0.5)
    canvas.replace(cover, eosin=rng.uniform(0.14, 0.23) * cloud, blue=0.10)
    fine = canvas.granules(cover, per_um2=2.4, radius=0.16)
    canvas.dye[EOSIN] += 0.16 * fine * cover
    canvas.dye[AZURE] += 0.09 * fine * cover
    canvas.dye[BLUE] += 0.12 * np.exp(-((body / 0.3) ** 2)) * cover
    return body


def _nucleus(
    canvas: Canvas,
    distance: Plane,
    *,
    within: Plane,
    density: float = 1.0,
    clumping: float,
    grain: float = 0.5,
) -> None:
    """Lay a nucleus: clumped chromatin of ``grain`` µm, a dense membrane, never outside the cell."""
    distance = np.minimum(distance + 0.10 * canvas.noise(0.7), within - 0.15)
    cover = canvas.soft(distance, 0.22)
    clumps = np.tanh(0.9 * canvas.noise(grain) + 0.6 * canvas.noise(grain / 2.2))
    membrane = 0.14 * np.exp(-(((distance - 0.2) / 0.22) ** 2))
    shade = canvas.rng.uniform(0.9, 1.1)
    canvas.replace(cover, azure=density * shade * (1 + clumping * clumps + membrane), eosin=0.05)


def _lobed(canvas: Canvas, centre: Point, lobes: int, size: float, bend: float) -> Plane:
    """Distance inside ``lobes`` ovals of radius ``size`` on a thread bent to a radius of ``bend`` µm."""
    rng = canvas.rng
    span = {2: rng.uniform(2.0, 3.0), 3: rng.uniform(3.2, 4.4), 4: rng.uniform(4.0, 5.2)}.get(lobes, 5.4)
    thread = _arc(canvas, centre, bend=bend, span=span, count=9 * lobes)
    stops = np.linspace(0.08, 0.92, lobes) * (len(thread) - 1)
    bridge = thread[int(stops[0]) : int(stops[-1]) + 1]
    out = canvas.beads(bridge, np.full(len(bridge), rng.uniform(0.3, 0.6)))
    for stop in stops:
        here = thread[round(stop)] + rng.normal(0, 0.10 * size, 2)
        at, girth = (float(here[0]), float(here[1])), size * rng.uniform(0.85, 1.12)
        out = np.maximum(out, canvas.blob(at, girth, roughness=0.06, aspect=rng.uniform(0.66, 1.5)))
    return out


def _arc(canvas: Canvas, centre: Point, *, bend: float, span: float, count: int) -> NDArray[np.float64]:
    """Points (count, 2) on a wavering arc of ``span`` radians and radius ``bend`` about ``centre``."""
    rng = canvas.rng
    angle = rng.uniform(0, 2 * np.pi) + np.linspace(-span / 2, span / 2, count)
    waver = bend * (1 + 0.14 * np.sin(np.linspace(0, rng.uniform(3, 6), count) + rng.uniform(0, 6)))
    shift = 0.15 * bend
    middle = angle.mean()
    x = centre[0] + waver * np.cos(angle) - shift * np.cos(middle)
    y = centre[1] + waver * np.sin(angle) - shift * np.sin(middle)
    return np.stack([x, y], axis=1)


def _indent(canvas: Canvas, distance: Plane, centre: Point, radius: float, *, depth: float) -> Plane:
    """Push a notch of ``depth`` radii into a shape's border."""
    angle = canvas.rng.uniform(0, 2 * np.pi)
    px, py = centre[0] + 1.25 * radius * np.cos(angle), centre[1] + 1.25 * radius * np.sin(angle)
    notch = np.hypot(canvas.x - np.float32(px), canvas.y - np.float32(py)) - np.float32((0.25 + depth) * radius)
    return np.asarray(np.minimum(distance, notch), np.float32)


def _vacuoles(canvas: Canvas, body: Plane, nucleus: Plane, *, count: int) -> None:
    """Clear ``count`` round holes in the cytoplasm."""
    free = np.argwhere((body > 0.9) & (nucleus < -0.2))
    if not len(free) or not count:
        return
    for row, column in free[canvas.rng.integers(len(free), size=count)]:
        at = (float(canvas.x[row, column]), float(canvas.y[row, column]))
        hole = canvas.blob(at, canvas.rng.uniform(0.3, 0.65), roughness=0.05)
        canvas.dye *= 1 - 0.85 * canvas.soft(hole, 0.25)


def _near(rng: np.random.Generator, centre: Point, spread: float) -> Point:
    """A point about ``spread`` µm from ``centre``."""
    return centre[0] + float(rng.normal(0, spread / 1.5)), centre[1] + float(rng.normal(0, spread / 1.5))
