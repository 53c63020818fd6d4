"""Time of a federated arm over a bare PyTorch loop that does the same steps on the same cached tensors.

Both sides take turns in one process (A B A B …), and the figure is the median of the paired ratios. The bare loop
is written out below: it gathers, augments, trains, and judges the same validation images once a round; it has no
coordinator, no validation of uploads, no averaging, no gate, no checkpoints. Run with

    python benchmarks/overhead.py [--model resnet34] [--epochs 4] [--pairs 7]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from _table import Options, Row, rows_are_wanted, run, spread
from morphfed.algorithms.base import ALGORITHMS, CoordinatorHalf
from morphfed.core.seeding import derive, numpy_stream, torch_stream
from morphfed.core.types import Spec
from morphfed.data.augment import Augment
from morphfed.federation.checkpoint import CheckpointStore
from morphfed.federation.coding.wire import Coding
from morphfed.federation.loop import FederationConfig, RoundLoop
from morphfed.federation.site import UPLOAD_METRICS, VALIDATION_METRICS, Site, Workspace
from morphfed.federation.statistics import class_counts
from morphfed.federation.transports.inprocess import InProcess
from morphfed.models.backbone import ModelConfig, build
from morphfed.models.layout import Layout
from morphfed.privacy.egress import Declaration, EgressGate
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet
from morphfed.training.optimise import learning_rate, make_optimizer
from morphfed.training.trainer import Trainer

CLASSES = 5
SITES = {"a": 192, "b": 96, "c": 64}
VALIDATION = 16
MODELS = [("SqueezeNet 1.1", "torchvision/squeezenet1_1", 1.05), ("ResNet-34", "resnet34", 1.02)]
"""Title, name, and the highest ratio that is aimed at."""


class Memory:
    """Pictures in memory, in the layout of the on-disk store."""

    def __init__(self, n: int, size: int) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 255, (n, size, size, 3), dtype=np.uint8)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def image_set(store: Memory, start: int, n: int) -> ImageSet:
    ids = np.array([str(i) for i in range(start, start + n)], dtype=object)
    labels = np.random.default_rng(start).integers(0, CLASSES, n)
    return ImageSet(store, np.arange(start, start + n), labels, CLASSES, ids, ids)


class Setting:
    """One network, one store, the sites' sets."""

    def __init__(
        self, model: str, size: int, precision: str, rounds: int, *, share: int = 1, local_epochs: int = 1
    ) -> None:
        self.size, self.rounds = size, rounds
        self.config = TrainConfig(precision=precision, batch_size=16, local_epochs=local_epochs)  # type: ignore[arg-type]
        counts = {name: n // share for name, n in SITES.items()}
        store = Memory(sum(counts.values()) + VALIDATION * len(SITES), size)
        self.train, self.validation, start = {}, {}, 0
        for name, n in counts.items():
            self.train[name] = image_set(store, start, n)
            self.validation[name] = image_set(store, start + n, VALIDATION)
            start += n + VALIDATION
        self.backbone = build(ModelConfig(name=model), classes=CLASSES, image_size=size, seed=0)
        self.model = self.backbone.module.to(memory_format=torch.channels_last)
        self.initial = {k: v.clone() for k, v in self.model.state_dict().items()}

    def reset(self) -> None:
        self.model.load_state_dict(self.initial)


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    right = float((probabilities.argmax(1) == labels).mean())
    return {"balanced_accuracy": right, "macro_f1": right}


@dataclass(frozen=True)
class Federation:
    """An arm that is ready to run."""

    loop: RoundLoop
    coordinator: CoordinatorHalf
    sites: list[Site]


def federation(setting: Setting, algorithm: str, folder: Path, keys: Mapping[str, object] | None = None) -> Federation:
    """The arm as a study runs it, checkpoints on disk included; ``keys`` are the algorithm's own."""
    named = ALGORITHMS[algorithm]
    config = named.config(**(keys or {}))
    layout = Layout.of(setting.model, setting.backbone.head)
    workspace = Workspace.of(setting.model, layout, named.travels(config, layout))
    trainer = Trainer(
        setting.config,
        mean=setting.backbone.mean,
        std=setting.backbone.std,
        device=torch.device("cpu"),
        seed=0,
    )
    state = setting.model.state_dict()
    coding = Coding.none(named.uploads(config, layout, {k: Spec.of(state[k]) for k in workspace.travels}))
    counts = class_counts(CLASSES) if named.counts(config) else {}
    declared = Declaration(coding.specs, UPLOAD_METRICS | named.numbers, "benchmark", VALIDATION_METRICS, counts)
    sites = [
        Site(
            name,
            train=setting.train[name],
            validation={name: setting.validation[name]},
            trainer=trainer,
            workspace=workspace,
            half=named.site(config),
            gate=EgressGate(name, declared, folder / "ledger.jsonl"),
            measure=accuracy,
            keep_optimizer=False,
            coding=coding,
        )
        for name in SITES
    ]
    coordinator = named.coordinator(config, {k: state[k] for k in workspace.travels}, layout)
    loop = RoundLoop(
        FederationConfig(rounds=setting.rounds),
        coordinator=coordinator,
        transport=InProcess(sites),
        store=CheckpointStore(folder, "benchmark"),
        coding=coding,
        share_counts=bool(counts),
    )
    return Federation(loop, coordinator, sites)


def bare(setting: Setting, mu: float) -> None:
    """The same steps, written out; ``mu`` > 0 with FedProx's gradient."""
    config, model = setting.config, setting.model
    augment = Augment(config.augment)
    mean = torch.tensor(setting.backbone.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(setting.backbone.std).reshape(1, 3, 1, 1)

    def prepare(data: ImageSet, where: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(data.store.gather(data.rows[where])).permute(0, 3, 1, 2)
        return pixels.float().div_(255.0)

    def normalise(images: torch.Tensor) -> torch.Tensor:
        return images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)

    for number in range(1, setting.rounds + 1):
        for site, data in setting.train.items():
            optimizer = make_optimizer(config, model)
            anchor = [p.detach().clone() for p in model.parameters()]
            generator = torch_stream(0, "augment", site, number)
            batches = -(-len(data) // config.batch_size)
            steps = batches * config.local_epochs
            step = (number - 1) * steps
            model.train()
            torch.manual_seed(derive(0, "dropout", site, number))
            orders = (
                numpy_stream(0, "order", site, number, e).permutation(len(data)) for e in range(config.local_epochs)
            )
            for where in (part for order in orders for part in np.array_split(order, batches)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step / (setting.rounds * steps))
                images = normalise(augment(prepare(data, where), generator))
                with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                    logits = model(images)
                loss = nn.functional.cross_entropy(logits.float(), torch.from_numpy(data.labels[where]))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if mu:
                    for p, a in zip(model.parameters(), anchor, strict=True):
                        p.grad.add_(p.detach() - a, alpha=mu)
                nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                optimizer.step()
                step += 1
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            for data in setting.validation.values():
                model(normalise(prepare(data, np.arange(len(data)))))


@dataclass(frozen=True)
class Overhead:
    """What was measured of one arm, each a ratio federated / bare of one pair.

    Attributes:
        wall: of wall time.
        cpu: of processor time; on a machine with other work the one to go by.
        bare_seconds: fastest bare loop, wall.
        fastest: ratio of the fastest of each side, wall.
    """

    wall: list[float]
    cpu: list[float]
    bare_seconds: float
    fastest: float


def measure(setting: Setting, algorithm: str, pairs: int) -> Overhead:
    """Pairs of one federated and one bare run in turns."""
    mu = getattr(ALGORITHMS[algorithm].config(), "mu", 0.0)
    wall: list[float] = []
    cpu: list[float] = []
    fastest = {"federated": math.inf, "bare": math.inf}
    for pair in range(pairs + 1):
        times, working = {}, {}
        # The order within a pair changes, so that a drifting machine favours neither.
        for side in ("federated", "bare") if pair % 2 else ("bare", "federated"):
            setting.reset()
            with tempfile.TemporaryDirectory() as folder:
                start, busy = time.perf_counter(), time.process_time()
                if side == "bare":
                    bare(setting, mu)
                else:
                    federation(setting, algorithm, Path(folder)).loop.run()
                times[side], working[side] = time.perf_counter() - start, time.process_time() - busy
        if pair:  # the first pair warms up
            wall.append(times["federated"] / times["bare"])
            cpu.append(working["federated"] / working["bare"])
            fastest = {side: min(seconds, times[side]) for side, seconds in fastest.items()}
    return Overhead(wall, cpu, fastest["bare"], fastest["federated"] / fastest["bare"])


def rows(options: Options) -> list[Row]:
    """For the table: fewer pairs and shorter rounds than the figures of docs/performance.md."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    size, share = (64, 32) if options.quick else (96, 1)
    found: list[Row] = []
    try:
        for title, name, limit in MODELS[:1] if options.quick else MODELS:
            setting = Setting(name, size, "bf16", 1, share=share)
            for algorithm in ("fedavg", "fedprox"):
                measured = measure(setting, algorithm, options.repeats)
                found.append(row(f"a {algorithm} round over a bare PyTorch loop, {title}", measured, limit, options))
    finally:
        torch.set_num_threads(threads)
    return found


def row(what: str, found: Overhead, limit: float, options: Options) -> Row:
    """One line of the table."""
    ratio = statistics.median(found.wall)
    return Row(
        what,
        f"{ratio * found.bare_seconds:.3g} s",
        f"bare loop {found.bare_seconds:.3g} s",
        f"wall {spread(found.wall)} ×, fastest {found.fastest:.3g} ×; processor time {spread(found.cpu)} ×",
        f"≤ {limit} ×",
        None if options.quick else statistics.median(found.cpu) <= limit,
        "Times: the fastest of the bare loop, and that times the median of the paired ratios. Processor time decides.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="torchvision/squeezenet1_1")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1, help="passes over the images in a round")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    if rows_are_wanted():
        return run(rows, __doc__)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    epochs = options.epochs
    setting = Setting(options.model, options.size, options.precision, options.rounds, local_epochs=epochs)
    for algorithm in ("fedavg", "fedprox"):
        found = measure(setting, algorithm, options.pairs)
        told = {"wall": spread(found.wall), "cpu": spread(found.cpu), "fastest": found.fastest}
        print(json.dumps({"what": f"{algorithm} / bare loop", "model": options.model, "pairs": options.pairs, **told}))


if __name__ == "__main__":
    main()
