"""Synthetic whole slides of four imaginary centres: pyramidal TIFFs, masks of the tumour, a table of labels.

Two tasks with one label a slide. ``tumour``: normal glands, or with a solid tumour in 4–20 % of the tissue.
``subtype``: a tumour in half of the tissue, of crowded glands or of spindle cells in bundles.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from morphfed.core.config import Config
from morphfed.core.errors import ConfigError, MissingExtraError
from morphfed.core.files import write_text, writing
from morphfed.core.progress import Event, Reporter, silent
from morphfed.core.seeding import numpy_stream
from morphfed.data.synthetic.sites import Rgb
from morphfed.data.synthetic.tissue import Tissue

Task = Literal["tumour", "subtype"]
LABELS: dict[Task, tuple[str, str]] = {"tumour": ("normal", "tumour"), "subtype": ("glandular", "spindle")}
"""Labels of each task; the second is drawn where ``positive``."""

TILE = 256
MASK_UM = 8.0
"""µm per pixel of the masks, about."""


class Centre(Config):
    """One imaginary centre: its stain, scanner and files.

    Attributes:
        haematoxylin, eosin: light that a unit density lets through, in red, green and blue (Beer–Lambert law).
        strength: of the stain; ``strength_sd`` its spread between slides.
        background: colour of the empty slide.
        um_per_px: of the finest level.
        blur: of the lens, sigma in µm.
        noise: of the camera.
        jpeg_quality: of the file.
    """

    name: str
    haematoxylin: Rgb = (0.32, 0.22, 0.50)
    eosin: Rgb = (0.88, 0.48, 0.66)
    strength: float = 1.0
    strength_sd: float = 0.07
    background: Rgb = (0.96, 0.95, 0.96)
    um_per_px: float = 1.0
    blur: float = 0.5
    noise: float = 0.010
    jpeg_quality: int = 88


CENTRES: dict[str, Centre] = {
    centre.name: centre
    for centre in (
        Centre(name="elm"),
        # Old eosin, thick sections, warm light.
        Centre(
            name="fir",
            haematoxylin=(0.42, 0.26, 0.46),
            eosin=(0.92, 0.62, 0.62),
            strength=1.25,
            background=(0.97, 0.94, 0.87),
            um_per_px=0.9,
            blur=0.7,
            noise=0.014,
            jpeg_quality=80,
        ),
        # Pale and bluish, a coarse scanner with a soft lens.
        Centre(
            name="hazel",
            haematoxylin=(0.28, 0.30, 0.62),
            eosin=(0.86, 0.62, 0.80),
            strength=0.75,
            background=(0.90, 0.92, 0.95),
            um_per_px=1.0,
            blur=0.9,
            noise=0.018,
            jpeg_quality=75,
        ),
        # Strong magenta, crisp.
        Centre(
            name="juniper",
            haematoxylin=(0.24, 0.14, 0.38),
            eosin=(0.80, 0.34, 0.70),
            strength=1.1,
            strength_sd=0.10,
            background=(0.98, 0.97, 0.97),
            um_per_px=0.8,
            blur=0.4,
            noise=0.008,
            jpeg_quality=92,
        ),
    )
}
"""Four centres that look different on purpose; the names are made up."""


@dataclass(frozen=True)
class _Plan:
    out: Path
    task: Task
    centre: Centre
    name: str
    patient: str
    positive: bool
    side_um: float
    seed: int


def draw_slide(
    task: Task, centre: Centre, rng: np.random.Generator, *, positive: bool, side_um: float = 1536.0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one slide.

    Args:
        task: which.
        centre: whose.
        rng: all randomness; the same state gives the same slide.
        positive: whether it has the second of the task's labels.
        side_um: of the square.

    Returns:
        RGB ``(S, S, 3)``, and ``(S, S)`` of glass, tissue and tumour (:mod:`morphfed.data.synthetic.tissue`).
    """
    tissue = Tissue(side_um, centre.um_per_px, rng)
    if task == "tumour" and positive:
        tissue.grow_tumour(float(rng.uniform(0.04, 0.20)))
    elif task == "subtype":
        tissue.grow_tumour(float(rng.uniform(0.4, 0.6)))
    tissue.lay_ground()
    normal = np.minimum(tissue.inside, -tissue.tumour)
    tissue.glands(normal, gap=110, radius=(30, 44), nucleus=(2.8, 3.6), depth=0.85)
    stroma = tissue.scatter(700)
    stroma = stroma[(tissue.value(normal, stroma) > 4) & (tissue.value(tissue.eosin, stroma) > 0.25)]
    tissue.nuclei(stroma, radius=(2.2, 3.2), aspect=(2.0, 3.5), angle=tissue.flow(stroma), depth=0.8)
    if task == "tumour":
        _solid(tissue)
    elif positive:
        _spindle(tissue)
    else:
        tissue.glands(tissue.tumour, gap=62, radius=(22, 33), nucleus=(3.6, 5.0), depth=1.05)
    return _scan(tissue, centre), tissue.regions()


def _solid(tissue: Tissue) -> None:
    """Sheets of large uneven nuclei."""
    points = tissue.scatter(5200)
    points = points[tissue.value(tissue.tumour, points) > 0]
    if len(points):
        tissue.nuclei(points, radius=(3.6, 6.2), aspect=(1.0, 1.7), depth=1.1)


def _spindle(tissue: Tissue) -> None:
    """Bundles of long nuclei that follow each other."""
    points = tissue.scatter(3600)
    points = points[tissue.value(tissue.tumour, points) > 0]
    if len(points):
        tissue.nuclei(points, radius=(3.6, 4.8), aspect=(3.0, 5.0), angle=tissue.flow(points), depth=1.05)


def _scan(tissue: Tissue, centre: Centre) -> NDArray[np.uint8]:
    """Beer–Lambert law, lens and camera."""
    rng = tissue.rng
    strength = centre.strength * np.exp(rng.normal(0, centre.strength_sd, 2) + rng.normal(0, centre.strength_sd))
    light = np.empty((tissue.side, tissue.side, 3), np.float32)
    grain = 1 + 0.10 * tissue.noise(1.2)
    for channel in range(3):
        blue, pink = (-np.log(dye[channel]) for dye in (centre.haematoxylin, centre.eosin))
        density = strength[0] * blue * tissue.haematoxylin * grain + strength[1] * pink * tissue.eosin
        light[..., channel] = np.exp(-density) * centre.background[channel]
        light[..., channel] = ndimage.gaussian_filter(light[..., channel], centre.blur / centre.um_per_px, truncate=3)
    light += rng.standard_normal(light.shape, np.float32) * np.float32(centre.noise)
    return np.clip(np.rint(light * 255), 0, 255).astype(np.uint8)


def write_pyramid(path: Path, pixels: NDArray[np.uint8], um_per_px: float | None, *, quality: int = 88) -> None:
    """Write a tiled, pyramidal TIFF with JPEG tiles, atomically; each level is half of the one before.

    Args:
        path: the file.
        pixels: RGB ``(H, W, 3)``.
        um_per_px: kept as the TIFF's resolution; None: the file does not say it.
        quality: of the JPEG.

    Raises:
        MissingExtraError: imagecodecs is not installed.
    """
    import tifffile

    try:
        import imagecodecs  # noqa: F401
    except ImportError as cause:
        raise MissingExtraError(
            "Pyramids are written with imagecodecs, which is not installed.", fix="pip install 'morphfed[slides]'."
        ) from cause
    scale = {} if um_per_px is None else {"resolution": (1e4 / um_per_px,) * 2, "resolutionunit": "CENTIMETER"}
    with writing(path) as temporary, tifffile.TiffWriter(temporary) as tiff:
        level, number = pixels, 0
        while True:
            tiff.write(
                level,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": quality},
                subfiletype=1 if number else 0,
                metadata=None,
                **scale,
            )
            if max(level.shape[:2]) <= 2 * TILE:
                return
            half = (max(1, level.shape[1] // 2), max(1, level.shape[0] // 2))
            level, number = np.asarray(Image.fromarray(level).resize(half, Image.Resampling.BOX)), number + 1
            scale = {
                key: (value[0] / 2, value[1] / 2) if isinstance(value, tuple) else value for key, value in scale.items()
            }


def write_slides(
    out: Path,
    task: Task,
    *,
    per_centre: int = 12,
    side_um: float = 1536.0,
    seed: int = 0,
    jobs: int = 1,
    report: Reporter = silent,
) -> Path:
    """Write the slides of all centres.

    Each centre becomes ``out/<centre>/slides/<slide>.tif`` and ``masks/<slide>.png`` (0 glass, 1 tissue, 2 tumour);
    beside them ``slides.csv`` with columns as CLAM and HistoFL have them: ``case_id``, ``slide_id``, ``label``,
    ``institute``.
    Every other patient has two slides. The same arguments give the same bytes, whatever ``jobs`` is.

    Args:
        out: made if it does not exist; files of the same name are replaced.
        task: which.
        per_centre: slides of each centre.
        side_um: of a slide.
        seed: of all randomness.
        jobs: processes that draw.
        report: progress, task ``slides``.

    Returns:
        The table, written last.

    Raises:
        ConfigError: fewer than two slides a centre, or slides too small for a tissue.
    """
    if per_centre < 2 or side_um < 256:
        raise ConfigError(
            f"{per_centre} slides a centre of {side_um:g} µm: expected at least 2 and 256.", fix="give larger numbers."
        )
    plans = [plan for centre in CENTRES.values() for plan in _plans(out, task, centre, per_centre, side_um, seed)]
    for done, _ in enumerate(_draw_all(plans, jobs), start=1):
        report(Event("slides", done, len(plans), "drawing synthetic slides"))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case_id", "slide_id", "label", "institute"])
    for plan in plans:
        table.writerow([plan.patient, plan.name, LABELS[task][plan.positive], plan.centre.name])
    write_text(out / "slides.csv", text.getvalue())
    return out / "slides.csv"


def _plans(out: Path, task: Task, centre: Centre, count: int, side_um: float, seed: int) -> Iterator[_Plan]:
    patients = [2 * i // 3 for i in range(count)]  # two slides, one slide, two slides, …
    number = patients[-1] + 1
    kinds = np.arange(number) // 2 % 2 if number > 2 else np.arange(number)
    kinds = kinds if number % 4 != 1 or number < 3 else np.append(kinds[:-1], 1)
    for i, patient in enumerate(patients):
        positive = bool(kinds[patient])
        name = f"{centre.name}-{i:03d}"
        yield _Plan(out, task, centre, name, f"{centre.name}-P{patient:03d}", positive, side_um, seed)


def _draw_all(plans: list[_Plan], jobs: int) -> Iterator[None]:
    if jobs <= 1 or len(plans) < 2:
        yield from map(_draw, plans)
        return
    # Spawned, not forked: the parent may hold threads of torch or of a live display.
    with ProcessPoolExecutor(min(jobs, len(plans)), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_draw, plan) for plan in plans]):
            yield future.result()


def _draw(plan: _Plan) -> None:
    from morphfed.data.slides.picture import save_png

    rng = numpy_stream(plan.seed, "slide", plan.task, plan.name)
    pixels, regions = draw_slide(plan.task, plan.centre, rng, positive=plan.positive, side_um=plan.side_um)
    folder = plan.out / plan.centre.name
    write_pyramid(
        folder / "slides" / f"{plan.name}.tif", pixels, plan.centre.um_per_px, quality=plan.centre.jpeg_quality
    )
    step = max(1, round(MASK_UM / plan.centre.um_per_px))
    save_png(folder / "masks" / f"{plan.name}.png", np.ascontiguousarray(regions[step // 2 :: step, step // 2 :: step]))
