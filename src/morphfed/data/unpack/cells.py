"""Single cells on their way to files, and how a square is cut around a box."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.errors import DataError
from morphfed.core.files import storage_error, writing

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOTES = ".notes.txt"
"""Suffix of the file of remarks, after the table's stem."""

_MASKS = "masks"
COLUMNS = ("path", "label", "patient", "slide", "split", "um_per_px")


MARGIN = 0.1
"""Added on each side of a box, as a share of its longer side: a cell and a little of its surroundings."""


@dataclass(frozen=True)
class Options:
    """What users choose; a set takes what concerns it.

    Attributes:
        margin: around a box, as a share of its longer side, 0 … 1.
        all_slices: of a volume, also those in which nothing is marked.
    """

    margin: float = MARGIN
    all_slices: bool = False


@dataclass(frozen=True)
class Remark:
    """A sentence about the published files that whoever uses the pictures should know; kept beside the table."""

    text: str


@dataclass(frozen=True)
class Cell:
    """One cell, or one slice of a volume.

    Attributes:
        name: file name without suffix, unique below its label's folder.
        pixels: uint8 ``(H, W, 3)``, or grey ``(H, W)``.
        label: the source's own label.
        patient, slide, split, um_per_px: as in the manifest; empty or None where unknown.
        mask: uint8 ``(H, W)``, where the set has one.
    """

    name: str
    pixels: NDArray[np.uint8]
    label: str
    patient: str = ""
    slide: str = ""
    split: str = ""
    um_per_px: float | None = None
    mask: NDArray[np.uint8] | None = None


@dataclass
class Unpacked:
    """What was written and what was not.

    Attributes:
        table: the table beside the pictures.
        labels: label → pictures.
        skipped: reason → how many.
        remarks: sentences about the published files.
    """

    table: Path
    labels: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)


def write_cells(cells: Iterable[Cell | Remark | str], out: Path, kind: str) -> Unpacked:
    """Write PNG files into a folder a label, and ``out/KIND.csv`` last: without it the folder is not complete.

    Masks go into a folder ``masks`` and a column of that table; remarks into ``out/KIND.notes.txt``, a line each.

    Args:
        cells: cells, the reason why one became none, or a remark.
        out: folder; made if it does not exist.
        kind: name of the table and of the source that reads it.

    Raises:
        DataError: the table is there already, or nothing was found to write.
        StorageError: the folder cannot be written.
    """
    done = Unpacked(out / f"{kind}.csv")
    if done.table.exists():
        raise DataError(f"{done.table} exists already.", fix="name another folder, or delete this one first.")
    rows = []
    for cell in cells:
        if isinstance(cell, str):
            done.skipped[cell] += 1
            continue
        if isinstance(cell, Remark):
            done.remarks.append(cell.text)
            continue
        path = _write(cell.pixels, out, Path(_folder(cell.label)) / f"{cell.name}.png")
        mask = "" if cell.mask is None else _write(cell.mask, out, Path(_MASKS) / f"{cell.name}.png")
        scale = "" if cell.um_per_px is None else f"{cell.um_per_px:.6g}"
        rows.append((path, cell.label, cell.patient, cell.slide, cell.split, scale, mask))
        done.labels[cell.label] += 1
    if not rows:
        reasons = "; ".join(f"{n} × {reason}" for reason, n in done.skipped.items()) or "nothing is there"
        raise DataError(f"There is no cell to write into {out} ({reasons}).", fix="check the file or folder named.")
    if done.remarks:
        with writing(done.table.with_suffix(NOTES)) as temporary:
            temporary.write_text("".join(f"{text}\n" for text in done.remarks), encoding="utf-8")
    columns = (*COLUMNS, "mask") if any(row[-1] for row in rows) else COLUMNS
    with writing(done.table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *(row[: len(columns)] for row in rows)])
    return done


def _write(pixels: NDArray[np.uint8], out: Path, path: Path) -> str:
    """Write a PNG below ``out`` and return its path there."""
    from PIL import Image

    try:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(out / path, compress_level=1)  # three times as fast, a little larger
    except OSError as cause:
        raise storage_error(out / path, cause) from cause
    return path.as_posix()


def _folder(label: str) -> str:
    """A folder's name from a label, which comes from a foreign file and may be ``..`` or hold separators."""
    return re.sub(r"[^\w,-]+", " ", label).strip() or "unnamed"


def square(field: NDArray[np.uint8], box: tuple[float, float, float, float], margin: float) -> NDArray[np.uint8] | None:
    """The square around a box, moved inwards where it would leave the field; None for a box without area.

    Args:
        field: uint8 ``(H, W, 3)``.
        box: left, top, right, bottom in pixels; right and bottom exclusive.
        margin: added on each side, as a share of the box's longer side.

    Returns:
        Square of ``(1 + 2 margin) ×`` the longer side, at most the field's shorter side.
    """
    height, width = field.shape[:2]
    left, top, right, bottom = box
    if right <= left or bottom <= top or left >= width or top >= height or right <= 0 or bottom <= 0:
        return None
    side = min(max(1, round((1 + 2 * margin) * max(right - left, bottom - top))), height, width)
    x = min(max(0, round((left + right - side) / 2)), width - side)
    y = min(max(0, round((top + bottom - side) / 2)), height - side)
    return np.ascontiguousarray(field[y : y + side, x : x + side])
