"""What two sites and five rounds cost when there is nothing to train, in fresh processes.

Ours is measured twice in the same process: from after ``import torch, timm`` to the end (what the engine adds), and
as a whole process, which is what is compared with the other frameworks. They need neither torch nor timm for this.

    python benchmarks/fixed_cost.py [--quick] [--no-rivals] [--repeats 7]
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from _memory import Watched, forget_peak, peak, resident, watch
from _rivals import SCRIPTS, environment, variables
from _table import MIB, NotMeasuredError, Options, Row, ratios, run, spread

ROUNDS = 5
RIVAL_REPEATS = 3
"""A rival takes up to a minute a run."""

SIZES = {
    "small": ("nothing to train, ten values", "≤ 0.3 s, ≤ 50 MiB", 0.3, 50),
    "large": ("nothing to train, 85 MB of weights", "≤ 1.5 s, ≤ 350 MiB", 1.5, 350),
}
NOTE = (
    "Ours: time (in brackets the least processor time) and memory beyond `import torch, timm`, then the whole process "
    "with these imports. Rivals: whole process; memory is the PSS of all processes; Flower by `run_simulation`, "
    "NVFlare by `SimEnv`. The ratio is of whole processes. Nobody writes a checkpoint a round."
)


def child(size: str, checkpoints: bool) -> None:
    """One run; prints what it took beyond the imports."""
    import timm
    import torch

    del timm, torch  # the imports are what is not counted
    forget_peak()
    before, start, working = resident(), time.perf_counter(), time.process_time()
    from _engine import idle_federation, large_model, small_model, travelling

    model = large_model() if size == "large" else small_model()
    with tempfile.TemporaryDirectory() as folder:
        outcome = idle_federation(model, rounds=ROUNDS, folder=Path(folder), checkpoints=checkpoints)
        seconds, cpu = time.perf_counter() - start, time.process_time() - working
    assert outcome.progress.round == ROUNDS
    values = sum(tensor.numel() for tensor in travelling(model).values())
    print(json.dumps({"seconds": seconds, "cpu": cpu, "bytes": peak() - before, "values": values}))


@dataclass(frozen=True)
class Ours:
    """One run of ours.

    Attributes:
        whole: the process.
        seconds, cpu: wall and processor time beyond the imports.
        mib: memory beyond the imports.
    """

    whole: Watched
    seconds: float
    cpu: float
    mib: float


def ours(size: str, *, checkpoints: bool = False) -> Ours:
    """A fresh process."""
    command = [sys.executable, __file__, "child", size, *(["checkpoints"] if checkpoints else [])]
    whole = watch(command, cwd=Path.cwd(), variables=os.environ)
    found = json.loads(whole.output.splitlines()[-1])
    return Ours(whole, found["seconds"], found["cpu"], found["bytes"] / MIB)


def told(runs: Sequence[Ours]) -> str:
    """Time and memory beyond the imports."""
    cpu = min(run.cpu for run in runs)
    return f"{spread([r.seconds for r in runs], 's')} (processor {cpu:.2g} s), {spread([r.mib for r in runs], 'MiB')}"


def shapes(size: str) -> list[list[int]]:
    """Of the tensors that travel."""
    from _engine import large_model, small_model, travelling

    model = large_model() if size == "large" else small_model()
    return [list(tensor.shape) for tensor in travelling(model).values()]


def rival(name: str, size: str, folder: Path) -> Callable[[], Watched]:
    """A function that runs a rival once and checks that it did what it should."""
    import numpy as np

    python = environment(name)
    sizes = shapes(size)
    values = sum(int(np.prod(shape)) for shape in sizes)
    argument = folder / ("shapes.json" if name == "flwr" else "initial.npy")
    if name == "flwr":
        argument.write_text(json.dumps(sizes))
    else:
        np.save(argument, np.zeros(values, np.float32))
    expected = f"finished {ROUNDS} rounds of {values} values"

    def once() -> Watched:
        with tempfile.TemporaryDirectory() as work:
            command = [str(python), str(SCRIPTS / f"{name}_idle.py"), str(argument)]
            done = watch(command, cwd=Path(work), variables=variables())
        said = re.search(r"finished .* values", done.output)
        if said is None or said[0] != expected:
            raise NotMeasuredError(f"it ended without '{expected}'")
        return done

    return once


def measure(size: str, options: Options, folder: Path) -> Row:
    """Ours and every rival in turn."""
    what, target, seconds_allowed, mib_allowed = SIZES[size]
    rivals: dict[str, Callable[[], Watched]] = {}
    failed: dict[str, str] = {}
    for name in ("flwr", "nvflare") if options.rivals else ():
        try:
            rivals[name] = rival(name, size, folder)
        except NotMeasuredError as why:
            failed[name] = str(why)
    runs: list[Ours] = []
    theirs: dict[str, list[Watched]] = {name: [] for name in rivals}
    for turn in range(options.repeats):
        runs.append(ours(size))
        for name in list(rivals) if turn < RIVAL_REPEATS else ():
            try:
                theirs[name].append(rivals[name]())
            except NotMeasuredError as why:
                failed[name] = str(why)
                del rivals[name], theirs[name]
    whole = [r.whole.seconds for r in runs]
    said, ratio = [f"{name} not measured: {why}" for name, why in failed.items()], []
    for name, found in theirs.items():
        seconds = [w.seconds for w in found]
        said.append(f"{name} {spread(seconds, 's')}, {max(w.peak for w in found) / MIB:,.0f} MiB")
        ratio.append(f"{name} {spread(ratios(seconds, whole[: len(found)]))} ×")
    return Row(
        f"two sites, five rounds, {what}",
        f"{told(runs)}; whole process {spread(whole, 's')}, {max(r.whole.peak for r in runs) / MIB:,.0f} MiB",
        "; ".join(said) if options.rivals else "not asked for",
        "; ".join(ratio) or "–",
        target,
        None
        if options.quick
        else median(r.seconds for r in runs) <= seconds_allowed and max(r.mib for r in runs) <= mib_allowed,
        NOTE,
    )


def rows(options: Options) -> Iterator[Row]:
    sizes = ("small",) if options.quick else ("small", "large")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            yield measure(size, options, Path(folder))
    size = sizes[-1]
    kept = [ours(size, checkpoints=True) for _ in range(options.repeats)]
    yield Row(
        f"the same, {SIZES[size][0].split(', ')[1]}, with a checkpoint on disk every round",
        told(kept),
        note="What a study does; the disk decides.",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], "checkpoints" in sys.argv[3:])
    else:
        run(rows, __doc__)
