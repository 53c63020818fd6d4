"""How long a round waits, and by which clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long a round waits.

    Attributes:
        deadline: seconds for a connected site.
        absent: seconds for a site that is not connected, once the others are enough for the quorum.
        poll: seconds between two looks at most; the first ones follow sooner.
        tell: seconds between two progress lines.
        again: seconds after which a site that is not ready is asked again.
    """

    deadline: float = 3600.0
    absent: float = 120.0
    poll: float = 1.0
    tell: float = 15.0
    again: float = 5.0


@dataclass(frozen=True)
class Clock:
    """Time, to be replaced in tests."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
