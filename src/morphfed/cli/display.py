"""Progress on stderr: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from morphfed.core.progress import Event

PLAIN_EVERY = 10.0
"""Seconds between plain lines of one task."""

STUDY = "study"
"""The bar of the whole study; bars of units are named ``arm/model/seed-N`` and move it too."""


class Display:
    """A reporter to be used as a context manager; safe to call from several threads.

    Args:
        quiet: show warnings only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal and not quiet
        self._quiet = quiet
        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._units_done = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[text]}"),
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> Display:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        with self._lock:
            if event.level == "warning":
                self._console.print(f"warning: {event.text}", style="yellow", markup=False, soft_wrap=True)
            elif event.level == "info":
                if not self._quiet:
                    self._console.print(event.text, style="dim", markup=False, soft_wrap=True)
            elif self._live:
                self._move(event)
            elif not self._quiet:
                self._line(event)

    def _move(self, event: Event) -> None:
        finished = bool(event.total) and event.done >= (event.total or 0)
        if event.task == STUDY:
            self._units_done = event.done
        elif "/seed-" in event.task and event.total:
            # A running unit counts by its share, so the study's estimate moves between units too.
            self._running[event.task] = event.done / event.total
            if finished:
                self._running.pop(event.task)
        if event.task not in self._bars:
            self._bars[event.task] = self._progress.add_task(event.task, total=event.total, text=event.text)
        bar = self._bars[event.task]
        if event.total:
            self._progress.update(bar, total=event.total)
        if event.total or event.task == STUDY:
            self._progress.update(bar, completed=event.done)
        self._progress.update(bar, text=event.text)
        if STUDY in self._bars:
            self._progress.update(self._bars[STUDY], completed=self._units_done + sum(self._running.values()))
        if finished and event.task != STUDY:
            self._progress.remove_task(self._bars.pop(event.task))

    def _line(self, event: Event) -> None:
        now = time.monotonic()
        finished = event.total is not None and event.done >= event.total
        if not finished and now - self._said.get(event.task, -PLAIN_EVERY) < PLAIN_EVERY:
            return
        self._said[event.task] = now
        share = f" {100 * event.done / event.total:.0f}%" if event.total else ""
        sys.stderr.write(f"{event.task}{share} {event.text}\n")
        sys.stderr.flush()
