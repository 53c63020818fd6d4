"""Named things that a third party may add: by decorator here, by entry point from another package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar

from morphfed.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names → objects of one kind.

    Args:
        kind: what the user calls it, for messages ("algorithm", "source").
        package: package whose modules register themselves on import.
        group: entry-point group of third-party packages.
    """

    def __init__(self, kind: str, *, package: str, group: str) -> None:
        self.kind, self._package, self._group = kind, package, group
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an object under ``name``."""

        def add(item: T) -> T:
            if name in self._items and self._items[name] is not item:
                raise ValueError(f"two {self.kind}s are called {name!r}")
            self._items[name] = item
            return item

        return add

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = import_module(self._package)
        for module in iter_modules(package.__path__):
            if not module.name.startswith("_"):
                import_module(f"{self._package}.{module.name}")
        for point in entry_points(group=self._group):
            self._items.setdefault(point.name, point.load())

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._items:
            raise ConfigError(
                f"There is no {self.kind} '{name}'.{did_you_mean(name, self._items)}",
                fix=f"choose one of: {', '.join(self.names())}.",
            )
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._items)

    def items(self) -> Iterator[tuple[str, T]]:
        """Pairs of name and object, sorted by name."""
        for name in self.names():
            yield name, self._items[name]
