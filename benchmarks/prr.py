"""What PRR-FL and each of its pieces cost beside FedAvg: processor time, bytes, memory, and PFA's share of a round.

Three sites train SqueezeNet 1.1 at 96 px for three passes a round, so that a deputy can go through all of its stages.
All arms take turns in one process on one thread, and an arm's figure is the median of its ratios to FedAvg's
processor time in the same turn.

    python benchmarks/prr.py [--quick] [--repeats 7]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from _memory import forget_peak, peak, resident
from _table import MIB, Options, Row, alternate, ratios, run, spread
from morphfed.core.types import nbytes
from overhead import Setting, federation

BASE = "fedavg"
ARMS: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        BASE: ("fedavg", {"weighting": "uniform"}),
        "pfa": ("pfa", {}),
        "det": ("det", {"weighting": "uniform"}),
        "cpa": ("prr", {"aggregation": "mean", "transfer": False}),
        "prr": ("prr", {}),
    }
)
"""Arm → algorithm and its keys; ``cpa`` is the loss alone."""

WORDS = {
    "pfa": "PFA alone (complex, symmetric)",
    "det": "DET alone",
    "cpa": "CPA alone",
    "prr": "PRR-FL as published in 2022",
}
TIMES = 2.3
"""Highest processor time of PRR-FL in those of FedAvg."""

SHARE = 0.05
"""Highest share of a round that PFA may take."""

ROUNDS, PASSES = 2, 3


@dataclass(frozen=True)
class Found:
    """One run of an arm.

    Attributes:
        seconds: processor time of all rounds.
        aggregating: the part of it that the coordinator took to fold uploads in and mix them.
        up, down: bytes moved.
        coordinator, site: bytes that the coordinator and the largest site keep from round to round.
        peak: highest memory of the process beyond network and images, bytes.
    """

    seconds: float
    aggregating: float
    up: int
    down: int
    coordinator: int
    site: int
    peak: int


class Arms:
    """All arms over the same sites and images."""

    def __init__(self, *, quick: bool) -> None:
        size, share = (64, 32) if quick else (96, 2)
        rounds = 1 if quick else ROUNDS
        self.setting = Setting("torchvision/squeezenet1_1", size, "bf16", rounds, share=share, local_epochs=PASSES)
        self.found: dict[str, list[Found]] = {name: [] for name in ARMS}

    def run(self, name: str) -> float:
        """Run an arm from the start; its processor time."""
        algorithm, keys = ARMS[name]
        self.setting.reset()
        forget_peak()
        before = resident()
        with tempfile.TemporaryDirectory() as folder:
            made = federation(self.setting, algorithm, Path(folder), keys)
            watch = Stopwatch()
            for part in ("fold", "end_round"):
                setattr(made.coordinator, part, watch.on(getattr(made.coordinator, part)))
            start = time.process_time()
            outcome = made.loop.run()
            seconds = time.process_time() - start
            highest = peak() - before
        kept = [nbytes(site.state()) for site in made.sites]
        moved = (outcome.progress.bytes_up, outcome.progress.bytes_down)
        self.found[name].append(
            Found(seconds, watch.seconds, *moved, nbytes(made.coordinator.state()), max(kept), highest)
        )
        return seconds


class Stopwatch:
    """Adds up the processor time of functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on(self, function: Callable[..., None]) -> Callable[..., None]:
        """The same function, timed."""

        def timed(*arguments: object) -> None:
            start = time.process_time()
            function(*arguments)
            self.seconds += time.process_time() - start

        return timed


def told(runs: Sequence[Found]) -> str:
    """Bytes and memory of an arm."""
    found = runs[-1]
    mib = statistics.median(run.peak for run in runs) / MIB
    return (
        f"up {found.up / 1e6:.3g} MB, down {found.down / 1e6:.3g} MB; peak {mib:,.0f} MiB; the coordinator keeps "
        f"{found.coordinator / MIB:.3g} MiB, a site {found.site / MIB:.3g}"
    )


def rows(options: Options) -> Iterator[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        arms = Arms(quick=options.quick)
        turns = alternate([lambda name=name: arms.run(name) for name in ARMS], options.repeats)  # type: ignore[misc]
    finally:
        torch.set_num_threads(threads)
    seconds = dict(zip(ARMS, turns, strict=True))
    setting = arms.setting
    images = sum(len(part) for part in setting.train.values())
    note = (
        f"SqueezeNet 1.1, {len(setting.train)} sites, {images} training images of {setting.size} px, {setting.rounds} "
        f"rounds of {PASSES} passes, one thread, processor time. Peak memory is that of the process beyond network and "
        "images; what is kept from round to round is kept beside the one network that the sites train in turns."
    )
    base = f"FedAvg {spread(seconds[BASE], 's')}; {told(arms.found[BASE])}"
    for name, words in WORDS.items():
        ratio = ratios(seconds[name], seconds[BASE])
        judged = name == "prr" and not options.quick
        yield Row(
            f"{words} beside FedAvg",
            f"{spread(seconds[name], 's')}; {told(arms.found[name])}",
            base,
            f"{spread(ratio)} ×",
            f"≤ {TIMES} ×" if name == "prr" else "–",
            statistics.median(ratio) <= TIMES if judged else None,
            note,
        )
    shares = [100 * found.aggregating / found.seconds for found in arms.found["pfa"]]
    yield Row(
        "PFA's share of a round",
        spread(shares, "%"),
        target=f"≤ {100 * SHARE:.0f} %",
        met=None if options.quick else statistics.median(shares) <= 100 * SHARE,
        note=note,
    )


if __name__ == "__main__":
    run(rows, __doc__)
