"""Whole sites on disk, in a layout that hospitals use: a folder per class and a table beside them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import simplejpeg

from morphfed.core.errors import ConfigError
from morphfed.core.files import storage_error, write_text
from morphfed.core.progress import Event, Reporter, silent
from morphfed.core.seeding import numpy_stream
from morphfed.data.synthetic.render import CELL_CLASSES, render_cell
from morphfed.data.synthetic.sites import SyntheticSite

Counts = Mapping[str, int]

_BATCH = 25  # pictures a worker draws before it reports


@dataclass(frozen=True)
class _Batch:
    """Pictures ``start`` … ``stop`` of one class at one site."""

    folder: Path
    site: SyntheticSite
    cell_class: str
    start: int
    stop: int
    patients: int
    seed: int


def write_films(
    folder: Path,
    sites: Sequence[SyntheticSite],
    per_class: Counts | Mapping[str, Counts],
    *,
    seed: int,
    patients: int = 12,
    jobs: int = 1,
    report: Reporter = silent,
) -> dict[str, Path]:
    """Write the films of some sites.

    Each site becomes ``folder/<site>/`` with ``<class>/P03_0012.jpg`` and ``labels.csv`` (columns ``path``,
    ``label``, ``patient``, ``um_per_px``). A patient's pictures share stain and light. The same arguments
    give the same bytes, whatever ``jobs`` is and whichever other sites and classes are written.

    Args:
        folder: made if it does not exist; files of the same name are replaced.
        sites: the laboratories, such as ``PRESETS.values()``.
        per_class: pictures of each class, for all sites alike or by the site's name.
        seed: of all randomness.
        patients: how many patients each site has; pictures of a class go round them.
        jobs: processes that draw; 1 draws in this one.
        report: progress, task ``films``.

    Returns:
        The folder of each site.

    Raises:
        ConfigError: an unknown class, a negative count, two sites of one name, no patients.
        StorageError: the folder cannot be written.
    """
    plan = _plan(Path(folder), sites, per_class, seed, patients)
    total = sum(batch.stop - batch.start for batch in plan)
    done = 0
    report(Event("films", 0, total, "drawing synthetic films"))
    for drawn in _draw(plan, jobs):
        done += drawn
        report(Event("films", done, total, "drawing synthetic films"))
    for site in sites:
        _write_table(Path(folder) / site.name, site, [batch for batch in plan if batch.site.name == site.name])
    return {site.name: Path(folder) / site.name for site in sites}


def _plan(
    folder: Path,
    sites: Sequence[SyntheticSite],
    per_class: Counts | Mapping[str, Counts],
    seed: int,
    patients: int,
) -> list[_Batch]:
    names = [site.name for site in sites]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two synthetic sites have one name: {', '.join(names)}.", fix="name every site once.")
    if patients < 1:
        raise ConfigError(f"patients = {patients}: a site has at least one.", fix="give 1 or more.")
    batches = []
    for site in sites:
        for cell_class, count in _counts(per_class, site.name).items():
            for start in range(0, count, _BATCH):
                stop = min(start + _BATCH, count)
                batches.append(_Batch(folder / site.name, site, cell_class, start, stop, patients, seed))
    return batches


def _counts(per_class: Counts | Mapping[str, Counts], site: str) -> Counts:
    counts: dict[str, int] = {}
    own = per_class.get(site, per_class)
    for cell_class, count in own.items() if isinstance(own, Mapping) else ():
        if isinstance(count, Mapping):
            raise ConfigError(
                f"per_class names sites, but not '{site}'.",
                fix=f"add counts for '{site}', or leave the site out.",
            )
        if cell_class not in CELL_CLASSES:
            raise ConfigError(
                f"There is no synthetic cell '{cell_class}' (site '{site}').",
                fix=f"choose from: {', '.join(CELL_CLASSES)}.",
            )
        if count < 0:
            raise ConfigError(f"{count} pictures of '{cell_class}' at '{site}'.", fix="give 0 or more.")
        counts[cell_class] = int(count)
    return counts


def _draw(plan: list[_Batch], jobs: int) -> Iterator[int]:
    if jobs <= 1 or len(plan) < 2:
        for batch in plan:
            yield _draw_batch(batch)
        return
    # Spawned, not forked: the parent may hold threads of torch or of a live display.
    with ProcessPoolExecutor(min(jobs, len(plan)), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_draw_batch, batch) for batch in plan]):
            yield future.result()


def _draw_batch(batch: _Batch) -> int:
    site = batch.site
    (batch.folder / batch.cell_class).mkdir(parents=True, exist_ok=True)
    for index in range(batch.start, batch.stop):
        film = site.film(numpy_stream(batch.seed, "film", site.name, index % batch.patients))
        rng = numpy_stream(batch.seed, "cell", site.name, batch.cell_class, index)
        picture = render_cell(batch.cell_class, site, rng, film=film)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=site.jpeg_quality, colorsubsampling="420")
        _write_bytes(batch.folder / _name(batch, index), jpeg)
    return batch.stop - batch.start


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)  # no fsync a picture: labels.csv is written last, so its presence says "complete"
    except OSError as cause:
        raise storage_error(path, cause) from cause


def _name(batch: _Batch, index: int) -> str:
    return f"{batch.cell_class}/P{index % batch.patients:02d}_{index:04d}.jpg"


def _write_table(folder: Path, site: SyntheticSite, batches: list[_Batch]) -> None:
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(["path", "label", "patient", "um_per_px"])
    for batch in batches:
        for index in range(batch.start, batch.stop):
            patient = f"{site.name}-P{index % batch.patients:02d}"
            table.writerow([_name(batch, index), batch.cell_class, patient, site.um_per_px])
    write_text(folder / "labels.csv", rows.getvalue())
