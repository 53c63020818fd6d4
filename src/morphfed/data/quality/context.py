"""What every check looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from morphfed.data.ontology import Ontology
from morphfed.data.quality.measure import Measured

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Context:
    """The manifest's rows with what was measured of their files.

    Attributes:
        frame: the manifest's frame plus ``class`` (the study's class, else the label; None where
            there is none), ``readable`` and ``digest`` (SHA-256 as measured now); index 0 … n-1.
        measured: one entry a row.
        classes: the study's classes, or None.
        sites: the sites expected, sorted.
        min_per_class: images of a class that a site should have.
        ontology: cell types and the sources' names for them.
    """

    frame: pd.DataFrame
    measured: list[Measured]
    classes: tuple[str, ...] | None
    sites: Sequence[str]
    min_per_class: int
    ontology: Ontology

    def by_site(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Every expected site with its rows, which may be none."""
        for site in self.sites:
            yield site, self.frame[self.frame["site"] == site]

    def readable(self) -> Iterator[tuple[str, pd.DataFrame, list[Measured]]]:
        """Every site that has readable images, with those rows and their measures."""
        for site, rows in self.by_site():
            rows = rows[rows["readable"]]
            if len(rows):
                yield site, rows, [self.measured[i] for i in rows.index]


def robust_z(values: NDArray[np.float64], *, floor: float) -> NDArray[np.float64]:
    """Distance from the median in units of 1.4826 × the median absolute deviation, or of ``floor``."""
    centre = np.median(values, axis=0)
    spread = 1.4826 * np.median(np.abs(values - centre), axis=0)
    return np.asarray((values - centre) / np.maximum(spread, floor), np.float64)


def tally(values: Any, *, limit: int = 6) -> str:
    """Counts as text, the most frequent first: ``"360×363: 2712, 366×369: 80"``."""
    counts = values.value_counts()
    listed = ", ".join(f"{value}: {count}" for value, count in counts.head(limit).items())
    return listed + (f", and {len(counts) - limit} more" if len(counts) > limit else "")


def plural(count: int, one: str, many: str | None = None) -> str:
    """``"1 image"``, ``"1,200 images"``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
