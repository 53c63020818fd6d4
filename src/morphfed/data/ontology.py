"""The tree of types of cells and lesions, and what each source calls them: ``ontology.toml``, one versioned file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from pydantic import Field

from morphfed.core.config import Config, read_toml, validate
from morphfed.core.errors import ConfigError, did_you_mean

PACKAGED = Path(__file__).with_name("ontology.toml")
COMMON = "common"
UNIDENTIFIED = "unknown"
_TELLING = 6  # fewer labels than this (the five everyday cells) are no fingerprint of a source


class Node(Config):
    """A type of cell or lesion: its name in running text, and the coarser type that includes it."""

    title: str
    parent: str | None = None


class Contested(Config):
    """A mapping that published loaders do not agree on, and why this one was chosen."""

    node: str
    why: str


class Table(Config):
    """What one source calls the nodes, and the scale of its published images.

    ``um_per_px`` holds for images of ``image_px`` (width, height): a copy that was resized has another scale.
    ``unmapped`` names labels that stand for no cell type, with the reason. ``guess = false`` keeps a table of everyday
    words from being taken for the language of a folder that merely uses them.
    """

    title: str
    reference: str = ""
    extends: str | None = None
    um_per_px: float | None = None
    image_px: tuple[int, int] | None = None
    guess: bool = True
    labels: dict[str, str | Contested] = Field(default_factory=dict)
    unmapped: dict[str, str] = Field(default_factory=dict)


class _File(Config):
    version: str
    nodes: dict[str, Node]
    sources: dict[str, Table]


@dataclass(frozen=True)
class Ontology:
    """Cell types as a forest, and per source a table from the source's labels to them.

    Attributes:
        version: recorded with every run; raised when a mapping changes its meaning.
        nodes: name → node.
        tables: name of a source → its table as written in the file.
    """

    version: str
    nodes: dict[str, Node]
    tables: dict[str, Table]
    _folded: dict[str, dict[str, Contested]] = field(repr=False)

    def map(self, source_label: str, source: str) -> str | None:
        """The node that ``source`` means by ``source_label``, or None.

        Args:
            source: a table's name; a source without a table of its own speaks the common names.
        """
        found = self._table(source).get(fold(source_label))
        return found.node if found else None

    def why(self, source_label: str, source: str) -> str:
        """The reason beside a contested mapping, else the empty string."""
        found = self._table(source).get(fold(source_label))
        return found.why if found else ""

    def unmapped(self, source_label: str, source: str) -> str:
        """Why ``source_label`` is left without a node on purpose, else the empty string."""
        table = self.tables.get(source)
        reasons = {fold(label): why for label, why in table.unmapped.items()} if table else {}
        return reasons.get(fold(source_label), "")

    def nearest(self, source_label: str, source: str) -> str | None:
        """The node whose known name is spelt most like ``source_label``: a suggestion, never applied."""
        known = self._folded[COMMON] | self._table(source)
        close = get_close_matches(fold(source_label), list(known), n=1, cutoff=0.7)
        return known[close[0]].node if close else None

    def table_for(self, labels: Iterable[str]) -> str:
        """The table that a folder's labels are written in: a guess for the caller to state.

        A table whose every label is there and no other wins, then the one that maps most of them; the common
        names win a draw. Bare numbers say nothing: any table may number its classes.
        """
        asked = {folded for label in labels if not (folded := fold(label)).isdigit()}
        for name, table in self.tables.items():
            if table.guess and len(asked) >= _TELLING and asked == {fold(label) for label in table.labels}:
                return name
        ranked = {name: len(asked & set(table)) for name, table in self._folded.items() if self.tables[name].guess}
        best = max(ranked.values())
        return COMMON if ranked[COMMON] == best else min(n for n, hits in ranked.items() if hits == best)

    def ancestors(self, node: str) -> tuple[str, ...]:
        """The node's parent, its parent, … up to the root; without the node itself."""
        return tuple(self._upwards(node))[1:]

    def children(self, node: str) -> tuple[str, ...]:
        """The nodes directly below, in the file's order."""
        self._known(node)
        return tuple(name for name, other in self.nodes.items() if other.parent == node)

    def to_class(self, node: str, classes: Sequence[str]) -> str | None:
        """The class that includes ``node``: itself or its nearest ancestor in ``classes``, else None.

        A band cell belongs to the class neutrophil; a neutrophil does not belong to the class
        neutrophil_segmented, because nobody said that it is one.
        """
        return next((name for name in self._upwards(node) if name in classes), None)

    def classes_below(self, node: str, classes: Sequence[str]) -> tuple[str, ...]:
        """The classes that ``node`` is a coarser name for: neutrophil, of neutrophil_band and neutrophil_segmented."""
        self._known(node)
        return tuple(name for name in classes if node in self.ancestors(name))

    def parents_of(self, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Coarser names that tell something of a cell: node → its classes below, at least two of them and not all.

        A node above every class (leukocyte, in a study of leukocytes) leaves all of them possible.
        """
        below = {node: self.classes_below(node, classes) for node in self.nodes}
        return {node: found for node, found in below.items() if 2 <= len(found) < len(classes)}

    def uncovered(self, node: str, classes: Sequence[str]) -> tuple[str, ...]:
        """The topmost types below ``node`` that are in no class and above none: what else the name may stand for.

        Immature granulocytes, of granulocyte with the classes neutrophil, eosinophil and basophil.
        """
        found: list[str] = []
        for child in self.children(node):
            if self.classes_below(child, classes):
                found += self.uncovered(child, classes)
            elif child not in classes:
                found.append(child)
        return tuple(found)

    def is_outside(self, node: str, classes: Sequence[str]) -> bool:
        """Whether a cell of type ``node`` is surely of none of the classes: in none, and no coarser name of one.

        A cell that nobody could identify may be of any class.
        """
        return node != UNIDENTIFIED and self.to_class(node, classes) is None and not self.classes_below(node, classes)

    def resolve_classes(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Check the classes of a study.

        Raises:
            ConfigError: fewer than two, one twice, an unknown name, or one that includes another.
        """
        for name in classes:
            if name not in self.nodes:
                raise ConfigError(self._unknown(name), fix=f"choose from: {', '.join(self.nodes)}.")
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        if twice:
            raise ConfigError(f"classes lists {', '.join(twice)} twice.", fix="name every class once.")
        if len(classes) < 2:
            raise ConfigError(f"classes has {len(classes)} entry; a study tells two or more apart.", fix="add one.")
        for name in classes:
            above = [a for a in self.ancestors(name) if a in classes]
            if above:
                raise ConfigError(
                    f"classes has both '{name}' and '{above[0]}', but every {name} is a {above[0]}: "
                    "one image would have two right answers.",
                    fix=f"keep one of the two, or name the other children of '{above[0]}' instead of it.",
                )
        return tuple(classes)

    def _table(self, source: str) -> dict[str, Contested]:
        return self._folded.get(source, self._folded[COMMON])

    def _upwards(self, node: str) -> Iterator[str]:
        self._known(node)
        current: str | None = node
        while current is not None:
            yield current
            current = self.nodes[current].parent

    def _known(self, node: str) -> None:
        if node not in self.nodes:
            raise ConfigError(self._unknown(node), fix=f"choose from: {', '.join(self.nodes)}.")

    def _unknown(self, name: str) -> str:
        meant = self.map(name, COMMON)
        hint = f" Did you mean '{meant}'?" if meant else did_you_mean(name, self.nodes)
        return f"'{name}' is no type of cell or lesion of the ontology (version {self.version}).{hint}"


def fold(label: str) -> str:
    """A label without what people vary: case, separators and a plural s.

    Example:
        >>> fold("Band_Neutrophils") == fold("band neutrophil")
        True
    """
    words = re.split(r"[\W_]+", label.casefold())
    return " ".join(w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in words if w)


@cache
def load_ontology(path: Path = PACKAGED) -> Ontology:
    """Read an ontology; morphfed's own unless ``path`` says otherwise.

    Raises:
        ConfigError: not TOML, an unknown key, a parent or node that does not exist, a cycle, or two labels of
            one table that differ only in case or separators and mean different nodes.
    """
    file = validate(_File, read_toml(path), where=str(path))
    for name, node in file.nodes.items():
        _check_parents(name, node, file, path)
    if COMMON not in file.sources:
        raise ConfigError(f"{path}: table 'sources.{COMMON}' is missing.", fix="add it, even without labels.")
    folded = {name: _fold_table(name, file, path) for name in file.sources}
    return Ontology(file.version, file.nodes, file.sources, folded)


def _check_parents(name: str, node: Node, file: _File, path: Path) -> None:
    seen, current = [name], node
    while current.parent is not None:
        if current.parent not in file.nodes:
            raise ConfigError(
                f"{path}: the parent '{current.parent}' of '{seen[-1]}' does not exist."
                f"{did_you_mean(current.parent, file.nodes)}",
                fix="add the node or correct the name.",
            )
        if current.parent in seen:
            raise ConfigError(f"{path}: '{current.parent}' is above itself.", fix="correct the parents.")
        seen.append(current.parent)
        current = file.nodes[current.parent]


def _fold_table(name: str, file: _File, path: Path) -> dict[str, Contested]:
    table = file.sources[name]
    entries: list[tuple[str, str | Contested]] = list(table.labels.items())
    if name == COMMON:
        entries += [(text, node) for node, about in file.nodes.items() for text in (node, about.title)]
    own: dict[str, Contested] = {}
    for label, given in entries:
        meant = Contested(node=given, why="") if isinstance(given, str) else given
        if meant.node not in file.nodes:
            raise ConfigError(
                f"{path}: sources.{name}: '{label}' maps to '{meant.node}', which does not exist."
                f"{did_you_mean(meant.node, file.nodes)}",
                fix="correct the node's name.",
            )
        other = own.setdefault(fold(label), meant)
        if other.node != meant.node:
            raise ConfigError(
                f"{path}: sources.{name}: '{label}' maps to both '{other.node}' and '{meant.node}'.",
                fix="keep one; case and separators do not tell labels apart.",
            )
    for label in table.unmapped:
        if fold(label) in own:
            raise ConfigError(f"{path}: sources.{name}: '{label}' is both mapped and unmapped.", fix="keep one.")
    if table.extends is None:
        return own
    base = file.sources.get(table.extends)
    if base is None or base.extends is not None:
        raise ConfigError(
            f"{path}: sources.{name} extends '{table.extends}', which is missing or extends another.",
            fix=f"name a table that stands alone.{did_you_mean(table.extends, file.sources)}",
        )
    return _fold_table(table.extends, file, path) | own
