"""What a section is made of: sections are built in Python, the template knows only these kinds of block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from morphfed.reporting.results import Results
from morphfed.reporting.svg import Look, looks, swatch


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
        text: what it says.
        sub: a second, quieter line (an interval).
        best: clearly the best of its column.
        words: text rather than a number: set to the left.
        strong: a row's or column's name in bold.
        span: columns it covers.
        href: where its text leads, relative to the page.
    """

    text: str
    sub: str = ""
    best: bool = False
    words: bool = False
    strong: bool = False
    span: int = 1
    href: str = ""


@dataclass
class Table:
    """A numbered table; the first cell of every row is its header.

    Attributes:
        key: part of its id.
        caption: one or two sentences.
        head: column headers.
        rows: body.
        note: smaller text below.
        groups: optional row above ``head``.
        label: ``Table 3``, given when the page is put together.
    """

    kind: ClassVar[str] = "table"
    key: str
    caption: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    groups: Sequence[Cell] = ()
    label: str = ""


@dataclass
class Figure:
    """A numbered figure of one or more SVG panels.

    Attributes:
        key: part of its id.
        caption: what is shown, and how to read it.
        panels: SVG elements.
        legend: swatch and name.
        wide: panels keep their width and scroll on a narrow screen.
        small: three panels fit side by side on paper.
        label: ``Figure 3``, given when the page is put together.
    """

    kind: ClassVar[str] = "figure"
    key: str
    caption: str
    panels: Sequence[str]
    legend: Sequence[tuple[str, str]] = ()
    wide: bool = False
    small: bool = False
    label: str = ""


@dataclass
class Text:
    """A paragraph; ``quiet`` is smaller and grey."""

    kind: ClassVar[str] = "text"
    text: str
    quiet: bool = False
    lead: str = ""


@dataclass
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]


@dataclass
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, str]]


@dataclass
class Code:
    """Text to copy."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Picture:
    """A cell image.

    Attributes:
        source: ``data:image/…;base64,…``; empty where there is none.
        alt: for a reader who cannot see it.
        caption: a word or two below it.
        lines: more text below, the first in bold.
        path: where it is, shown on hovering.
    """

    source: str
    alt: str
    caption: str = ""
    lines: Sequence[str] = ()
    path: str = ""


@dataclass
class Strip:
    """A row of cell images with a name; ``large`` where outlines have to be seen."""

    kind: ClassVar[str] = "strip"
    title: str
    pictures: Sequence[Picture]
    large: bool = False


@dataclass
class Details:
    """A part that is folded away on the screen and open on paper."""

    kind: ClassVar[str] = "details"
    title: str
    blocks: Sequence[Block]
    open: bool = False


Block = Table | Figure | Text | Heading | Bullets | Facts | Code | Strip | Details


@dataclass
class Section:
    """A numbered part of the report with its own address (``#key``)."""

    key: str
    title: str
    blocks: list[Block] = field(default_factory=list)


class Page:
    """What every section needs: the results and how each model looks."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.looks = looks({m.key: m.kind for m in results.models})
        self._swatches: dict[Look, str] = {}

    def legend(self, keys: Sequence[str]) -> list[tuple[str, str]]:
        """Swatch and name of models; every single-site model of an arm looks alike and has one entry."""
        entries: dict[Look, str] = {}
        singles = {m.key for m in self.results.singles}
        for key in keys:
            name = "Local, one site's model" if key in singles else self.results.title_of(key)
            entries.setdefault(self.looks[key], name)
        return [(self.swatch(look), name) for look, name in entries.items()]

    def swatch(self, look: Look) -> str:
        """A legend's line and marker."""
        if look not in self._swatches:
            self._swatches[look] = swatch(look)
        return self._swatches[look]


def number(sections: Sequence[Section]) -> None:
    """Give every table and figure its number, in reading order."""
    counts = {"table": 0, "figure": 0}
    for section in sections:
        for block in _walk(section.blocks):
            if isinstance(block, Table | Figure):
                counts[block.kind] += 1
                block.label = f"{block.kind.capitalize()} {counts[block.kind]}"


def _walk(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Details):
            yield from _walk(block.blocks)
