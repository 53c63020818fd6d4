"""Training on bags: bags a second of a slide's size, and the memory of a bag that is larger than any slide.

The network is the gated attention of CLAM "small" and HistoFL on 1,024 features (788,739 weights). A bag of 10,000
instances is read from its ``.h5`` file and trained on by the loop that studies use (:class:`Trainer`, AdamW), one bag a
step; beside it the bare network on a bag already in memory. A bag of 200,000 instances (0.82 GB of features) is opened
predicted and trained on in a process of its own: what it needs beyond the bag itself.

    python benchmarks/mil.py [--quick] [--repeats 7]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from _memory import forget_peak, peak, resident
from _table import MIB, Options, Row, alternate, ratios, run, spread
from morphfed.data.bags.files import write_bag
from morphfed.data.bags.store import BagStore
from morphfed.models.mil import build_head
from morphfed.tasks.mil import MIL
from morphfed.training.bags import BagSet
from morphfed.training.config import TrainConfig
from morphfed.training.optimise import make_optimizer
from morphfed.training.trainer import Trainer

DIM = 1024
SMALL = 128 * MIB
"""What a bag may need beyond its own size when it is read, predicted, or trained on."""


def bags(folder: Path, count: int, instances: int, dim: int) -> BagSet:
    """Bags on disk, every other one positive."""
    draw = np.random.default_rng(0)
    places = []
    for number in range(count):
        place = folder / f"slide-{number}.h5"
        write_bag(place, draw.standard_normal((instances, dim), dtype=np.float32), encoder="none")
        places.append(place)
    sizes, rows = np.full(count, instances), np.arange(count)
    names = np.array([place.name for place in places], dtype=object)
    store = BagStore(places, sizes, dim, [None] * count)
    return BagSet(store, rows, rows % 2, 2, names, names, sizes=sizes, dim=dim)


def trainer(precision: str) -> tuple[Trainer, TrainConfig]:
    """One bag a step."""
    keys = {"optimizer": "adamw", "lr": 1e-4, "batch_size": 1, "local_epochs": 1, "precision": precision}
    config = TrainConfig.model_validate(keys)
    cpu = torch.device("cpu")
    return Trainer(config, mean=(0.0,) * 3, std=(1.0,) * 3, device=cpu, seed=0, task=MIL), config


def training(data: BagSet, dim: int, precision: str, used: list[float]) -> Callable[[], float]:
    """Bags a second of wall time through the whole loop; processor seconds a bag go to ``used``."""
    torch.manual_seed(0)
    head = build_head("gated_abmil", dim, 2)
    loop, config = trainer(precision)
    optimiser = make_optimizer(config, head)

    def once() -> float:
        start, before = time.perf_counter(), time.process_time()
        loop.fit(head, optimiser, data, site="site", round_number=1, rounds=1)
        used.append((time.process_time() - before) / len(data))
        return len(data) / (time.perf_counter() - start)

    return once


def bare(instances: int, dim: int, precision: str, used: list[float]) -> Callable[[], float]:
    """The same network and optimiser on one bag in memory."""
    torch.manual_seed(0)
    head = build_head("gated_abmil", dim, 2)
    optimiser = make_optimizer(trainer(precision)[1], head)
    bag, label = torch.randn(instances, dim), torch.tensor([1])

    def once() -> float:
        start, before = time.perf_counter(), time.process_time()
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = head(bag).logits
        nn.functional.cross_entropy(logits[None].float(), label).backward()
        optimiser.step()
        used.append(time.process_time() - before)
        return 1 / (time.perf_counter() - start)

    return once


def one_large(path: Path, instances: int, dim: int) -> dict[str, float]:
    """In a process of its own: bytes beyond what was resident before, for reading, predicting and training on a bag."""
    store = BagStore([path], np.array([instances]), dim, [None])
    name = np.array([path.name], dtype=object)
    data = BagSet(store, np.array([0]), np.array([1]), 2, name, name, sizes=np.array([instances]), dim=dim)
    head = build_head("gated_abmil", dim, 2)
    loop, config = trainer("fp32")
    optimizer = make_optimizer(config, head)
    head(torch.zeros(4, dim)).logits.sum().backward()
    optimizer.step()  # so that its state is there
    forget_peak()
    before = resident()
    kept = data.read(np.array([0]))
    reading = peak() - before
    del kept
    forget_peak()
    before = resident()
    loop.predict(head, data)
    predicting = peak() - before
    forget_peak()
    before = resident()
    loop.fit(head, optimizer, data, site="a", round_number=1, rounds=1)
    return {"reading": reading, "predicting": predicting, "training": peak() - before}


def rows(options: Options) -> Iterator[Row]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield from _speed(options, Path(folder))
            yield _memory(options, Path(folder))
    finally:
        torch.set_num_threads(before)


def _speed(options: Options, folder: Path) -> Iterator[Row]:
    instances, dim, count = (50, 16, 2) if options.quick else (10_000, DIM, 4)
    data = bags(folder, count, instances, dim)
    for precision in ("fp32", "bf16"):
        used: dict[str, list[float]] = {"loop": [], "bare": []}
        sides = [training(data, dim, precision, used["loop"]), bare(instances, dim, precision, used["bare"])]
        ours, alone = alternate(sides, options.repeats)
        cpu = ratios(used["bare"][1:], used["loop"][1:])
        yield Row(
            f"training gated attention on bags of {instances:,} × {dim:,}, one bag a step, {precision}, one thread",
            f"{spread(ours, 'bags/s')}; {spread(used['loop'][1:], 's')} of processor time a bag",
            f"bag in memory: {spread(alone, 'bags/s')}; {spread(used['bare'][1:], 's')}",
            f"{spread(ratios(ours, alone))}; processor time {spread(cpu)}",
            note="Read from .h5, forward, backward, AdamW, against the same network on a bag that is in memory.",
        )


def _memory(options: Options, folder: Path) -> Row:
    instances, dim = (500, 16) if options.quick else (200_000, DIM)
    place = folder / "large.h5"
    draw = np.random.default_rng(0)
    write_bag(place, draw.standard_normal((instances, dim), dtype=np.float32), encoder="none")
    size = 4 * instances * dim
    child = [sys.executable, __file__, "large", str(place), str(instances), str(dim)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = json.loads(subprocess.run(child, stdout=subprocess.PIPE, check=True, env=environment).stdout)
    beyond = {what: (bytes_ - size) / MIB for what, bytes_ in found.items()}
    return Row(
        f"memory of a bag of {instances:,} × {dim:,} ({size / MIB:,.0f} MiB of float32)",
        "its size and " + ", ".join(f"{mib:.0f} MiB ({what})" for what, mib in beyond.items()),
        target=f"≤ its size + {SMALL / MIB:.0f} MiB",
        met=None if options.quick else max(beyond.values()) <= SMALL / MIB,
        note="Long bags go through the head in blocks, computed again on the way back.",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["large"]:
        torch.set_num_threads(1)
        sys.stdout.write(json.dumps(one_large(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
    else:
        run(rows, __doc__)
