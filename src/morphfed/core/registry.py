"""Named things that a third party may add: by decorator here, by entry point from another package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
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
        self._refused: dict[str, str] = {}
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
        self._loaded = True  # before the imports: a module may look a name up while it is imported
        try:
            package = import_module(self._package)
            for module in iter_modules(package.__path__):
                if not module.name.startswith("_"):
                    import_module(f"{self._package}.{module.name}")
        except BaseException:
            self._loaded = False  # a second look-up fails like the first, rather than with half the names
            raise
        for point in entry_points(group=self._group):
            self._add_foreign(point)

    def _add_foreign(self, point: EntryPoint) -> None:
        """Add another package's object; one that cannot be loaded is named when it is asked for."""
        owner = point.dist.name if point.dist else point.value
        if point.name in self._items:
            self._refused[point.name] = f"package '{owner}' also brings {self.kind} '{point.name}', which is taken"
            return
        try:
            item = point.load()
        except (ImportError, AttributeError, ValueError) as cause:
            self._refused[point.name] = f"{self.kind} '{point.name}' of package '{owner}' cannot be loaded: {cause}"
            return
        self._items.setdefault(point.name, item)

    def __getitem__(self, name: str) -> T:
        self._load()
        if name in self._items:
            return self._items[name]
        if name in self._refused:
            raise ConfigError(f"{self._refused[name]}.", fix="update or uninstall that package.")
        raise ConfigError(
            f"There is no {self.kind} '{name}'.{did_you_mean(name, self._items)}",
            fix=f"choose one of: {', '.join(self.names())}.",
        )

    def refused(self) -> dict[str, str]:
        """Names that other packages bring and that are not in use → why, for `morphfed list` and `doctor`."""
        self._load()
        return dict(self._refused)

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._items)

    def items(self) -> Iterator[tuple[str, T]]:
        """Pairs of name and object, sorted by name."""
        for name in self.names():
            yield name, self._items[name]
