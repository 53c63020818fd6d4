"""From tiles to bags: every tile of a slide through an encoder, a file of features a slide.

```
OUT/
  embedding.json           encoder, weights, precision
  h5_files/<slide>.h5      features (N, D) and coords (N, 2), as CLAM reads them
  pt_files/<slide>.pt      the features alone, if asked for
  thumbnails/<slide>.png   copied from the tiles, so that reports can draw attention over them
  slides.csv               every slide: what became of it, and why
```
Threads read ahead while the encoder works. A slide's file appears when it is complete, so a run that was killed goes
on with the next slide.
"""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from morphfed.core.errors import ConfigError, DataError, StorageError
from morphfed.core.files import read_json, write_json, writing
from morphfed.core.progress import Event, Reporter, silent
from morphfed.data.slides.files import read_coords, read_features, require_h5py, writing_features
from morphfed.data.slides.reader import Slide, require_openslide
from morphfed.data.slides.tiles import PATCHES, TABLE, THUMBNAILS, write_table
from morphfed.data.slides.tiles import SETTINGS as TILING

if TYPE_CHECKING:
    from torch import Tensor

    from morphfed.models.encoder import Encoder

Status = Literal["done", "kept", "no tiles", "failed"]

SETTINGS, H5, PT = "embedding.json", "h5_files", "pt_files"

_AHEAD = 3  # batches that are read while one is in the encoder


@dataclass(frozen=True)
class Row:
    """What became of one slide.

    Attributes:
        slide: its id.
        status: ``done`` now, ``kept`` from an earlier run, ``no tiles`` (written, with none), ``failed``.
        tiles: N.
        reason: why it failed.
    """

    slide: str
    status: Status
    tiles: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Embedded:
    """What became of a folder of tiles: a row a slide."""

    rows: Sequence[Row]

    @property
    def counts(self) -> Counter[str]:
        """Slides by status."""
        return Counter(row.status for row in self.rows)

    @property
    def failed(self) -> list[Row]:
        """Slides of which there are no features."""
        return [row for row in self.rows if row.status == "failed"]


class Embedder:
    """Computes features.

    Args:
        encoder: which.
        device: where.
        precision: ``fp32`` or ``bf16`` (autocast; features are stored as float32 either way).
        batch_size: tiles at a time.
        workers: threads that read and resize.
    """

    def __init__(
        self, encoder: Encoder, device: torch.device, *, precision: str = "fp32", batch_size: int = 64, workers: int = 2
    ) -> None:
        self.encoder, self.device, self.batch_size, self.workers = encoder, device, batch_size, max(1, workers)
        self._half = precision == "bf16"
        self._module = encoder.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._shift = torch.tensor(encoder.mean, device=device)[:, None, None] * 255
        self._scale = 1 / (torch.tensor(encoder.std, device=device)[:, None, None] * 255)
        self._filter = Image.Resampling.BICUBIC if encoder.interpolation == "bicubic" else Image.Resampling.BILINEAR

    @torch.inference_mode()
    def features(self, tiles: NDArray[np.uint8]) -> Tensor:
        """RGB ``(B, S, S, 3)`` → float32 ``(B, D)`` on the CPU."""
        images = torch.from_numpy(tiles).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        images = ((images - self._shift) * self._scale).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half):
            found: Tensor = self._module(images)
        return found.float().cpu()

    def batches(
        self, slide: Slide, corners: NDArray[np.int64], *, level: int, read_px: int
    ) -> Iterator[NDArray[np.uint8]]:
        """Tiles of the encoder's size ``(B, S, S, 3)``, in order; the next ones are read meanwhile."""
        size = self.encoder.image_size
        waiting: deque[tuple[NDArray[np.uint8], list[Future[None]]]] = deque()

        def fill(block: NDArray[np.uint8], row: int, x: int, y: int) -> None:
            tile = slide.read(x, y, level, read_px, read_px)
            if read_px != size:
                tile = np.asarray(Image.fromarray(tile).resize((size, size), self._filter))
            block[row] = tile

        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for start in range(0, len(corners), self.batch_size):
                    some = corners[start : start + self.batch_size].tolist()
                    block = np.empty((len(some), size, size, 3), np.uint8)
                    waiting.append((block, [pool.submit(fill, block, i, x, y) for i, (x, y) in enumerate(some)]))
                    if len(waiting) > _AHEAD:
                        yield _read(*waiting.popleft())
                while waiting:
                    yield _read(*waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def embed(self, slide: Slide, tiles: Path, target: Path, *, report: Callable[[int], None] | None = None) -> int:
        """Write one slide's features; the number of tiles.

        Args:
            slide: open.
            tiles: its coordinates.
            target: the ``.h5`` file.
            report: called with the number of tiles done.

        Raises:
            DataError: the slide or its coordinates are damaged, or features are not finite.
        """
        corners, attributes = read_coords(tiles)
        about = {
            "encoder": self.encoder.name,
            "encoder_weights": self.encoder.fingerprint,
            "image_size": self.encoder.image_size,
            "name": slide.name,
        }
        place = {"level": int(attributes["patch_level"]), "read_px": int(attributes["patch_size"])}
        done = 0
        with writing_features(target, corners, self.encoder.width, features=about, coords=attributes) as data:
            for block in self.batches(slide, corners, **place):
                found = self.features(block).numpy()
                if not np.isfinite(found).all():
                    raise DataError(
                        f"Slide {slide.path}: the encoder gives values that are not finite for tiles {done} to "
                        f"{done + len(found) - 1}.",
                        fix="use --precision fp32, or check the encoder's weights.",
                    )
                data[done : done + len(found)] = found
                done += len(found)
                if report is not None:
                    report(done)
        return done


def _read(block: NDArray[np.uint8], jobs: list[Future[None]]) -> NDArray[np.uint8]:
    for job in jobs:
        job.result()
    return block


def embed_folder(
    tiles: Path,
    out: Path,
    embedder: Embedder,
    *,
    slides: Path | None = None,
    pt: bool = False,
    report: Reporter = silent,
) -> Embedded:
    """Compute the features of every slide that has been cut.

    Args:
        tiles: folder that :func:`~morphfed.data.slides.tiles.tile_folder` wrote.
        out: for features and table; an earlier run there is continued.
        embedder: with which encoder.
        slides: where the slides are now; None: where they were when they were cut.
        pt: write ``.pt`` files too.
        report: progress, task ``embed``.

    Raises:
        ConfigError: ``out`` holds features of another encoder or precision.
        DataError: ``tiles`` holds no coordinates.
    """
    require_openslide()
    require_h5py()
    files = sorted((tiles / PATCHES).glob("*.h5"))
    if not files:
        raise DataError(f"{tiles} holds no tiles.", fix="cut the slides first: morphfed slides tile DIR --out TILES.")
    root = slides if slides is not None else Path(read_json(tiles / TILING)["slides"])
    _settle(out, embedder, read_json(tiles / TILING))
    rows = []
    report(Event("embed", 0, len(files), "embedding slides"))
    for number, file in enumerate(files):
        progress = partial(_say, report, number, len(files), file.stem)
        rows.append(_one(file, root, out, embedder, pt=pt, report=progress))
        report(Event("embed", number + 1, len(files), f"embedding slides · {file.stem}"))
    write_table(out / TABLE, rows)
    return Embedded(rows)


def _say(report: Reporter, number: int, slides: int, name: str, tiles: int) -> None:
    report(Event("embed", number, slides, f"embedding slides · {name}, {tiles:,} tiles"))


def _settle(out: Path, embedder: Embedder, tiling: dict[str, object]) -> None:
    """Keep what the features are of; bags of two encoders are not to be told apart afterwards."""
    encoder = embedder.encoder
    settings = {
        "encoder": encoder.name,
        "encoder_weights": encoder.fingerprint,
        "image_size": encoder.image_size,
        "precision": "bf16" if embedder._half else "fp32",
        "features": encoder.width,
        "tiling": tiling["tiling"],
    }
    path = out / SETTINGS
    if path.exists():
        earlier = read_json(path)
        changed = [f"{key} {earlier.get(key)} → {v}" for key, v in settings.items() if earlier.get(key) != v]
        if changed:
            raise ConfigError(
                f"{out} holds features that were computed otherwise: {'; '.join(changed)}.",
                fix="name another folder with --out, or remove this one.",
            )
    write_json(path, settings)


def _one(file: Path, root: Path, out: Path, embedder: Embedder, *, pt: bool, report: Callable[[int], None]) -> Row:
    target, tensor = out / H5 / file.name, out / PT / f"{file.stem}.pt"
    try:
        count = _kept(target, file)
        status: Status = "kept"
        if count is None:
            _, attributes = read_coords(file)
            with Slide(root / str(attributes["slide_path"])) as slide:
                count = embedder.embed(slide, file, target, report=report)
            status = "done"
        _copy_thumbnail(file, out)
        if pt and (status == "done" or not tensor.exists()):
            _write_pt(tensor, target)
    except DataError as cause:
        return Row(file.stem, "failed", reason=f"{cause.message} Fix: {cause.fix}")
    return Row(file.stem, status if count else "no tiles", count)


def _copy_thumbnail(tiles: Path, out: Path) -> None:
    """Beside the features; folders that were tiled before there were thumbnails have none."""
    picture = tiles.parent.parent / THUMBNAILS / f"{tiles.stem}.png"
    if picture.is_file():
        with writing(out / THUMBNAILS / picture.name) as temporary:
            shutil.copyfile(picture, temporary)


def _kept(target: Path, tiles: Path) -> int | None:
    """Tiles of a finished slide; None where it is to be done (again): its coordinates have changed since."""
    if not target.exists():
        return None
    try:
        before, _ = read_coords(target)
    except DataError:
        return None
    now, _ = read_coords(tiles)
    return len(now) if np.array_equal(before, now) else None


def _write_pt(path: Path, features: Path) -> None:
    """CLAM's other file: the tensor alone."""
    found, _ = read_features(features)
    try:
        with writing(path) as temporary:
            torch.save(torch.from_numpy(found), temporary)
    except RuntimeError as cause:  # torch wraps a full disk
        raise StorageError(f"{path} could not be written: {cause}.", fix="free some space and run it again.") from cause
