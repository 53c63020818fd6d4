"""One line of `morphfed doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True)
class Check:
    """What was looked at and found.

    Attributes:
        name: what was looked at.
        status: FAIL is what a study cannot run with; WARN what makes it slower or may stop it later.
        found: what was seen.
        fix: what to do, a command where one exists; empty for PASS.
    """

    name: str
    status: Verdict
    found: str
    fix: str = ""
