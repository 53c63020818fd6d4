"""The small sets of the MIL literature (Musk, Elephant, Corel): one CSV without a header, a line an instance.

A line is the bag's label, the bag's number, and the instance's features. A bag is named ``FILE.csv::NUMBER``.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BETWEEN = "::"
"""Between a set's file and a bag's number."""

_FIX = "a set has no header; a line is LABEL,BAG,FEATURE,FEATURE,…"


@dataclass(frozen=True)
class BagSetFile:
    """A set, whole: such files have a few MB.

    Attributes:
        labels: bag → label as written.
        features: float32 ``(M, D)``, instances of one bag side by side.
        places: bag → rows of ``features``.
    """

    labels: dict[str, str]
    features: NDArray[np.float32]
    places: dict[str, slice]

    def bag(self, name: str) -> NDArray[np.float32]:
        """Instances of a bag, ``(N, D)``."""
        return self.features[self.places[name]]

    def fingerprint(self, name: str) -> str:
        """64 hexadecimal digits of the bag's features."""
        return hashlib.sha256(self.bag(name).tobytes()).hexdigest()


def looks_like_a_set(path: Path) -> bool:
    """Whether the first line of a CSV holds three numbers or more and nothing else."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return len(first) >= 3 and all(_is_number(cell) for cell in first)


def read_set(path: Path) -> BagSetFile:
    """Read a set; the second time the same unchanged file costs nothing.

    Raises:
        DataError: the file is missing, a cell is no number, a line has another length, or a bag has two labels; names
            the line.
    """
    try:
        about = path.stat()
    except OSError as cause:
        raise DataError(f"{path} does not exist.", fix="correct the path.") from cause
    return _read(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=8)
def _read(path: Path, changed: int, size: int) -> BagSetFile:
    labels: dict[str, str] = {}
    rows: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    width = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(csv.reader(file), start=1):
            if not line:
                continue
            width = width or len(line)
            if len(line) != width or width < 3:
                raise DataError(f"{path}, line {number}: {len(line)} cells; the lines before have {width}.", fix=_FIX)
            label, bag = line[0].strip(), line[1].strip()
            if labels.setdefault(bag, label) != label:
                raise DataError(
                    f"{path}, line {number}: bag {bag} has the label {label}, before it had {labels[bag]}.", fix=_FIX
                )
            rows[bag].append(_numbers(line[2:], path, number))
    if not rows:
        raise DataError(f"{path} is empty.", fix=_FIX)
    places: dict[str, slice] = {}
    start = 0
    for bag, instances in rows.items():
        places[bag] = slice(start, start + len(instances))
        start += len(instances)
    return BagSetFile(labels, np.stack([one for instances in rows.values() for one in instances]), places)


def _numbers(cells: list[str], path: Path, number: int) -> NDArray[np.float32]:
    try:
        return np.array(cells, dtype=np.float64).astype(np.float32)
    except ValueError:
        odd = next(cell for cell in cells if not _is_number(cell))
        raise DataError(f"{path}, line {number}: '{odd}' is no number.", fix=_FIX) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
