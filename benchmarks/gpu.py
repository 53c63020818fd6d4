"""Images a second of whole federated rounds on a GPU over the pure training step.

The ceiling is a forward pass, a backward pass and an optimiser step on one batch that lies on the GPU: no images are
gathered or augmented, nothing is judged, averaged or saved. The round is a study's: gathering, augmentation, clipping,
validation of uploads and of the model, the mean, the gate, and a checkpoint on disk. Both in bf16, channels-last, with
the same batch size, in turns. Where torch finds no GPU the rows say so; ``--quick`` runs the code with a small network
on whatever there is, to see that it runs.

    python benchmarks/gpu.py [--quick] [--repeats 7]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from _table import Options, Row, alternate, ratios, run, spread
from morphfed.algorithms.base import ALGORITHMS
from morphfed.core.types import Spec
from morphfed.federation.checkpoint import CheckpointStore
from morphfed.federation.loop import FederationConfig, RoundLoop
from morphfed.federation.site import UPLOAD_METRICS, VALIDATION_METRICS, Site, Workspace
from morphfed.federation.transports.inprocess import InProcess
from morphfed.models.backbone import ModelConfig, build
from morphfed.models.layout import Layout
from morphfed.privacy.egress import Declaration, EgressGate
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet
from morphfed.training.optimise import make_optimizer
from morphfed.training.resident import ResidentStore
from morphfed.training.trainer import Trainer

CLASSES = 8
TARGET = 0.9
NETWORKS = {"ResNet-34": "resnet34", "DINOv2-S": "vit_small_patch14_dinov2"}


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
        image: side in pixels.
        batch: images a step.
        sites: training images of each site; a tenth as many are judged each round.
    """

    image: int
    batch: int
    sites: tuple[int, ...]


FULL = Size(224, 64, (6400, 3200, 1600))
TINY = Size(56, 4, (10, 6))


class Generated:
    """Noise in place of pictures: the time of a step does not depend on what is seen."""

    def __init__(self, n: int, size: int) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 255, (n, size, size, 3), dtype=np.uint8)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self._pixels[rows]


class Setting:
    """A network on the device, and the sites' images there."""

    def __init__(self, model: str, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device
        self.config = TrainConfig(precision="bf16", batch_size=size.batch)
        self.backbone = build(ModelConfig(name=model), classes=CLASSES, image_size=size.image, seed=0)
        self.model = self.backbone.module.to(device, memory_format=torch.channels_last)
        judged = [max(2, n // 10) for n in size.sites]
        total = sum(size.sites) + sum(judged)
        self.store = ResidentStore(Generated(total, size.image), np.arange(total), device)
        self.train, self.validation, start = [], [], 0
        for n, m in zip(size.sites, judged, strict=True):
            self.train.append(self._images(start, n))
            self.validation.append(self._images(start + n, m))
            start += n + m

    def _images(self, start: int, n: int) -> ImageSet:
        ids = np.arange(start, start + n).astype(str).astype(object)
        return ImageSet(self.store, np.arange(start, start + n), np.arange(n) % CLASSES, CLASSES, ids, ids)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    return {"balanced_accuracy": float((probabilities.argmax(1) == labels).mean())}


def a_round(setting: Setting, *, compiled: bool) -> Callable[[], float]:
    """Training images a second of a round of FedAvg, from the first download to the checkpoint on disk."""
    named, model = ALGORITHMS["fedavg"], setting.model
    config, layout = named.config(), Layout.of(model, setting.backbone.head)
    workspace = Workspace.of(model, layout)
    state = model.state_dict()
    specs = {k: Spec.of(state[k]) for k in workspace.travels}
    declared = Declaration(specs, UPLOAD_METRICS, "benchmark", VALIDATION_METRICS)
    trainer = Trainer(
        setting.config,
        mean=setting.backbone.mean,
        std=setting.backbone.std,
        device=setting.device,
        seed=0,
        compiled=compiled,
    )

    def once() -> float:
        with tempfile.TemporaryDirectory() as name:
            sites = [
                Site(
                    f"site{k}",
                    train=images,
                    validation={f"site{k}": judged},
                    trainer=trainer,
                    workspace=workspace,
                    half=named.site(config),
                    gate=EgressGate(f"site{k}", declared, Path(name) / "ledger.jsonl"),
                    measure=accuracy,
                    keep_optimizer=False,
                )
                for k, (images, judged) in enumerate(zip(setting.train, setting.validation, strict=True))
            ]
            loop = RoundLoop(
                FederationConfig(rounds=1),
                coordinator=named.coordinator(config, {k: state[k] for k in workspace.travels}, layout),
                transport=InProcess(sites),
                store=CheckpointStore(Path(name), "benchmark"),
            )
            setting.wait()
            start = time.perf_counter()
            loop.run()
            setting.wait()
            return sum(setting.size.sites) / (time.perf_counter() - start)

    return once


def pure_steps(setting: Setting, *, compiled: bool) -> Callable[[], float]:
    """Images a second of forward, backward and optimiser on a batch that is always the same."""
    size, device, model = setting.size, setting.device, setting.model
    optimizer = make_optimizer(setting.config, model)
    images = torch.randn(size.batch, 3, size.image, size.image, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(size.batch, device=device) % CLASSES
    forward = torch.compile(model) if compiled else model
    steps = max(1, sum(size.sites) // size.batch)

    def once() -> float:
        model.train()
        setting.wait()
        start = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = forward(images)
            loss = cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        setting.wait()
        return steps * size.batch / (time.perf_counter() - start)

    return once


def compare(label: str, model: str, size: Size, device: torch.device, options: Options, *, compiled: bool) -> Row:
    """One row."""
    setting = Setting(model, size, device)
    sides = [a_round(setting, compiled=compiled), pure_steps(setting, compiled=compiled)]
    federated, ceiling = alternate(sides, options.repeats)
    shares = ratios(federated, ceiling)
    return Row(
        _what(label, size, compiled),
        f"{spread(federated)} images/s",
        f"pure training step: {spread(ceiling)} images/s",
        spread(shares),
        f"≥ {TARGET}",
        None if options.quick else statistics.median(shares) >= TARGET,
        f"{_gpu(device)}; bf16, channels-last, batch {size.batch}, {len(size.sites)} sites with "
        f"{sum(size.sites):,} training images that lie on the device; a checkpoint each round.",
    )


def _what(label: str, size: Size, compiled: bool) -> str:
    return f"a federated round over the pure step, {label}, {size.image} px, {'compiled' if compiled else 'eager'}"


def _gpu(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def rows(options: Options) -> Iterator[Row]:
    """Both networks, eager and compiled; each not measured where there is no GPU."""
    if options.quick:  # the same code on whatever there is; its figures mean nothing
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        yield compare("ResNet-10", "resnet10t", TINY, device, replace(options, repeats=1), compiled=False)
        return
    for label, model in NETWORKS.items():
        for compiled in (False, True):
            if torch.cuda.is_available():
                yield compare(label, model, FULL, torch.device("cuda:0"), options, compiled=compiled)
            else:
                yield Row(_what(label, FULL, compiled), "not measured: no GPU here", target=f"≥ {TARGET}")


if __name__ == "__main__":
    run(rows, __doc__)
