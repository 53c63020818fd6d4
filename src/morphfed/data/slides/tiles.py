"""From a folder of slides to their tiles: a file of coordinates and a picture a slide, and a table of all of them.

```
OUT/
  tiling.json             how, and of which folder
  patches/<slide>.h5      coordinates, as CLAM writes them
  masks/<slide>.png       the slide with its tissue outlined and its tiles drawn
  thumbnails/<slide>.png  the slide as it is, on which attention is drawn later
  slides.csv              every slide: what became of it, and why
```
A slide whose coordinates are there is not read again, so that a run that was killed goes on.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from morphfed.core.errors import ConfigError, DataError
from morphfed.core.files import read_json, write_json, write_text
from morphfed.core.progress import Reporter, silent, tracked
from morphfed.data.slides.files import names_of, read_coords, require_h5py, write_coords
from morphfed.data.slides.grid import Geometry, Tiling, geometry, grid, tissue_share
from morphfed.data.slides.picture import LARGEST, fitted, save_png, with_mask
from morphfed.data.slides.reader import OBJECTIVE_UM, SUFFIXES, Slide, require_openslide
from morphfed.data.slides.tissue import tissue_mask

Status = Literal["done", "kept", "no tiles", "failed"]

SETTINGS, TABLE, PATCHES, MASKS, THUMBNAILS = "tiling.json", "slides.csv", "patches", "masks", "thumbnails"


@dataclass(frozen=True)
class Row:
    """What became of one slide.

    Attributes:
        slide: its id, the file's name without suffix.
        status: ``done`` now, ``kept`` from an earlier run, ``no tiles`` (written, with none), ``failed``.
        tiles: how many.
        um_per_px: of level 0.
        scale_from: where that is from.
        level: from which tiles are read.
        read_px: their side there.
        tissue_mm2: area that was taken for tissue.
        path: of the file, below the folder of slides.
        reason: why it failed or has no tiles.
    """

    slide: str
    status: Status
    tiles: int = 0
    um_per_px: float | None = None
    scale_from: str = ""
    level: int | None = None
    read_px: int | None = None
    tissue_mm2: float | None = None
    path: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Tiled:
    """What became of a folder.

    Attributes:
        rows: a row a slide, sorted.
        ignored: files that are no slides, by suffix.
    """

    rows: Sequence[Row]
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> Counter[str]:
        """Slides by status."""
        return Counter(row.status for row in self.rows)

    @property
    def failed(self) -> list[Row]:
        """Slides of which there is nothing."""
        return [row for row in self.rows if row.status == "failed"]


def tile_folder(
    folder: Path,
    out: Path,
    tiling: Tiling,
    *,
    slide_um_per_px: float | None = None,
    workers: int = 2,
    report: Reporter = silent,
) -> Tiled:
    """Cut every slide below ``folder``.

    Args:
        folder: searched with its sub-folders.
        out: for coordinates, pictures and table; an earlier run there is continued.
        tiling: how.
        slide_um_per_px: of level 0, for slides that do not say it.
        workers: slides at a time.
        report: progress, task ``tile``.

    Raises:
        ConfigError: ``out`` holds tiles that were cut otherwise.
        DataError: no slide at all.
        MissingExtraError: OpenSlide or h5py is not installed.
    """
    require_openslide()
    require_h5py()
    found, ignored = _find(folder, out)
    _settle(out, folder, tiling, slide_um_per_px)
    doubled = {name: paths for name, paths in found.items() if len(paths) > 1}
    single = [paths[0] for name, paths in found.items() if name not in doubled]
    job = _Job(folder, out, tiling, slide_um_per_px)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        rows = list(tracked(pool.map(job.one, single), report, "tile", "cutting slides", total=len(single)))
    for name, paths in doubled.items():
        listed = ", ".join(path.relative_to(folder).as_posix() for path in paths)
        rows.append(Row(name, "failed", reason=f"{len(paths)} slides have this name ({listed}): rename all but one"))
    rows.sort(key=lambda row: row.slide)
    write_table(out / TABLE, rows)
    return Tiled(rows, ignored)


def _find(folder: Path, out: Path) -> tuple[dict[str, list[Path]], Counter[str]]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder.", fix="name the folder that holds the slides.")
    inside = out.resolve()
    every = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", "Thumbs.db"))]
    every = [path for path in every if inside not in path.resolve().parents]
    slides = [path for path in every if path.suffix.lower() in SUFFIXES]
    ignored = Counter(path.suffix.lower() or "(no suffix)" for path in every if path.suffix.lower() not in SUFFIXES)
    if not slides:
        raise DataError(
            f"{folder} holds no slide ({sum(ignored.values()):,} other files).",
            fix=f"name the folder of the slides; they end in {', '.join(SUFFIXES)}.",
        )
    return names_of(slides), ignored


def _settle(out: Path, folder: Path, tiling: Tiling, given: float | None) -> None:
    """Keep how tiles are cut; another way would leave a folder in which slides differ."""
    settings: dict[str, Any] = {"tiling": tiling.model_dump(), "slide_um_per_px": given}
    path = out / SETTINGS
    if path.exists():
        earlier = read_json(path)
        old, new = ({**s["tiling"], "slide_um_per_px": s["slide_um_per_px"]} for s in (earlier, settings))
        changed = [f"{key} {old.get(key)} → {value}" for key, value in new.items() if old.get(key) != value]
        if changed:
            raise ConfigError(
                f"{out} holds tiles that were cut otherwise: {'; '.join(changed)}.",
                fix="name another folder with --out, or remove this one.",
            )
    write_json(path, {**settings, "slides": str(folder.absolute())})


@dataclass(frozen=True)
class _Job:
    folder: Path
    out: Path
    tiling: Tiling
    given: float | None

    def one(self, path: Path) -> Row:
        """Cut one slide, unless that has been done; what is wrong with it is in the row."""
        shown = path.relative_to(self.folder).as_posix()
        try:
            kept = self._kept(path, shown)
            return kept if kept is not None else self._cut(path, shown)
        except DataError as cause:
            return Row(path.stem, "failed", path=shown, reason=f"{cause.message} Fix: {cause.fix}")

    def _kept(self, path: Path, shown: str) -> Row | None:
        target = self.out / PATCHES / f"{path.stem}.h5"
        if not target.exists():
            return None
        try:
            corners, attributes = read_coords(target)
        except DataError:
            return None  # damaged since: cut again
        if attributes.get("slide_bytes") != path.stat().st_size:
            return None  # another slide of this name
        return _row(path.stem, "kept" if len(corners) else "no tiles", len(corners), attributes, shown)

    def _cut(self, path: Path, shown: str) -> Row:
        with Slide(path, self.given) as slide:
            place = geometry(slide, self.tiling)
            picture, mask, um = _look(slide, self.tiling.mask_um)
            corners = grid(slide.size, place)
            if len(corners):
                share = tissue_share(corners, mask, slide.size, place.side)
                corners = corners[share >= max(self.tiling.min_tissue, 1e-9)]
            for x, y in corners[[0, len(corners) // 2, -1]].tolist() if len(corners) else ():
                slide.read(x, y, place.level, place.read_px, place.read_px)  # a truncated file fails here, not later
            attributes = _attributes(slide, place, self.tiling)
            attributes["tissue_mm2"] = round(float(mask.sum()) * (um / 1000) ** 2, 4)
            attributes["slide_bytes"] = path.stat().st_size
            attributes["slide_path"] = shown
            drawn = with_mask(picture, mask, corners, size=slide.size, side=place.side)
        save_png(self.out / THUMBNAILS / f"{path.stem}.png", fitted(picture))
        save_png(self.out / MASKS / f"{path.stem}.png", drawn)
        write_coords(self.out / PATCHES / f"{path.stem}.h5", corners, attributes)  # last: the slide is done
        return _row(path.stem, "done" if len(corners) else "no tiles", len(corners), attributes, shown)


def _look(slide: Slide, mask_um: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_], float]:
    """A picture to look at, the mask, and the mask's µm per pixel; of small slides the picture is the finer one."""
    from PIL import Image

    whole = max(slide.size) * slide.scale.um_per_px
    picture = slide.overview(max(slide.scale.um_per_px, min(mask_um, whole / LARGEST)))
    width, height = (max(1, round(side * slide.scale.um_per_px / mask_um)) for side in slide.size)
    if width < picture.shape[1]:
        small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
    else:
        small = picture
    um = slide.scale.um_per_px * slide.size[0] / small.shape[1]
    return picture, tissue_mask(small, um), um


def _attributes(slide: Slide, place: Geometry, tiling: Tiling) -> dict[str, Any]:
    """CLAM's names, then TRIDENT's, then our own. ``patch_size`` is CLAM's: in pixels of ``patch_level``."""
    level, scale = place.level, slide.scale
    return {
        "patch_size": place.read_px,
        "patch_level": level,
        "downsample": (slide.downsamples[level],) * 2,
        "downsampled_level_dim": slide.levels[level],
        "level_dim": slide.levels[level],
        "name": slide.name,
        "save_path": PATCHES,
        "patch_size_level0": round(place.side),
        "level0_magnification": slide.objective or OBJECTIVE_UM / scale.um_per_px,
        "target_magnification": OBJECTIVE_UM / tiling.um_per_px,
        "overlap": tiling.overlap_px,
        "level0_width": slide.size[0],
        "level0_height": slide.size[1],
        "target_px": tiling.tile_px,
        "target_um_per_px": tiling.um_per_px,
        "level0_um_per_px": scale.um_per_px,
        "scale_from": scale.origin,
        "min_tissue": tiling.min_tissue,
    }


def _row(name: str, status: Status, tiles: int, attributes: dict[str, Any], shown: str) -> Row:
    reason = ""
    if not tiles:
        area = attributes["tissue_mm2"]
        fits = min(attributes["level0_width"], attributes["level0_height"]) >= attributes["patch_size_level0"]
        reason = "no tissue found" if not area else f"{area:g} mm² of tissue, but no tile shows enough of it"
        reason = reason if fits else "smaller than one tile"
    return Row(
        name,
        status,
        tiles,
        attributes["level0_um_per_px"],
        attributes["scale_from"],
        attributes["patch_level"],
        attributes["patch_size"],
        attributes["tissue_mm2"],
        shown,
        reason,
    )


def write_table(path: Path, rows: Iterable[Any]) -> None:
    """Write dataclasses of one kind as CSV, atomically."""
    listed = list(rows)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    if listed:
        names = [f.name for f in fields(listed[0])]
        table.writerow(names)
        table.writerows([getattr(row, name) for name in names] for row in listed)
    write_text(path, text.getvalue())
