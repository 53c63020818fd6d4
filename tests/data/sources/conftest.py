"""Small trees with the real names of published sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from morphfed.data.ontology import load_ontology
from morphfed.data.sources import SOURCES, Folder, Note, Record, Skipped


@dataclass(frozen=True)
class Found:
    """What a source says of a tree; paths relative to its root."""

    records: dict[str, Record]
    skipped: dict[str, str]
    notes: list[str]
    source: str

    @property
    def labels(self) -> dict[str, str]:
        return {path: record.source_label for path, record in self.records.items()}

    @property
    def nodes(self) -> dict[str, str | None]:
        return {path: load_ontology().map(label, self.source) for path, label in self.labels.items()}

    def column(self, name: str) -> dict[str, object]:
        return {path: getattr(record, name) for path, record in self.records.items()}


class Tree:
    """A folder to plant files in and to look at through a source."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def plant(self, *names: str, text: str = "adapters do not look into images") -> Tree:
        for name in names:
            file = self.root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return self

    def read(self, source: str, options: Mapping[str, str] | None = None) -> Found:
        folder = Folder.scan(self.root)
        records: dict[str, Record] = {}
        skipped = {s.path.relative_to(self.root).as_posix(): s.reason for s in folder.skipped}
        notes = []
        for item in SOURCES[source]().records(folder, options or {}):
            if isinstance(item, Note):
                notes.append(item.text)
                continue
            path = item.path.relative_to(self.root).as_posix()
            assert path not in records, f"{path} is said twice"
            if isinstance(item, Record):
                records[path] = item
            else:
                assert isinstance(item, Skipped)
                skipped[path] = item.reason
        return Found(records, skipped, notes, source)

    def winner(self) -> str:
        """The surest source; it must be surer than every other by more than a draw."""
        folder = Folder.scan(self.root)
        rated = {name: kind().detect(folder) for name, kind in SOURCES.items()}
        best, second = sorted(rated, key=lambda name: -rated[name])[:2]
        assert rated[best] - rated[second] > 0.05, rated
        return best


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[str], Tree]:
    def make(name: str = "site") -> Tree:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        return Tree(tmp_path / name)

    return make
