"""Chula-WBC-8: single cells with the analyser's label and that of five experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from morphfed.core.errors import ConfigError, DataError
from morphfed.data.sources._rows import confidence, read_rows
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source

NAME = "Order.jpg"
COLUMNS = {"experts": "Summary by 5 experts", "machine": "Original name(label machine)"}


@SOURCES.register("chula")
class Chula(Source):
    """``000001.jpg`` and ``labels.csv``. The experts' label is taken unless the option says otherwise.

    Labels are kept as written, typos included (``Myeolblast``, ``Eosinophill``): the ontology's table of the same name
    knows them. No patient ids.
    """

    name = "chula"
    title = "Chula-WBC-8, labelled by five experts and by the analyser"
    layout = "it has a table with the columns 'Order.jpg' and 'Summary by 5 experts' and the pictures that it lists"
    options: ClassVar[Mapping[str, str]] = {"label": "experts (as it is) or machine: whose label is taken"}

    def detect(self, folder: Folder) -> float:
        """0.95 where at least half of the table's pictures are there."""
        table = _table(folder)
        if table is None:
            return 0.0
        there = {image.name for image in folder.images}
        rows = read_rows(table, (NAME,))
        return confidence(sum(_file(row) in there for _, row in rows), len(rows))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every row with a label, also for one whose picture is missing."""
        whose = options.get("label", "experts")
        if whose not in COLUMNS:
            raise ConfigError(f"chula: label = '{whose}' is neither experts nor machine.", fix="write one of them.")
        table = _table(folder)
        if table is None:
            raise DataError(f"{folder.path} has no table with a column '{NAME}'.", fix="put labels.csv there.")
        yield from (Skipped(other, "another table") for other in folder.tables if other != table)
        there, absent = {image.name: image for image in folder.images}, 0
        for _, row in read_rows(table, (NAME, COLUMNS[whose])):
            image = there.pop(_file(row), None)
            label = row[COLUMNS[whose]]
            absent += image is None
            if label:
                yield Record(image or table.parent / _file(row), label)
            else:
                yield Skipped(image or table.parent / _file(row), f"no label of the {whose}")
        yield from (Skipped(image, f"not listed in {table.name}") for image in there.values())
        if absent:
            yield Note(f"{table.name} lists {absent} pictures that are not there; their rows are kept")


def _table(folder: Folder) -> Path | None:
    wanted = {NAME, COLUMNS["experts"]}
    return next((t for t in folder.tables if wanted <= _header(t)), None)


def _header(table: Path) -> set[str]:
    with table.open(encoding="utf-8-sig", errors="replace") as file:
        return {cell.strip().strip('"').strip() for cell in file.readline().split(",")}


def _file(row: Mapping[str, str]) -> str:
    name = row[NAME]
    return name if Path(name).suffix else f"{name}.jpg"
