"""One row a claim: what was measured, ours, the rival's, the ratio, the target.

A benchmark is a file of this folder with ``rows(options)``, which returns or yields :class:`Row`, that ends in
``run(rows)``. It then works on its own (``python benchmarks/NAME.py``), in the table of ``make bench`` and in the
tests, which run it with ``--quick``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class Options:
    """How thoroughly.

    Attributes:
        quick: tiny sizes and one repeat, to see that the benchmark runs; its figures mean nothing.
        rivals: whether to measure other frameworks, which are installed on first use.
        repeats: measurements of either side.
    """

    quick: bool = False
    rivals: bool = True
    repeats: int = 7


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        ours, rival, ratio, target: as they are to be read, with units and spread.
        met: None where there is no target, or nothing to compare with.
        note: what a reader must know to judge the figure.
    """

    what: str
    ours: str
    rival: str = "–"
    ratio: str = "–"
    target: str = "–"
    met: bool | None = None
    note: str = ""


class NotMeasuredError(Exception):
    """A side that cannot be measured here, and why."""


def spread(values: Sequence[float], unit: str = "") -> str:
    """``median (lowest – highest)`` to three figures."""
    low, middle, high = min(values), statistics.median(values), max(values)
    unit = f" {unit}" if unit else ""
    if len(values) == 1:
        return f"{_three(middle)}{unit}"
    return f"{_three(middle)} ({_three(low)} – {_three(high)}){unit}"


def _three(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def alternate(sides: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Measure all sides in turn, ``repeats`` times, after one unmeasured turn; who begins changes.

    On a machine whose speed drifts only figures of the same turn may be divided by each other.
    """
    found: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    for turn in range(repeats):
        order = list(range(len(sides)))
        for i in order if turn % 2 else reversed(order):
            found[i].append(sides[i]())
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Turn by turn."""
    return [a / b for a, b in zip(over, under, strict=True)]


def markdown(rows: Iterable[Row]) -> str:
    """The table."""
    verdict = {True: "met", False: "**missed**", None: "–"}
    lines = ["| what | ours | rival | ratio | target | |", "|---|---|---|---|---|---|"]
    notes: list[str] = []
    for row in rows:
        what = row.what
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            what += f" [{notes.index(row.note) + 1}]"
        lines.append(f"| {what} | {row.ours} | {row.rival} | {row.ratio} | {row.target} | {verdict[row.met]} |")
    return "\n".join([*lines, "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]).rstrip() + "\n"


def machine() -> str:
    """What the figures depend on: processor, cores, load, versions."""
    import timm
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}; {cpu}, {os.cpu_count()} cores{load}; {platform.system()}; "
        f"Python {platform.python_version()}, torch {torch.__version__} on {torch.get_num_threads()} threads, "
        f"timm {timm.__version__}"
    )


def parser(description: str | None) -> argparse.ArgumentParser:
    """The switches that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="tiny sizes, one repeat, no rivals: does it run?")
    made.add_argument("--no-rivals", action="store_true", help="do not install or run other frameworks")
    made.add_argument("--repeats", type=int, default=Options.repeats)
    made.add_argument("--json", action="store_true", help="print one JSON object a row")
    return made


def options_of(parsed: argparse.Namespace) -> Options:
    """From the command line."""
    if parsed.quick:
        return Options(quick=True, rivals=False, repeats=1)
    return Options(rivals=not parsed.no_rivals, repeats=parsed.repeats)


def rows_are_wanted() -> bool:
    """For a benchmark with switches of its own: whether it was called with those that every benchmark has."""
    return bool({"--json", "--quick", "--repeats", "--no-rivals"} & {word.split("=")[0] for word in sys.argv[1:]})


def run(rows: Callable[[Options], Iterable[Row]], description: str | None = None) -> None:
    """Command line of one benchmark."""
    parsed = parser(description).parse_args()
    # An end from outside must reach the `finally` that stops what a rival has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = []
    for row in rows(options_of(parsed)):
        found.append(row)
        if parsed.json:
            print(json.dumps(asdict(row), ensure_ascii=False), flush=True)
    if not parsed.json:
        sys.stdout.write(markdown(found))
