"""Where training asks for bags: by number, read from disk each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.errors import DataError
from morphfed.data.bags import files, sets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Standard:
    """What a site's features are brought to: mean 0 and spread 1.

    Attributes:
        mean, spread: float32 ``(D,)``; a feature that never varies has spread 1.
    """

    mean: Floats
    spread: Floats

    def of(self, bag: Floats) -> Floats:
        """The standardised bag: in place where the array is nobody else's, so that a long bag is not there twice."""
        found = bag if bag.flags.writeable and bag.flags.owndata else bag.copy()
        found -= self.mean
        found /= self.spread
        return found


def facts_at(place: Path) -> files.BagFacts:
    """What is known of the bag at a place: a file, or ``SET.csv::BAG``."""
    found = _in_set(place)
    if found is None:
        return files.facts_of(place)
    return files.BagFacts(len(found), found.shape[1], "float32")


def read_at(place: Path, rows: NDArray[np.int64] | None = None) -> Floats:
    """The bag at a place, float32 ``(N, D)``, or only its instances ``rows``; not to be written to."""
    found = _in_set(place)
    if found is None:
        return files.read(place, rows)
    return found if rows is None else found[rows]


def coords_at(place: Path) -> NDArray[np.int64] | None:
    """Positions of the instances of the bag at a place, ``(N, 2)``; None where they are not known."""
    return None if sets.BETWEEN in place.name else files.read_coords(place)


def geometry_at(place: Path) -> Mapping[str, Any]:
    """Attributes of the coordinates of the bag at a place, such as ``patch_size_level0``; {} where there are none."""
    return {} if sets.BETWEEN in place.name else files.facts_of(place).geometry


def names_at(place: Path) -> list[str] | None:
    """What the instances of the bag at a place are called; None where it is not known."""
    return None if sets.BETWEEN in place.name else files.read_names(place)


def odd_at(place: Path) -> int:
    """Instances of the bag at a place with a number that is not finite."""
    found = _in_set(place)
    return files.odd_instances(place) if found is None else int((~np.isfinite(found)).any(axis=1).sum())


def fingerprint_at(place: Path) -> str:
    """See :func:`files.fingerprint`."""
    file, between, bag = place.name.rpartition(sets.BETWEEN)
    return sets.read_set(place.with_name(file)).fingerprint(bag) if between else files.fingerprint(place)


def file_at(place: Path) -> Path:
    """The file in which the bag at a place lies."""
    file, between, _ = place.name.rpartition(sets.BETWEEN)
    return place.with_name(file) if between else place


def _in_set(place: Path) -> Floats | None:
    file, between, bag = place.name.rpartition(sets.BETWEEN)
    if not between:
        return None
    found = sets.read_set(place.with_name(file))
    if bag not in found.places:
        raise DataError(f"{place.with_name(file)} has no bag {bag}.", fix="draft the data again; the file has changed.")
    return found.bag(bag)


@dataclass(frozen=True)
class BagStore:
    """Bags by number.

    Attributes:
        places: of each bag.
        sizes: int64 ``(B,)``, instances of each.
        dim: D.
        standards: by bag what it is standardised with, None: left as it is.
    """

    places: Sequence[Path]
    sizes: NDArray[np.int64]
    dim: int
    standards: Sequence[Standard | None]

    def read(self, bag: int, rows: NDArray[np.int64] | None = None) -> Floats:
        """One bag, float32 ``(N, D)``, or only its instances ``rows`` (ascending); not to be written to.

        Raises:
            DataError: the file has changed since it was looked at.
        """
        found = read_at(self.places[bag], rows)
        expected = (int(self.sizes[bag]) if rows is None else len(rows), self.dim)
        if found.shape != expected:
            raise DataError(
                f"{self.places[bag]}: the bag is {found.shape}, it was {expected} when the data were prepared.",
                fix="restore the file, or name another run folder with --run.",
            )
        standard = self.standards[bag]
        return found if standard is None else standard.of(found)


def standard_of(places: Sequence[Path]) -> Standard:
    """Mean and standard deviation over all instances of some bags; each instance counts alike.

    Bag by bag after Chan, Golub, LeVeque 1979: nothing but one block of instances is in memory.
    """
    count, mean, squares = 0, np.zeros(0), np.zeros(0)
    for place in places:
        found = _in_set(place)
        for part in files.blocks(place) if found is None else [found]:
            if not len(part):
                continue
            values = part.astype(np.float64)
            n, m = len(values), values.mean(axis=0)
            s = ((values - m) ** 2).sum(axis=0)
            if count == 0:
                count, mean, squares = n, m, s
                continue
            delta = m - mean
            mean = mean + delta * (n / (count + n))
            squares = squares + s + delta**2 * (count * n / (count + n))
            count += n
    spread = np.sqrt(squares / max(1, count))
    spread[spread < 1e-6 * np.maximum(1.0, np.abs(mean))] = 1.0  # a feature that is the same everywhere
    return Standard(mean.astype(np.float32), spread.astype(np.float32))
