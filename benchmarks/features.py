"""Head tuning on stored features against running the frozen backbone in every epoch.

Both sides take the same optimiser steps on the same images in one process, in turns; the figure is the median of the
paired ratios, of the process's own CPU time with one thread (so that other programs on the machine do not count) and of
the wall clock. Mirroring and right angles are on, and nothing else: what both sides can do. The one-time cost of the
features, all eight views of them, is measured in the same run and given as the epochs after which it is paid back.

    python benchmarks/features.py [--model mobilenetv2_100] [--images 192] [--pairs 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _table import Options, Row, rows_are_wanted, run
from morphfed.algorithms.base import ALGORITHMS
from morphfed.data.augment import NO_AUGMENTATION
from morphfed.data.cache import ImageStore
from morphfed.experiment.features import on_features
from morphfed.experiment.prepare import Prepared
from morphfed.experiment.study import Arm, DataConfig, SiteConfig, Study
from morphfed.federation.loop import FederationConfig
from morphfed.models.backbone import ModelConfig, build
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet
from morphfed.training.optimise import make_optimizer
from morphfed.training.trainer import Trainer

CLASSES = 5


def pictures(folder: Path, n: int, size: int) -> ImageSet:
    store = ImageStore(folder, size=size)
    rng = np.random.default_rng(0)
    keys = [str(i) for i in range(n)]
    with store.writing():
        store.commit(keys, rng.integers(0, 255, (n, size, size, 3), dtype=np.uint8))
    ids = np.array(keys, dtype=object)
    return ImageSet(store, store.rows_of(keys), rng.integers(0, CLASSES, n), CLASSES, ids, ids)


def _ratios(times: dict[str, list[float]]) -> list[float]:
    """Backbone over features, pair by pair; the first pair warms up."""
    return [b / f for b, f in zip(times["backbone"][1:], times["features"][1:], strict=True)]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenetv2_100")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    augment = NO_AUGMENTATION.model_copy(update={"flips": True, "right_angles": True})
    config = TrainConfig(precision="fp32", batch_size=16, augment=augment)
    model = ModelConfig(name=options.model, tune="head")
    study = Study(
        name="benchmark",
        classes=("neutrophil", "lymphocyte"),
        sites={"a": SiteConfig(path=".")},
        data=DataConfig(image_size=options.size),
    )
    algorithm = ALGORITHMS["fedavg"]
    arm = Arm("fedavg", algorithm, algorithm.config(), model, config, FederationConfig())
    backbone = build(model, classes=CLASSES, image_size=options.size, seed=0)
    device = torch.device(options.device)
    whole = backbone.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(config, mean=backbone.mean, std=backbone.std, device=device, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        images = pictures(Path(folder), options.images, options.size)
        start, used = time.perf_counter(), time.process_time()
        prepared = Prepared({"a": {"train": images, "test": images}}, {"a": "image"}, {"a": {}}, [])
        stored = on_features(backbone, arm, prepared, study)
        assert stored is not None
        once, once_cpu = time.perf_counter() - start, time.process_time() - used
        sides = {"features": (stored.model, stored.prepared.sets["a"]["train"]), "backbone": (whole, images)}
        times: dict[str, list[float]] = {name: [] for name in sides}
        cpu: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(options.pairs + 1):
            # The order within a pair changes, so that a drifting machine favours neither.
            for name in ("features", "backbone") if number % 2 else ("backbone", "features"):
                network, data = sides[name]
                optimizer = make_optimizer(config, network)
                start, used = time.perf_counter(), time.process_time()
                trainer.fit(network, optimizer, data, site="a", round_number=1, rounds=1)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - used)
    ratios = _ratios(times)
    epoch = {name: min(seconds[1:]) for name, seconds in times.items()}
    return {
        "what": "an epoch with the backbone / an epoch on stored features",
        **vars(options),
        "cpu_median": statistics.median(_ratios(cpu)),
        "median": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "backbone_epoch_seconds": epoch["backbone"],
        "features_epoch_seconds": epoch["features"],
        "once_seconds": once,
        "backbone_epoch_cpu_seconds": min(cpu["backbone"][1:]),
        "features_epoch_cpu_seconds": min(cpu["features"][1:]),
        "once_cpu_seconds": once_cpu,
    }


def rows(options: Options) -> list[Row]:
    size = ["--size", "32", "--images", "16"] if options.quick else []
    threads = torch.get_num_threads()
    try:
        found = measure(arguments().parse_args([*size, "--pairs", str(options.repeats)]))
    finally:
        torch.set_num_threads(threads)
    return [
        Row(
            "an epoch of head tuning on stored features, MobileNetV2",
            f"{found['features_epoch_seconds']:.3g} s",
            f"backbone in every step {found['backbone_epoch_seconds']:.3g} s",
            f"{found['median']:.3g} ({found['low']:.3g} – {found['high']:.3g}) ×; CPU {found['cpu_median']:.3g} ×",
            "≥ 50 ×",
            None if options.quick else found["median"] >= 50,
            f"{found['images']} images, one thread. The features are computed once, in {found['once_seconds']:.3g} s.",
        )
    ]


def main() -> None:
    if rows_are_wanted():
        return run(rows, __doc__)
    print(json.dumps(measure(arguments().parse_args())))


if __name__ == "__main__":
    main()
