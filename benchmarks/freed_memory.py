"""A training step with freed memory kept by the process, as in a study, against the C library's own habit.

Each side is a process of its own that one process forks after the imports: the allocator cannot be set back. Processor
time, which is what the pages cost.

    python benchmarks/freed_memory.py [--quick]
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator

import timm
import torch
import torchvision
from torch import nn

from _table import Options, Row, alternate, ratios, run, spread
from morphfed.core.memory import keep_freed_memory

SIZE, BATCH = 96, 16
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "SqueezeNet 1.1": lambda: torchvision.models.squeezenet1_1(num_classes=5),
    "MobileNetV2": lambda: timm.create_model("mobilenetv2_100", num_classes=5),
}


def seconds_of_a_step(name: str, precision: str, steps: int, kept: bool) -> float:
    """Processor time of a step, mean over ``steps`` after two that allocate."""
    torch.set_num_threads(1)
    if kept and not keep_freed_memory():
        raise RuntimeError("this C library has no such setting")
    model = NETWORKS[name]().train().to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    start = 0.0
    for step in range(2 + steps):
        if step == 2:
            start = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images)
        torch.autograd.backward(nn.functional.cross_entropy(logits.float(), labels))
        optimizer.step()
    return (time.process_time() - start) / steps


def rows(options: Options) -> Iterator[Row]:
    context = multiprocessing.get_context("fork")
    steps = 1 if options.quick else 20

    def side(name: str, precision: str, kept: bool) -> Callable[[], float]:
        def measure() -> float:
            with context.Pool(1) as pool:
                return float(pool.apply(seconds_of_a_step, (name, precision, steps, kept)))

        return measure

    for name in NETWORKS:
        for precision in ("fp32", "bf16"):
            turns = alternate([side(name, precision, True), side(name, precision, False)], options.repeats)
            ours, theirs = ([1e3 * s for s in times] for times in turns)
            quotients = ratios(theirs, ours)
            yield Row(
                f"a training step of {name}, batch {BATCH}, {SIZE} px, {precision}, processor time",
                f"{spread(ours, 'ms')}, freed memory kept",
                f"given back: {spread(theirs, 'ms')}",
                f"{spread(quotients)} ×",
            )


if __name__ == "__main__":
    run(rows, __doc__)
