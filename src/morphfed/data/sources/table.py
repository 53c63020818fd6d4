"""A CSV or TSV with a path and a label column."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from morphfed.core.errors import DataError, did_you_mean
from morphfed.data.sources._rows import decoded
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source, split_of
from morphfed.data.sources.folders import LABELS_OPTION

# Lower case, words joined by one underscore; earlier names win.
COLUMN_NAMES: Mapping[str, tuple[str, ...]] = {
    "path": (
        *("path", "file_path", "filepath", "image_path", "img_path", "file", "filename", "file_name"),
        *("image_name", "img_name", "image_file", "image", "img", "image_id", "order_jpg", "id"),
    ),
    "label": (
        *("label", "labels", "class_label", "class", "class_name", "cell_type", "celltype", "cell_class"),
        *("category", "summary_by_5_experts", "type", "diagnosis", "dx"),
    ),
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id", "case", "case_id"),
    "slide": ("slide", "slide_id", "film", "film_id", "smear", "smear_id"),
    "split": ("split", "set", "subset", "partition"),
    "mask": ("mask", "mask_path", "segmentation"),
    "um_per_px": ("um_per_px", "um_per_pixel", "mpp", "microns_per_pixel", "pixel_size_um"),
}
_COLUMN_OPTIONS = {f"{key}_column": f"column with the {key}" for key in COLUMN_NAMES}


@dataclass(frozen=True)
class _Table:
    """A table as text: column → one value a row, its columns' roles, and the images it can refer to."""

    path: Path
    numbers: list[int]  # of the rows, as a spreadsheet shows them
    columns: Mapping[str, list[str]]
    role: Mapping[str, str]
    folder: Folder

    def __len__(self) -> int:
        return len(self.numbers)

    def values(self, key: str) -> list[str]:
        return self.columns[self.role[key]] if key in self.role else [""] * len(self)

    @cached_property
    def files(self) -> list[Path]:
        """The file that each row names; one that does not exist where no image of the folder fits."""
        known = set(self.folder.images)
        by_name: dict[str, list[Path]] = defaultdict(list)
        for image in self.folder.images:
            by_name[image.name].append(image)
            by_name[image.stem].append(image)
        written = [Path(text.replace("\\", "/")) for text in self.values("path")]
        exact = [self._exact(path, known) for path in written]
        # A file that another row names by its path is not this row's, however alike the names are.
        taken = {file for file in exact if file is not None}
        return [file or self._by_name(path, by_name, taken) for file, path in zip(exact, written, strict=True)]

    def _exact(self, written: Path, known: set[Path]) -> Path | None:
        return next((b / written for b in (self.path.parent, self.folder.path) if b / written in known), None)

    def _by_name(self, written: Path, by_name: Mapping[str, list[Path]], taken: set[Path]) -> Path:
        alike = [file for file in by_name.get(written.name, []) if file not in taken]
        return alike[0] if len(alike) == 1 else self.path.parent / written


@SOURCES.register("table")
class Table(Source):
    """Columns are found by name or given as options; a row names its file by path, by name or by stem."""

    name = "table"
    title = "a CSV or TSV with a path and a label column"
    layout = "it has a table with a column of files that are there and a column of labels"
    options: ClassVar[Mapping[str, str]] = {
        "table": "the table's file, where there are several",
        **_COLUMN_OPTIONS,
        "labels": LABELS_OPTION,
    }

    def detect(self, folder: Folder) -> float:
        """0.85 × the share of the best table's rows whose file is there."""
        return max((0.85 * _found(table) for table in _usable(folder, {})), default=0.0)

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every labelled row, also for one whose file is missing."""
        table = _chosen(folder, options)
        roles = ", ".join(f"{key} from '{column}'" for key, column in table.role.items())
        yield Note(f"{table.path.name}: {roles}")
        yield from (Skipped(other, "another table") for other in folder.tables if other != table.path)
        yield from _rows(table)
        listed = {*table.files, *(mask for text in table.values("mask") if (mask := _mask(table, text)))}
        yield from (Skipped(i, f"not listed in {table.path.name}") for i in folder.images if i not in listed)


def _rows(table: _Table) -> Iterator[Record | Skipped | Note]:
    name, known = table.path.name, set(table.folder.images)
    said: dict[Path, set[str]] = defaultdict(set)
    for file, label in zip(table.files, table.values("label"), strict=True):
        if label.strip():
            said[file].add(label.strip())
    splits = {text: split_of(text) for cell in set(table.values("split")) if (text := cell.strip())}
    foreign = sorted(text for text, split in splits.items() if split is None)
    if foreign:
        yield Note(f"{name}: split not used, because {', '.join(map(repr, foreign[:5]))} is no split's name")
        splits = {}
    done: Counter[Path] = Counter()
    absent = nameless = 0
    columns = [table.values(key) for key in ("path", "label", "patient", "slide", "split", "um_per_px", "mask")]
    for row, file, *texts in zip(table.numbers, table.files, *columns, strict=True):
        written, label, patient, slide, split, scale, drawn = (text.strip() for text in texts)
        done[file] += bool(label)
        if not written:
            nameless += 1
        elif not label:
            yield Skipped(file, f"no label in {name}")
        elif len(said[file]) > 1:
            yield Skipped(file, f"different labels in {name}")
        elif done[file] > 1:
            yield Skipped(file, f"listed again in {name}")
        else:
            absent += file not in known
            um_per_px = _scale(scale, name, row)
            mask = _mask(table, drawn)
            yield Record(file, label, patient or None, slide or None, um_per_px, splits.get(split), mask)
    if nameless:
        yield Note(f"{name} has {nameless} rows that name no file; they are left out")
    if absent:
        yield Note(f"{name} lists {absent} files that are not there; their rows are kept, without size and hash")


def _mask(table: _Table, text: str) -> Path | None:
    """The mask that a row names, relative to the table or the folder; also one that is not there."""
    written = Path(text.strip().replace("\\", "/"))
    if not text.strip():
        return None
    places = (base / written for base in (table.path.parent, table.folder.path))
    return next((place for place in places if place.is_file()), table.path.parent / written)


def _scale(text: str, name: str, row: int) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError as cause:
        raise DataError(
            f"{name}, row {row}: '{text}' is not a number of µm per pixel.", fix="correct or empty the cell."
        ) from cause


def _found(table: _Table) -> float:
    known = set(table.folder.images)
    return sum(file in known for file in table.files) / max(1, len(table))


def _usable(folder: Folder, options: Mapping[str, str]) -> list[_Table]:
    read = [_read(path, folder, options) for path in folder.tables]
    return [table for table in read if {"path", "label"} <= set(table.role)]


def _chosen(folder: Folder, options: Mapping[str, str]) -> _Table:
    if "table" in options:
        path = folder.path / options["table"]
        if not path.is_file():
            there = [t.relative_to(folder.path).as_posix() for t in folder.tables]
            raise DataError(
                f"{path} does not exist.{did_you_mean(options['table'], there)}",
                fix=f"choose one of: {', '.join(there)}." if there else "check the path.",
            )
        table = _read(path, folder, options)
        for key in ("path", "label"):
            if key not in table.role:
                raise DataError(
                    f"{path} has no {key} column: it has {', '.join(map(repr, table.columns))}.",
                    fix=f"give the option {key}_column=NAME.",
                )
        return table
    # Of tables that find as many files, the one that says most about them (patient, split, …).
    ranked = sorted(_usable(folder, options), key=lambda t: (_found(t), len(t.role)), reverse=True)
    if not ranked:
        raise DataError(
            f"{folder.path} has no table with a path and a label column.",
            fix="give the options table=FILE, path_column=NAME and label_column=NAME.",
        )
    best = [t for t in ranked if (_found(t), len(t.role)) == (_found(ranked[0]), len(ranked[0].role))]
    if len(best) > 1:
        names = ", ".join(t.path.relative_to(folder.path).as_posix() for t in best)
        raise DataError(f"{folder.path} has several tables: {names}.", fix="choose with the option table=FILE.")
    return best[0]


def _read(path: Path, folder: Folder, options: Mapping[str, str]) -> _Table:
    text = decoded(path)
    header = text.partition("\n")[0]
    delimiter = max(",;\t|", key=header.count)  # of a draw the comma, also for a single column
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = [name.strip() for name in next(reader, [])]
    body = [(number, row) for number, row in enumerate(reader, start=2) if any(cell.strip() for cell in row)]
    for number, row in body:
        if len(row) > len(names):
            raise DataError(
                f"{path}, row {number}: {len(row)} cells, but the header has {len(names)}.",
                fix="put quotes around a cell that contains the separator.",
            )
    columns = {n: [row[i] if i < len(row) else "" for _, row in body] for i, n in enumerate(names)}
    roles = _roles(path, list(columns), options)
    return _Table(path, [number for number, _ in body], columns, roles, folder)


def _roles(path: Path, columns: list[str], options: Mapping[str, str]) -> dict[str, str]:
    folded = {re.sub(r"[\W_]+", "_", name.casefold()).strip("_"): name for name in columns}
    roles: dict[str, str] = {}
    for key, candidates in COLUMN_NAMES.items():
        asked = options.get(f"{key}_column")
        if asked is not None and asked not in columns:
            raise DataError(
                f"{path} has no column '{asked}'.{did_you_mean(asked, columns)}",
                fix=f"choose one of: {', '.join(map(repr, columns))}.",
            )
        found = asked or next((folded[name] for name in candidates if name in folded), None)
        if found is not None:
            roles[key] = found
    return roles
