"""Progress as plain events, so that work in another process and a live display need not know each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """Something that a person waiting wants to know.

    Attributes:
        task: stable key of the bar it belongs to (for example ``"fedavg/seed-0"`` or ``"cache"``).
        done: units finished so far.
        total: units in all, or None while unknown.
        text: what is being done now ("round 3/10 · tecom").
        level: ``progress`` moves a bar; ``info`` and ``warning`` are lines that stay.
    """

    task: str
    done: float = 0.0
    total: float | None = None
    text: str = ""
    level: str = "progress"


Reporter = Callable[[Event], None]


def silent(event: Event) -> None:
    """A reporter that shows nothing."""


def tracked(items: Iterable[T], report: Reporter, task: str, text: str = "", total: int | None = None) -> Iterator[T]:
    """Yield ``items`` and report after each one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    report(Event(task, 0, total, text))
    for done, item in enumerate(items, start=1):
        yield item
        report(Event(task, done, total, text))
