"""The manifest: one row an image, the only description of a site's data that the rest of morphfed reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphfed.core.errors import DataError, did_you_mean
from morphfed.core.files import writing

if TYPE_CHECKING:
    import pandas as pd

TEXT = ("path", "site", "patient", "slide", "source_label", "label", "split", "sha256", "source")
INTEGERS = ("width", "height")
MASK = "mask"
"""Column of the files that say which structure each pixel shows; only in manifests of segmentation."""
COLUMNS = (
    "path",
    "site",
    "patient",
    "slide",
    "source_label",
    "label",
    "split",
    "um_per_px",
    "width",
    "height",
    "sha256",
    "source",
)
SPLITS = ("train", "validation", "test")
SITE_NAME = r"[a-z0-9_-]+"

_SHOWN = 40  # bad values listed in one error; the rest are counted
_FIX = "correct the rows named above, or draft the manifest again with: morphfed data init"


@dataclass(frozen=True)
class Manifest:
    """Rows of images and the folder that their paths are relative to.

    The columns, in this order, are those of ``COLUMNS`` (docs/explanation/architecture.md); others that a user
    added are kept behind them; one of these has a meaning, ``mask``, a path as ``path`` is. Text columns hold
    ``str`` or ``None``, ``um_per_px`` float64 with NaN, ``width`` and ``height`` nullable ``Int64``: the same
    under pandas 2 and 3. The index is 0 … n-1.

    Args:
        frame: the rows; columns are put in order and cast to the types above.
        root: folder against which a relative ``path`` is resolved.

    Raises:
        DataError: a column is missing.
    """

    frame: pd.DataFrame
    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "frame", _typed(self.frame, where="manifest"))

    def __len__(self) -> int:
        return len(self.frame)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read and validate a ``.parquet`` or ``.csv`` manifest.

        In a CSV an empty cell is null and nothing else is: a patient called ``NA`` or ``007`` stays that.

        Raises:
            DataError: the file is missing, is neither format, lacks a column, or has bad values; every bad
                value is named with its row, column and what was expected.
        """
        path = Path(path)
        frame = _typed(_read_frame(path), where=str(path))
        # A spreadsheet calls the header row 1; Parquet has no header, so its rows count from 0.
        _check(frame, where=str(path), first_row=2 if path.suffix.lower() == ".csv" else 0)
        return cls(frame, path.parent)

    def write(self, path: Path) -> Manifest:
        """Write a valid manifest atomically and return it as it will be read back.

        ``path`` values become relative to the new file's folder where they lie inside it, else absolute.

        Raises:
            DataError: a row is not valid, or the suffix is neither ``.parquet`` nor ``.csv``.
            StorageError: the folder cannot be written.
        """
        path = Path(path)
        suffix = _suffix(path)
        moved = self.rerooted(path.parent)
        _check(moved.frame, where=str(path), first_row=2 if suffix == ".csv" else 0)
        with writing(path) as temporary:
            if suffix == ".csv":
                moved.frame.to_csv(temporary, index=False, lineterminator="\n")
            else:
                moved.frame.to_parquet(temporary, index=False)
        return moved

    def rerooted(self, root: Path) -> Manifest:
        """The same files, with paths relative to ``root`` where they lie inside it, else absolute."""
        old, new = _absolute(self.root), _absolute(root)
        frame = self.frame.copy()
        frame["path"] = _text([_relative(old / row_path, new) for row_path in frame["path"]])
        if MASK in frame:
            frame[MASK] = _text([None if path is None else _relative(old / path, new) for path in frame[MASK]])
        return Manifest(frame, Path(root))

    def file(self, row_path: str) -> Path:
        """The file that a row's ``path`` names."""
        return self.root / row_path

    def files(self) -> list[Path]:
        """Every row's file, in row order."""
        return [self.file(row_path) for row_path in self.frame["path"]]

    @property
    def sites(self) -> list[str]:
        """Names of the sites, sorted."""
        return sorted(set(self.frame["site"]))

    def for_site(self, name: str) -> Manifest:
        """The rows of one site.

        Raises:
            DataError: no row is of that site.
        """
        rows = self.frame[self.frame["site"] == name]
        if rows.empty:
            raise DataError(
                f"The manifest has no site '{name}'.{did_you_mean(name, self.sites)}",
                fix=f"choose one of: {', '.join(self.sites)}." if self.sites else "add images first.",
            )
        return Manifest(rows, self.root)

    def where(self, rows: Any) -> Manifest:
        """The rows for which a boolean mask of length n holds."""
        return Manifest(self.frame[rows], self.root)

    @staticmethod
    def concat(manifests: Sequence[Manifest]) -> Manifest:
        """All rows under one root: the shared one, else the deepest folder that holds every root.

        Raises:
            DataError: nothing to join.
        """
        import pandas as pd

        if not manifests:
            raise DataError("There is no manifest to join.", fix="name at least one site.")
        root = _common([m.root for m in manifests])
        frames = [m.rerooted(root).frame for m in manifests]
        # Joining an empty frame would let pandas guess the types of its columns.
        filled = [f for f in frames if len(f)] or frames[:1]
        return Manifest(pd.concat(filled, ignore_index=True), root)


def empty_manifest(root: Path) -> Manifest:
    """A manifest without rows."""
    import pandas as pd

    return Manifest(pd.DataFrame({name: [] for name in COLUMNS}), root)


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in {".csv", ".parquet"}:
        raise DataError(f"{path}: a manifest is a .parquet or .csv file, not '{suffix}'.", fix="rename or convert it.")
    return suffix


def _read_frame(path: Path) -> pd.DataFrame:
    import pandas as pd
    from pandas.errors import EmptyDataError, ParserError

    suffix = _suffix(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"{path} does not exist.{did_you_mean(path.name, siblings)}",
            fix="check the path, or draft a manifest with: morphfed data init",
        )
    try:
        if suffix == ".csv":
            # utf-8-sig: spreadsheets write a byte-order mark, which would join the first column's name.
            return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
        return pd.read_parquet(path)
    except (OSError, UnicodeDecodeError, EmptyDataError, ParserError, ValueError) as cause:
        # pyarrow's errors for a damaged Parquet file are ValueErrors or OSErrors.
        raise DataError(
            f"{path} cannot be read as a manifest: {cause}.", fix="restore it or draft it again."
        ) from cause


def _typed(frame: pd.DataFrame, *, where: str) -> pd.DataFrame:
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        spare = [str(c) for c in frame.columns if c not in COLUMNS]
        named = " ".join(f"Column '{name}' is missing.{did_you_mean(name, spare)}" for name in missing)
        raise DataError(f"{where}: {named}", fix=f"a manifest has the columns {', '.join(COLUMNS)}.")
    extra = [c for c in frame.columns if c not in COLUMNS]
    result = frame[[*COLUMNS, *extra]].reset_index(drop=True)
    for name in (*TEXT, *(c for c in extra if c == MASK)):
        result[name] = _text(result[name])
    result["um_per_px"] = _numbers(result["um_per_px"], "float64")
    for name in INTEGERS:
        result[name] = _numbers(result[name], "Int64")
    return result


def _text(values: Any) -> pd.Series[Any]:
    """``str`` or ``None`` in an object column; anything else is left for the schema to report."""
    import pandas as pd

    return pd.Series([None if pd.api.types.is_scalar(v) and pd.isna(v) else v for v in values], dtype=object)


def _numbers(values: Any, dtype: Any) -> Any:
    """Cast to ``dtype``; a column with something else in it keeps that, for the schema to report."""
    import pandas as pd

    try:
        return pd.to_numeric(values).astype(dtype)
    except (ValueError, TypeError):
        numbers = pd.to_numeric(values, errors="coerce")
        return numbers.astype(object).where(numbers.notna(), values)


def _check(frame: pd.DataFrame, *, where: str, first_row: int) -> None:
    import pandera.pandas as pa

    try:
        _schema().validate(frame, lazy=True)
    except pa.errors.SchemaErrors as cause:
        cases = cause.failure_cases
        lines = [
            f"row {int(case.index) + first_row}, {case.column}: {_shown(case.failure_case)}, "
            f"expected {_expected(case.check)}"
            for case in cases.sort_values(["index", "column"]).itertuples(index=False)
        ]
        more = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        listed = "\n  ".join(lines[:_SHOWN] + more)
        raise DataError(f"{where} has {len(lines)} bad values:\n  {listed}\n", fix=_FIX) from cause


def _expected(check: str) -> str:
    return {"not_nullable": "a value", "field_uniqueness": "each path once"}.get(check, check)


def _shown(value: object) -> str:
    text = repr(value)
    if value is None or text in {"nan", "<NA>"}:
        return "nothing"
    return text if len(text) <= 80 else text[:79] + "…"


def _schema() -> Any:
    import pandera.pandas as pa

    def each(test: Any, expected: str) -> Any:
        return pa.Check(test, element_wise=True, error=expected)

    filled = each(lambda v: isinstance(v, str) and bool(v.strip()), "a text that is not empty")
    size = each(lambda v: _is_number(v) and v >= 1 and float(v).is_integer(), "a whole number of pixels, at least 1")
    columns = {name: pa.Column(None, [filled], nullable=True) for name in TEXT}
    columns["path"] = pa.Column(None, [filled], unique=True)
    columns["site"] = pa.Column(None, [_matches(SITE_NAME, f"a lower-case name of the form {SITE_NAME}")])
    columns["source_label"] = pa.Column(None, [filled])
    columns["source"] = pa.Column(None, [filled])
    columns["split"] = pa.Column(None, [each(SPLITS.__contains__, f"{', '.join(SPLITS)} or nothing")], nullable=True)
    columns["sha256"] = pa.Column(None, [_matches("[0-9a-f]{64}", "64 hexadecimal digits or nothing")], nullable=True)
    scale = each(lambda v: _is_number(v) and 0 < v < float("inf"), "a positive number (µm per pixel) or nothing")
    columns["um_per_px"] = pa.Column(None, [scale], nullable=True)
    for name in INTEGERS:
        columns[name] = pa.Column(None, [size], nullable=True)
    return pa.DataFrameSchema(columns, strict=False)


def _matches(pattern: str, expected: str) -> Any:
    import re

    import pandera.pandas as pa

    whole = re.compile(pattern)
    return pa.Check(lambda v: isinstance(v, str) and whole.fullmatch(v) is not None, element_wise=True, error=expected)


def _is_number(value: object) -> bool:
    from numbers import Real

    return isinstance(value, Real) and not isinstance(value, bool)


def _absolute(path: Path) -> Path:
    """Absolute without ``..``; links are kept, because a site's folder is often a link to a mount."""
    return Path(os.path.normpath(path.absolute()))


def _relative(file: Path, root: Path) -> str:
    file = Path(os.path.normpath(file))
    return (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()


def _common(roots: Sequence[Path]) -> Path:
    if len(set(roots)) == 1:
        return roots[0]
    absolute = [_absolute(root) for root in roots]
    try:
        return Path(os.path.commonpath(absolute))
    except ValueError:  # two Windows drives
        return absolute[0]
