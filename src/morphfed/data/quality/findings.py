"""What a data check found, for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["error", "warning", "info"]
Status = Literal["ok", "warnings", "errors"]

EXAMPLES = 5
"""Examples a finding carries; ``count`` says how many there are."""

_ORDER = {"error": 0, "warning": 1, "info": 2}
_EXIT: dict[Status, int] = {"ok": 0, "warnings": 1, "errors": 3}


@dataclass(frozen=True)
class Finding:
    """One thing about the data that a person should know.

    Attributes:
        code: stable name, such as ``near-duplicate``.
        level: ``error`` makes a result wrong or impossible, ``warning`` may, ``info`` is good to know.
        site: the site concerned, or None when it lies between sites.
        count: how many images, pairs, labels or patients; the message says which.
        message: what was found.
        examples: at most :data:`EXAMPLES` paths or labels.
        fix: what to do next.
    """

    code: str
    level: Level
    site: str | None
    count: int
    message: str
    examples: list[str]
    fix: str


@dataclass(frozen=True)
class SiteColour:
    """Colour statistics of one site, all in 0–1.

    Attributes:
        n: readable images.
        mean: (3,) mean over all pixels, every image weighing the same.
        sd: (3,) standard deviation over all pixels.
        between: (3,) standard deviation of the images' means: how far the site is from one look.
        palette: (5, 3) mean colours of the five brightness fifths, dark to bright.
        images: (n, 3) every image's mean.
    """

    n: int
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    between: NDArray[np.float64]
    palette: NDArray[np.float64]
    images: NDArray[np.float64]


@dataclass(frozen=True)
class CheckReport:
    """Findings of one check, the worst first.

    Attributes:
        findings: sorted by level, then code, then site.
        images: images looked at, by site.
        colour: colour statistics by site; a site without a readable image is not in it.
    """

    findings: list[Finding]
    images: dict[str, int]
    colour: dict[str, SiteColour] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ordered = sorted(self.findings, key=lambda f: (_ORDER[f.level], f.code, f.site or ""))
        object.__setattr__(self, "findings", ordered)

    def count(self, level: Level) -> int:
        """Findings of one level."""
        return sum(finding.level == level for finding in self.findings)

    @property
    def status(self) -> Status:
        """``errors`` when there is one, else ``warnings`` when there is one, else ``ok``."""
        if self.count("error"):
            return "errors"
        return "warnings" if self.count("warning") else "ok"

    @property
    def exit_code(self) -> int:
        """0 for ok, 1 for warnings, 3 for errors (as any error of the data)."""
        return _EXIT[self.status]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``core.files.write_json``: ``status``, ``findings``, ``images``, ``colour``."""
        colour = {
            site: {
                "n": one.n,
                **{name: np.round(getattr(one, name), 4).tolist() for name in ("mean", "sd", "between", "palette")},
            }
            for site, one in self.colour.items()
        }
        return {
            "status": self.status,
            "findings": [asdict(finding) for finding in self.findings],
            "images": self.images,
            "colour": colour,
        }


def examples(values: Sequence[Any]) -> list[str]:
    """The first few of ``values`` as text."""
    return [str(value) for value in values[:EXAMPLES]]
