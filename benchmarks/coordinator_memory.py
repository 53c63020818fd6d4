"""Memory of the coordinator against the number of sites: one round of the mean, uploads made up one at a time.

python benchmarks/coordinator_memory.py [--quick]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from _memory import forget_peak, peak, resident
from _table import MIB, Options, Row, run

SITES = (2, 10, 100, 1000)
FLAT = 1.05
"""Highest over lowest."""


def child(sites: int, size: str) -> None:
    """One round in a fresh process."""
    import torch

    from _engine import Generated, large_model, round_of_many, small_model, travelling

    initial = travelling(large_model() if size == "large" else small_model())
    transport = Generated(sites, initial)
    # The one upload buffer belongs to the sites: let it be resident before the coordinator begins.
    torch._foreach_zero_(list(transport._buffer.values()))
    forget_peak()
    before, start = resident(), time.perf_counter()
    model = round_of_many(transport, initial)
    seconds, extra = time.perf_counter() - start - transport.generating, peak() - before
    expected = (sites + 1) / 2  # the mean of 1 … n
    worst = max(float((tensor / expected - 1).abs().max()) for tensor in model.values())
    assert worst < 1e-4, worst
    print(json.dumps({"seconds": seconds, "bytes": extra}))


def rows(options: Options) -> list[Row]:
    counts, size = ((3,), "small") if options.quick else (SITES, "large")
    found = {}
    for sites in counts:
        command = [sys.executable, __file__, "child", str(sites), size]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[sites] = json.loads(done.stdout)
    memory = [entry["bytes"] / MIB for entry in found.values()]
    ratio = max(memory) / max(min(memory), 1e-9)
    last = found[counts[-1]]["seconds"] / counts[-1]
    return [
        Row(
            f"coordinator's memory, mean of {', '.join(f'{n:,}' for n in counts)} sites of "
            f"{'21.3 M' if size == 'large' else 'ten'} values",
            f"{', '.join(f'{m:,.0f}' for m in memory)} MiB; {1000 * last:.3g} ms a site",
            ratio=f"highest / lowest {ratio:.2f}",
            target=f"flat (≤ {FLAT})",
            met=None if options.quick else ratio <= FLAT,
            note="One round through the round loop, checks of the uploads included. Memory beyond the initial model "
            "and the one upload that is in the air.",
        )
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(int(sys.argv[2]), sys.argv[3])
    else:
        run(rows, __doc__)
