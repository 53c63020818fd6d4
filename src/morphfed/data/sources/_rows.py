"""The tables that published sets bring, as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from morphfed.core.errors import DataError, did_you_mean


def read_rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a table with the number that a spreadsheet shows; cells and headers are stripped.

    Cells are separated by commas, or by tabs where the header has one.

    Raises:
        DataError: a needed column is missing; names it and those that are there.
    """
    text = decoded(path)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=delimiter)
    columns = [name.strip() for name in reader.fieldnames or ()]
    for name in needed:
        if name not in columns:
            raise DataError(
                f"{path} has no column '{name}': it has {', '.join(map(repr, columns))}.{did_you_mean(name, columns)}",
                fix="restore the published table.",
            )
    reader.fieldnames = columns
    return [
        (number, {name: text.strip() for name, text in row.items() if isinstance(name, str)})
        for number, row in enumerate(reader, start=2)
    ]


def confidence(there: int, listed: int) -> float:
    """How sure a source is of a set with published tables: 0.95 from half of the listed pictures on.

    Names of tables and columns tell the set; an incomplete copy of it is still that set.
    """
    return 0.95 * min(1.0, 2 * there / max(1, listed))


def decoded(path: Path) -> str:
    """A table's text: UTF-8 with or without its mark, else what spreadsheets write on Windows."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")
