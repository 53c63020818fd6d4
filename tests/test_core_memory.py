"""Memory that a process keeps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from morphfed.core import memory

FAULTS = """
import resource, sys
from morphfed.core.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import numpy as np
def step():  # the blocks of a training step, freed together at its end
    for block in [np.ones(size << 17) for size in (20, 12, 9, 17)]:
        pass
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    # NumPy asks for large pages, of which there are more or fewer as the machine's memory is in pieces.
    small = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", "GLIBC_TUNABLES": ""}
    command = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=small).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of the GNU C library")
def test_freed_blocks_are_used_again_without_new_pages() -> None:
    kept, default = _faults("keep"), _faults("default")
    assert kept < 200 < 2000 < default


def test_elsewhere_it_says_that_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
