"""Peak memory of this process, and of a command with everything it starts. Linux only: elsewhere nothing is claimed."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from _table import NotMeasuredError

PROC = Path("/proc")
MARK = "MORPHFED_BENCHMARK"


def resident() -> int:
    """Resident bytes of this process now."""
    return _status("VmRSS")


def peak() -> int:
    """Highest resident bytes of this process since it began or since :func:`forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let :func:`peak` begin anew from what is resident now, after the allocator has given back what is free."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    try:
        (PROC / "self" / "clear_refs").write_text("5")
    except OSError as cause:
        raise NotMeasuredError("the kernel does not let a process reset its memory high-water mark") from cause


def _status(key: str) -> int:
    try:
        lines = (PROC / "self" / "status").read_text().splitlines()
    except OSError as cause:
        raise NotMeasuredError("memory is measured on Linux only") from cause
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


@dataclass(frozen=True)
class Watched:
    """A finished command.

    Attributes:
        seconds: wall time from its start to its end.
        peak: highest sum of the proportional set sizes (PSS) of all its processes, bytes.
        processes: most processes at a time.
        output: stdout and stderr.
    """

    seconds: float
    peak: int
    processes: int
    output: str


def watch(command: list[str], *, cwd: Path, variables: Mapping[str, str], timeout: float = 600.0) -> Watched:
    """Run a command and add up the memory of its processes, polled.

    Processes are known by a variable that they inherit, so daemons that leave the process tree count too, and what is
    still there at the end is stopped.

    Raises:
        NotMeasuredError: it fails or takes too long.
    """
    mark = f"{MARK}={uuid.uuid4().hex}"
    poll = _Poll(mark)
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**variables, MARK: mark.split("=")[1]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
        )
        seconds = time.perf_counter() - start
    except subprocess.TimeoutExpired as cause:
        raise NotMeasuredError(f"no end after {timeout:.0f} s") from cause
    finally:
        poll.stop()
        _end(mark)
    if done.returncode:
        raise NotMeasuredError(f"exit code {done.returncode}: {done.stdout.strip()[-200:]}")
    return Watched(seconds, poll.peak, poll.processes, done.stdout)


class _Poll(threading.Thread):
    """Adds up PSS. Reading it costs the kernel a walk over the pages, so it rests ten times as long as it reads."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.peak = self.processes = 0
        self._mark, self._halt = mark, threading.Event()
        self.start()

    def run(self) -> None:
        pause = 0.1
        while not self._halt.wait(pause):
            start = time.perf_counter()
            pids = _marked(self._mark)
            self.peak = max(self.peak, sum(_pss(pid) for pid in pids))
            self.processes = max(self.processes, len(pids))
            pause = max(0.1, 10 * (time.perf_counter() - start))

    def stop(self) -> None:
        self._halt.set()
        self.join()


def _marked(mark: str) -> list[int]:
    """Processes that inherited the mark."""
    found = []
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            try:
                if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue  # ended meanwhile, or another user's
    return found


def _pss(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # ended meanwhile
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _end(mark: str) -> None:
    """Stop what the command left behind: first asked, then killed."""
    for sign, pause in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 0.5)):
        left = _marked(mark)
        for pid in left:
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                continue
        limit = time.monotonic() + pause
        while left and time.monotonic() < limit and _marked(mark):
            time.sleep(0.1)
