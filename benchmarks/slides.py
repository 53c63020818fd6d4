"""From slides to features: tiles cut a second, and the whole embedding against the encoder's bare forward.

    python benchmarks/slides.py [--quick] [--repeats 7]

Without published weights the encoder's are random, which changes no time. On a GPU set ``MORPHFED_BENCH_DEVICE=cuda``.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from _table import Options, Row, alternate, ratios, run, spread
from morphfed.core.memory import keep_freed_memory
from morphfed.data.slides.files import read_coords
from morphfed.data.slides.grid import Tiling
from morphfed.data.slides.reader import Slide
from morphfed.data.slides.tiles import tile_folder
from morphfed.data.synthetic.slides import CENTRES, draw_slide, write_pyramid
from morphfed.models.encoder import build_encoder
from morphfed.training.embedding import Embedder

TARGET = 0.85


def slide_of(folder: Path, side_px: int) -> None:
    """One large slide: a drawn one of 1 mm, laid side by side. Its µm per pixel are called half as large."""
    pixels, _ = draw_slide("subtype", CENTRES["elm"], np.random.default_rng(0), positive=False, side_um=1024)
    times = -(-side_px // len(pixels))
    write_pyramid(folder / "slide.tif", np.tile(pixels, (times, times, 1))[:side_px, :side_px], 0.5)


def rows(options: Options) -> Iterator[Row]:
    device = torch.device(os.environ.get("MORPHFED_BENCH_DEVICE", "cpu"))
    side, tile = (1024, 128) if options.quick else (10_240 if device.type == "cuda" else 4_096, 256)
    name, size = ("resnet10t", 32) if options.quick else ("mobilenetv2_100", 224)
    tiling = Tiling(tile_px=tile, um_per_px=0.5)
    workers = min(16, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "slides").mkdir()
        slide_of(folder / "slides", side)

        def cut() -> float:
            start = time.perf_counter()
            out = folder / f"tiles-{start}"
            found = tile_folder(folder / "slides", out, tiling, workers=1)
            return sum(row.tiles for row in found.rows) / (time.perf_counter() - start)

        (speeds,) = alternate([cut], options.repeats)
        yield Row(
            f"cutting a slide of {side:,} × {side:,} px: tissue, mask picture, coordinates",
            spread(speeds, "tiles/s"),
            note=f"{tile} px tiles at 0.5 µm, one thread, JPEG tiles in the file; the slide is in the system's cache.",
        )
        tile_folder(folder / "slides", folder / "tiles", tiling)
        yield from _embedding(folder, name, size, device, workers, options)


def _embedding(
    folder: Path, name: str, size: int, device: torch.device, workers: int, options: Options
) -> Iterator[Row]:
    path = folder / "tiles" / "patches" / "slide.h5"
    corners, place = read_coords(path)
    batch = 8 if options.quick else 64
    embedder = Embedder(build_encoder(name, "none", image_size=size), device, batch_size=batch, workers=workers)
    with Slide(folder / "slides" / "slide.tif") as slide:
        geometry = {"level": int(place["patch_level"]), "read_px": int(place["patch_size"])}
        ready = next(embedder.batches(slide, corners, **geometry))

        used: dict[str, list[float]] = {"whole": [], "bare": []}

        def whole() -> float:
            start, before = time.perf_counter(), time.process_time()
            embedder.embed(slide, path, folder / "features.h5")
            used["whole"].append((time.process_time() - before) / len(corners))
            return len(corners) / (time.perf_counter() - start)

        def reading() -> float:
            start = time.perf_counter()
            for _ in embedder.batches(slide, corners, **geometry):
                pass
            return len(corners) / (time.perf_counter() - start)

        def bare() -> float:
            """The same number of tiles, already in memory and of the right size, nothing kept."""
            start, before, done = time.perf_counter(), time.process_time(), 0
            with torch.inference_mode():
                images = torch.from_numpy(ready).to(device).permute(0, 3, 1, 2).float()
                images = images.contiguous(memory_format=torch.channels_last)
                while done < len(corners):
                    embedder.encoder.module(images)
                    done += len(images)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            used["bare"].append((time.process_time() - before) / done)
            return done / (time.perf_counter() - start)

        ours, forward, read = alternate([whole, bare, reading], options.repeats)
    share = ratios(ours, forward)
    cpu = ratios(used["bare"][1:], used["whole"][1:])
    yield Row(
        f"embedding a slide of {len(corners):,} tiles with {name} at {size} px on {device.type}",
        spread(ours, "tiles/s"),
        f"bare forward {spread(forward, 'tiles/s')}",
        f"{spread(share)}; processor time {spread(cpu)}",
        f"≥ {TARGET}",
        None if options.quick else float(np.median(share)) >= TARGET,
        f"Read, decoded, resized, encoded, written; {workers} reading threads, which alone reach "
        f"{spread(read, 'tiles/s')}.",
    )


if __name__ == "__main__":
    keep_freed_memory()  # as the command does
    run(rows, __doc__)
