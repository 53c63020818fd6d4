"""A made-up study, its page, and a strict reader of HTML."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

VOID = {"meta", "img", "br", "hr", "link", "input"}
SELF_CLOSING = {"path", "use", "rect", "circle"}  # of SVG
INLINE_ONLY = {"p", "h1", "h2", "h3", "h4"}
BLOCKS = {"p", "div", "table", "ul", "ol", "dl", "figure", "section", "details", "pre", "h1", "h2", "h3", "h4"}


class Node:
    """One element: tag, attributes, children (text or nodes)."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Node | str] = []

    def all(self, tag: str = "") -> list[Node]:
        found = [self] if tag in ("", self.tag) else []
        for child in self.children:
            if isinstance(child, Node):
                found += child.all(tag)
        return found

    def text(self) -> str:
        return " ".join("".join(c if isinstance(c, str) else f" {c.text()} " for c in self.children).split())

    def by_id(self, name: str) -> Node:
        return next(n for n in self.all() if n.attributes.get("id") == name)

    def rows(self) -> list[list[str]]:
        """A table's body as text."""
        body = self.all("tbody")[0]
        return [[c.text() for c in row.children if isinstance(c, Node)] for row in body.all("tr")]


class StrictReader(HTMLParser):
    """Builds the tree and fails on what browsers would silently mend."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("document", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> repeats an attribute: {names}"
        inside = {n.tag for n in self.open}
        if tag in BLOCKS:
            assert not inside & INLINE_ONLY, f"<{tag}> inside <{inside & INLINE_ONLY}>"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SELF_CLOSING, f"<{tag}/> closes itself in SVG only"
        self.open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID, f"</{tag}>"
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(text: str) -> Node:
    reader = StrictReader()
    reader.feed(text)
    reader.close()
    assert [n.tag for n in reader.open] == ["document"], f"not closed: {[n.tag for n in reader.open]}"
    return reader.root


def _load() -> Any:
    path = Path(__file__).with_name("example_results.py")
    spec = importlib.util.spec_from_file_location("example_results", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_results() -> Callable[..., dict[str, Any]]:
    """Builder of results of a study that never was."""
    maker: Callable[..., dict[str, Any]] = _load().example_results
    return maker


@pytest.fixture(scope="session")
def full(make_results: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Four sites, six arms, three seeds. Do not change it: copy it."""
    return make_results(resamples=50)


@pytest.fixture(scope="session")
def small(make_results: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Two training sites and a held-out one, four arms, two seeds. Do not change it: copy it."""
    return make_results(
        training=("kampala", "munich"),
        held_out=("barcelona",),
        arms=("local", "centralised", "fedavg", "fedmedian"),
        seeds=(0, 1),
        n=(60, 40, 50),
        rounds=3,
        errors=3,
        resamples=50,
    )


@pytest.fixture(scope="session")
def parse_html() -> Callable[[str], Node]:
    """Strict HTML → tree; fails on unbalanced, misnested or doubled things."""
    return parse
