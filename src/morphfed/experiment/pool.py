"""Units in processes of their own: as many at once as there are cores or GPUs, each with its own threads.

A process has one device for all its units, so that images stay there from one unit to the next; units go to whichever
process is free.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import Queue, SimpleQueue
from pathlib import Path
from typing import Any

from morphfed.core.errors import MorphfedError, StorageError
from morphfed.core.memory import keep_freed_memory
from morphfed.core.progress import Event, Reporter
from morphfed.experiment.devices import Place, deal, devices_of, sharing
from morphfed.experiment.resolve import Resolved
from morphfed.experiment.units import Unit


@dataclass(frozen=True)
class Job:
    """One unit and everything that a fresh process needs to train it."""

    unit: Unit
    resolved: Resolved
    run: Path
    cache: Path
    study_folder: Path
    fingerprint: str


def run_jobs(jobs: Sequence[Job], *, processes: int, threads: int, report: Reporter) -> dict[str, str]:
    """Train all units, on the study's devices in turn.

    Returns:
        Units that failed for a reason of their own (lost quorum, loss not finite) → why. The others go on.

    Raises:
        StorageError: the disk is full or read-only: nothing else could succeed either.
        MorphfedError: a worker process died.
    """
    if not jobs:
        return {}
    if processes <= 1:
        return _here(jobs, threads, report)
    return _pool(jobs, processes, threads, report)


def _here(jobs: Sequence[Job], threads: int, report: Reporter) -> dict[str, str]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    failed = {}
    try:
        for done, job in enumerate(jobs):
            report(Event("study", done, len(jobs), "units"))
            why = _attempt(job, _devices(jobs)[0], 1, report)
            if why is not None:
                failed[job.unit.key] = why
        report(Event("study", len(jobs), len(jobs), "units"))
    finally:
        torch.set_num_threads(before)
    return failed


def _devices(jobs: Sequence[Job]) -> tuple[str, ...]:
    return devices_of(jobs[0].resolved.study.compute.device)


def _attempt(job: Job, device: str, shared: int, report: Reporter) -> str | None:
    """Train one unit; return why it failed, or None."""
    import torch

    from morphfed.experiment.folds import hold_out, study_of
    from morphfed.experiment.train_unit import train_unit

    study = study_of(job.unit, job.resolved.study)
    try:
        train_unit(
            job.unit,
            study,
            job.resolved.arms[job.unit.arm],
            hold_out(_prepared(job.resolved, job.run, job.cache), study),
            run=job.run,
            study_folder=job.study_folder,
            fingerprint=job.fingerprint,
            place=Place(device, shared, job.unit.arm in job.resolved.compiled),
            report=report,
        )
    except StorageError:
        raise
    except MorphfedError as cause:
        return f"{cause.message} Fix: {cause.fix}"
    except torch.OutOfMemoryError:
        return (
            f"{device} has too little memory. Fix: lower train.batch_size or compute.jobs, and run the command again."
        )
    return None


_loaded: dict[tuple[Path, Path], Any] = {}


def _prepared(resolved: Resolved, run: Path, cache: Path) -> Any:
    from morphfed.experiment.prepare import load_prepared

    if (run, cache) not in _loaded:
        _loaded.clear()
        _loaded[run, cache] = load_prepared(resolved.study, run, cache, build=False)
    return _loaded[run, cache]


def _pool(jobs: Sequence[Job], processes: int, threads: int, report: Reporter) -> dict[str, str]:
    context = multiprocessing.get_context("spawn")
    events: Queue[Event | None] = context.Queue()
    listener = threading.Thread(target=_listen, args=(events, report), daemon=True)
    listener.start()
    failed: dict[str, str] = {}
    devices = _devices(jobs)
    dealt: SimpleQueue[str] = context.SimpleQueue()
    for device in deal(devices, processes):
        dealt.put(device)
    start = (events, dealt, sharing(devices, processes), threads, os.getpid())
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=start)
    try:
        futures = {executor.submit(_work, job): job for job in jobs}
        for done, future in enumerate(as_completed(futures), start=1):
            why = future.result()
            if why is not None:
                failed[futures[future].unit.key] = why
            report(Event("study", done, len(jobs), "units"))
    except BrokenProcessPool as cause:
        raise MorphfedError(
            "A training process ended without a word, most often because memory ran out.",
            fix="set compute.jobs = 1 and run the same command; finished rounds are kept.",
        ) from cause
    finally:
        # On Ctrl-C the workers got the signal too; what they had not committed is redone by the next call.
        executor.shutdown(wait=True, cancel_futures=True)
        events.put(None)
        listener.join(timeout=5)
    return failed


def _listen(events: Queue[Event | None], report: Reporter) -> None:
    while (event := events.get()) is not None:
        report(event)


_events: Queue[Event | None] | None = None
_place: tuple[str, int] = ("cpu", 1)


def _start_worker(events: Queue[Event | None], dealt: SimpleQueue[str], shared: int, threads: int, parent: int) -> None:
    global _events, _place
    _events, _place = events, (dealt.get(), shared)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    keep_freed_memory()
    import torch

    torch.set_num_threads(threads)
    if _place[0].startswith("cuda"):
        torch.cuda.set_device(_place[0])  # what is made without naming a device must not land on GPU 0


def _leave_with(parent: int) -> None:
    """End this process soon after its parent was killed, so that it cannot write beside a resumed run."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _work(job: Job) -> str | None:
    queue = _events
    assert queue is not None
    return _attempt(job, *_place, queue.put)
