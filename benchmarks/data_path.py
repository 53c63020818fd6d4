"""Images a second into float batches: our store on disk against a folder, PIL and torch's DataLoader.

Both sides shuffle, give normalised float32 batches of the same size, and do not augment. The folder side decodes JPEGs
of 360 px, as laboratories' analysers write them, in every epoch; ours decoded them once.

    python benchmarks/data_path.py [--quick]
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from _engine import one_epoch
from _table import Options, Row, alternate, ratios, run, spread
from morphfed.data.augment import NO_AUGMENTATION
from morphfed.data.cache import ImageStore, Picture
from morphfed.data.synthetic import SyntheticSite, write_films
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet
from morphfed.training.trainer import Trainer

FILE_PX = 360
SIZE = 96
BATCH = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def draw(folder: Path, images: int, jobs: int) -> None:
    """Synthetic cells as ``folder/<class>/*.jpg``."""
    counts = dict.fromkeys(("neutrophil", "lymphocyte", "monocyte", "eosinophil"), images // 4)
    site = SyntheticSite(name="site", image_px=FILE_PX, um_per_px=0.06)
    write_films(folder, [site], counts, seed=0, jobs=jobs)


def our_epoch(files: list[Path], labels: np.ndarray, cache: Path) -> tuple[Callable[[], float], float]:
    """One pass through the trainer's batches, and the seconds that filling the store took."""
    store = ImageStore(cache, size=SIZE)
    pictures = [Picture(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    start = time.perf_counter()
    notes = store.ensure(pictures)
    filling = time.perf_counter() - start
    assert (notes.decoded, notes.failed) == (len(files), {})
    ids = np.array([str(path) for path in files], dtype=object)
    data = ImageSet(store, store.rows(pictures), labels, int(labels.max()) + 1, ids, ids)
    config = TrainConfig(precision="fp32", batch_size=BATCH, augment=NO_AUGMENTATION)
    trainer = Trainer(config, mean=MEAN, std=STD, device=torch.device("cpu"), seed=0)

    def epoch() -> float:
        start = time.perf_counter()
        seen = one_epoch(trainer, data)
        assert seen == len(files)
        return len(files) / (time.perf_counter() - start)

    return epoch, filling


def folder_epoch(folder: Path, workers: int) -> Callable[[], float]:
    """The usual loader."""
    steps = [transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    data = ImageFolder(str(folder), transforms.Compose(steps))
    loader = DataLoader(
        data, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=False
    )

    def epoch() -> float:
        start = time.perf_counter()
        seen = sum(len(labels) for _, labels in loader)
        assert seen == len(data)
        return len(data) / (time.perf_counter() - start)

    return epoch


def rows(options: Options) -> list[Row]:
    images = 16 if options.quick else 1600
    workers = 0 if options.quick else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "films", images, max(1, workers))
        files = sorted((folder / "films" / "site").rglob("*.jpg"))
        assert len(files) == images
        classes = sorted({path.parent.name for path in files})
        labels = np.array([classes.index(path.parent.name) for path in files], dtype=np.int64)
        ours, filling = our_epoch(files, labels, folder / "cache")
        theirs = folder_epoch(folder / "films" / "site", workers)
        turns = alternate([ours, theirs], options.repeats)
    quotients = ratios(turns[0], turns[1])
    return [
        Row(
            f"images/s into float batches of {SIZE} px, augmentation off",
            f"{spread(turns[0])}",
            f"ImageFolder, PIL, DataLoader with {workers} workers: {spread(turns[1])}",
            f"{spread(quotients)} ×",
            "≥ 10 ×",
            None if options.quick else statistics.median(quotients) >= 10,
            f"{images:,} JPEGs of {FILE_PX} px, drawn; ours on one process. Filling the store once: "
            f"{images / filling:,.0f} images/s.",
        )
    ]


if __name__ == "__main__":
    run(rows, __doc__)
