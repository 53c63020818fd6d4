"""Slide tables of CLAM and HistoFL (``case_id, slide_id, label``), and their ``splits_<i>.csv``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from morphfed.core.errors import DataError, did_you_mean
from morphfed.data.sources._rows import read_rows

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "slide": ("slide_id", "slide", "bag", "bag_id", "file", "filename", "image"),
    "label": ("label", "diagnosis_label", "bag_label", "class", "diagnosis"),
    "patient": ("case_id", "patient", "patient_id", "case", "subject", "subject_id"),
    "institute": ("institute", "site", "centre", "center", "hospital"),
    "survival_months": ("survival_months",),
    "censorship": ("censorship",),
    "split": ("split", "set", "subset", "partition"),
}
"""What a slide table may have, and the columns that it is looked for in; the first that is there counts."""

SLIDE_SUFFIXES = (".svs", ".ndpi", ".tif", ".tiff", ".mrxs", ".scn", ".bif", ".vms", ".czi", ".h5", ".pt", ".npy")
"""What tables write behind a slide's name."""

_FIX = "a slide table has the columns slide_id and label (CLAM) or diagnosis_label (HistoFL), and case_id for patients."


@dataclass(frozen=True)
class SlideRow:
    """A line of a slide table; empty texts are None.

    Attributes:
        line: as a spreadsheet shows it.
        slide: the slide's id, without a slide file's suffix.
        label: as written.
        patient: ``case_id``.
        institute: the centre.
        survival_months: time to death or to the end of observation.
        censorship: 1 where the patient was alive then (CLAM, HistoFL).
        split: as the table writes it.
    """

    line: int
    slide: str
    label: str | None
    patient: str | None = None
    institute: str | None = None
    survival_months: float | None = None
    censorship: int | None = None
    split: str | None = None


def has_slides(path: Path) -> bool:
    """Whether a table has a column of slides and one of labels or survival."""
    rows = read_rows(path, ())
    roles = _roles({name: name for name in rows[0][1]} if rows else {}, {})
    return "slide" in roles and ("label" in roles or "survival_months" in roles)


def read_slides(path: Path, options: Mapping[str, str]) -> list[SlideRow]:
    """Read a slide table.

    Args:
        path: CSV or TSV.
        options: ``label_column`` and the like, where the names are others.

    Raises:
        DataError: the table is missing, lacks a column, or has a line without a slide or with a number that is none.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist.", fix="correct the option table, or the site's path.")
    rows = read_rows(path, ())
    columns = list(rows[0][1]) if rows else []
    roles = _roles({name: name for name in columns}, {k: v for k, v in options.items() if k.endswith("_column")})
    for role, column in roles.items():
        if column not in columns:
            raise DataError(
                f"{path} has no column '{column}' ({role}).{did_you_mean(column, columns)}",
                fix=f"its columns are {', '.join(columns)}.",
            )
    if "slide" not in roles or not ("label" in roles or "survival_months" in roles):
        lacks = "slide_id" if "slide" not in roles else "label"
        raise DataError(
            f"{path} has no column '{lacks}': it has {', '.join(map(repr, columns)) or 'no rows'}.", fix=_FIX
        )
    return [_row(line, {role: row[column] for role, column in roles.items()}, path) for line, row in rows]


def _roles(columns: Mapping[str, str], options: Mapping[str, str]) -> dict[str, str]:
    folded = {name.casefold(): name for name in columns}
    found = {
        role: next(folded[name] for name in names if name in folded)
        for role, names in COLUMNS.items()
        if any(name in folded for name in names)
    }
    return {**found, **{option.removesuffix("_column"): column for option, column in options.items()}}


def _row(line: int, cells: Mapping[str, str], path: Path) -> SlideRow:
    def number(role: str) -> float | None:
        text = cells.get(role, "")
        try:
            return float(text) if text else None
        except ValueError as cause:
            raise DataError(f"{path}, row {line}: {role} is '{text}', a number was expected.", fix=_FIX) from cause

    if not cells["slide"]:
        raise DataError(f"{path}, row {line}: it names no slide.", fix="fill or remove the row.")
    censorship = number("censorship")
    if censorship not in (None, 0, 1):
        raise DataError(
            f"{path}, row {line}: censorship is {censorship:g}; 1 (alive when last seen) or 0 was expected.", fix=_FIX
        )
    return SlideRow(
        line,
        without_suffix(cells["slide"]),
        cells.get("label") or None,
        cells.get("patient") or None,
        cells.get("institute") or None,
        number("survival_months"),
        None if censorship is None else int(censorship),
        cells.get("split") or None,
    )


def without_suffix(slide: str) -> str:
    """A slide's id without a file's suffix; other dots are part of it."""
    return next((slide[: -len(s)] for s in SLIDE_SUFFIXES if slide.casefold().endswith(s)), slide)


def read_splits(path: Path) -> dict[str, str]:
    """CLAM's ``splits_<i>.csv``: slide → train, validation or test; columns of ids, filled up with blanks.

    Raises:
        DataError: the file is missing, lacks a column, or names a slide in two parts.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist.", fix="correct the option splits.")
    parts: dict[str, str] = {}
    said: dict[str, list[str]] = defaultdict(list)
    for _, row in read_rows(path, ("train", "val", "test")):
        for column, part in (("train", "train"), ("val", "validation"), ("test", "test")):
            if slide := without_suffix(row[column]):
                parts[slide] = part
                said[slide].append(part)
    twice = {slide: where for slide, where in said.items() if len(set(where)) > 1}
    if twice:
        slide, where = next(iter(twice.items()))
        raise DataError(
            f"{path} names {len(twice)} slides in two parts, such as {slide} in {' and '.join(where)}.",
            fix="keep each slide in one part.",
        )
    return parts
