"""``morphfed slides``: from whole slides to bags of features."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cyclopts

if TYPE_CHECKING:
    from morphfed.data.slides import tiles
    from morphfed.training import embedding

app = cyclopts.App(name="slides", help="Cut whole slides into tiles, compute their features, draw synthetic slides.")

_CORES = min(8, os.cpu_count() or 1)
_NAMED = 12  # slides that are named on the screen; slides.csv has all


@app.command
def tile(
    folder: Path,
    /,
    *,
    out: Path = Path("tiles"),
    um_per_px: float | None = None,
    magnification: float | None = None,
    tile_px: int = 256,
    overlap_px: int = 0,
    min_tissue: float = 0.25,
    slide_um_per_px: float | None = None,
    workers: int = _CORES,
) -> int:
    """Find the tissue of every slide and cut it into tiles; the same command goes on where it was stopped.

    Writes coordinates that CLAM reads, and for each slide a picture with its tissue outlined: look at them. Leaves
    with 1 when slides were left out.

    Args:
        folder: the slides, in any sub-folders.
        out: folder for patches/, masks/ and slides.csv.
        um_per_px: of the tiles; default 0.5.
        magnification: in place of um_per_px; 20 is 0.5 µm, 40 is 0.25 µm.
        tile_px: side of a tile.
        overlap_px: of neighbouring tiles.
        min_tissue: least share of a tile that is tissue.
        slide_um_per_px: of the slides' finest level, for slides that do not say it.
        workers: slides at a time.
    """
    from morphfed.cli.display import Display
    from morphfed.core.config import validate
    from morphfed.core.errors import ConfigError
    from morphfed.data.slides.grid import Tiling
    from morphfed.data.slides.reader import OBJECTIVE_UM, PLAUSIBLE_UM
    from morphfed.data.slides.tiles import tile_folder

    if um_per_px is not None and magnification is not None:
        raise ConfigError("--um-per-px and --magnification say the same.", fix="give one of them.")
    if magnification is not None and magnification <= 0:
        raise ConfigError(f"--magnification is {magnification:g}.", fix="give for example 20.")
    if slide_um_per_px is not None and not PLAUSIBLE_UM[0] <= slide_um_per_px <= PLAUSIBLE_UM[1]:
        raise ConfigError(
            f"--slide-um-per-px is {slide_um_per_px:g}, expected {PLAUSIBLE_UM[0]} to {PLAUSIBLE_UM[1]:g}.",
            fix="give µm per pixel, for example 0.25 for a 40× scan.",
        )
    scale = um_per_px if um_per_px is not None else OBJECTIVE_UM / (magnification or 20)
    values = {"tile_px": tile_px, "um_per_px": scale, "overlap_px": overlap_px, "min_tissue": min_tissue}
    tiling = validate(Tiling, values, where="morphfed slides tile")
    with Display() as display:
        done = tile_folder(folder, out, tiling, slide_um_per_px=slide_um_per_px, workers=workers, report=display)
    lines = [f"{len(done.rows):,} slides: {_counted(done.counts)}; {sum(r.tiles for r in done.rows):,} tiles"]
    guessed = [row for row in done.rows if row.scale_from == "objective power"]
    if guessed:
        lines.append(f"  {len(guessed)} without µm per pixel: taken from the objective power")
    if done.ignored:
        others = ", ".join(f"{n:,} {suffix}" for suffix, n in done.ignored.most_common())
        lines.append(f"  not slides: {others}")
    lines += _named(done.rows)
    lines.append(f"look at {out / 'masks'}; all slides are in {out / 'slides.csv'}")
    sys.stdout.write("\n".join(lines) + f"\nnext: morphfed slides embed {out} --encoder NAME --weights FILE\n")
    return 1 if done.failed else 0


@app.command
def embed(
    tiles: Path,
    /,
    *,
    encoder: str,
    weights: str = "pretrained",
    out: Path = Path("features"),
    slides: Path | None = None,
    image_size: int | None = None,
    batch_size: int = 64,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str = "auto",
    workers: int = _CORES,
    pt: bool = False,
) -> int:
    """Compute a feature vector for every tile; the same command goes on where it was stopped.

    Writes one .h5 a slide with features (N, D) and coordinates, as CLAM reads them. Leaves with 1 when slides were left
    out.

    Args:
        tiles: folder that `morphfed slides tile` wrote.
        encoder: a timm model; `morphfed list models` prints the names.
        weights: a .safetensors file, 'pretrained' (from the hub's cache) or 'none' (random).
        out: folder for h5_files/ and slides.csv.
        slides: where the slides are now, if they were moved.
        image_size: to which tiles are resized; default what the encoder was trained with.
        batch_size: tiles at a time.
        precision: fp32, or bf16 on hardware that has it.
        device: auto, cpu, cuda, cuda:1 or mps.
        workers: threads that read tiles.
        pt: also write pt_files/, the features as bare tensors.
    """
    from morphfed.cli.display import Display
    from morphfed.core.errors import ConfigError
    from morphfed.data.slides.reader import require_openslide
    from morphfed.models.encoder import build_encoder

    for name, value in (("--batch-size", batch_size), ("--image-size", image_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}, expected at least 1.", fix="give a larger number.")
    require_openslide()
    import torch

    from morphfed.core.memory import keep_freed_memory
    from morphfed.training.embedding import Embedder, embed_folder

    keep_freed_memory()
    built = build_encoder(encoder, weights, image_size=image_size)
    where = torch.device(_device(device))
    embedder = Embedder(built, where, precision=precision, batch_size=batch_size, workers=workers)
    with Display() as display:
        done = embed_folder(tiles, out, embedder, slides=slides, pt=pt, report=display)
    total = sum(row.tiles for row in done.rows)
    lines = [f"{len(done.rows):,} slides: {_counted(done.counts)}; {total:,} tiles × {built.width:,} features"]
    if weights == "none":
        lines.append("  the encoder's weights are random")
    lines += _named(done.rows)
    sys.stdout.write("\n".join(lines) + f"\nwrote {out / 'h5_files'}; all slides are in {out / 'slides.csv'}\n")
    return 1 if done.failed else 0


def _device(asked: str) -> str:
    import torch

    from morphfed.core.errors import ConfigError

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError) as cause:
        raise ConfigError(
            f"--device {asked} cannot be used here: {str(cause).splitlines()[0]}.", fix="use --device auto."
        ) from cause
    return asked


@app.command
def synthesise(
    task: Literal["tumour", "subtype"],
    out: Path,
    /,
    *,
    slides: int = 12,
    side_um: float = 1536.0,
    seed: int = 0,
    jobs: int = 1,
) -> int:
    """Draw synthetic slides of four imaginary centres as pyramidal TIFFs, with masks and a table of labels.

    tumour: does a tissue hold a region of tumour; subtype: which of two textures has its tumour.

    Args:
        task: which.
        out: a folder a centre is made in it, and slides.csv.
        slides: of each centre.
        side_um: of a slide, in µm.
        seed: of all randomness.
        jobs: processes that draw.
    """
    from morphfed.cli.display import Display
    from morphfed.data.synthetic.slides import write_slides

    with Display() as display:
        table = write_slides(out, task, per_centre=slides, side_um=side_um, seed=seed, jobs=jobs, report=display)
    sys.stdout.write(f"wrote {table}\nnext: morphfed slides tile {out} --out TILES --um-per-px 1 --tile-px 128\n")
    return 0


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[s]:,} {s}" for s in ("done", "kept", "no tiles", "failed") if counts.get(s))


def _named(rows: Sequence[tiles.Row] | Sequence[embedding.Row]) -> list[str]:
    """The slides of which there is nothing, with the reason."""
    left = [row for row in rows if row.status in ("failed", "no tiles")]
    lines = [f"  {row.slide}: {row.status}{f': {row.reason}' if row.reason else ''}" for row in left[:_NAMED]]
    return lines + ([f"  … and {len(left) - _NAMED:,} more"] if len(left) > _NAMED else [])
