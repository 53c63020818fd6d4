"""Registries: names from this package and from other people's, and what a wrong name is told."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from morphfed.core import registry as module
from morphfed.core.errors import ConfigError
from morphfed.core.registry import Registry

_PLUGIN = """
from {package} import REGISTRY

@REGISTRY.register("{name}")
def {name}():
    return "{name}"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An importable package with a registry and the two plug-ins fedavg and fedprox."""
    name = f"pkg_{abs(hash(request.node.name))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from morphfed.core.registry import Registry\n"
        f"REGISTRY = Registry('algorithm', package='{name}', group='morphfed.{name}')\n"
    )
    for plugin in ("fedavg", "fedprox"):
        (folder / f"{plugin}.py").write_text(_PLUGIN.format(package=name, name=plugin))
    (folder / "_private.py").write_text("raise RuntimeError('not a plug-in')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for loaded in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[loaded]


def load(package: str) -> Registry[object]:
    registry: Registry[object] = __import__(package).REGISTRY
    return registry


def foreign(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(module, "entry_points", lambda group: [p for p in points if p.group == group])


def test_modules_register_themselves_when_first_asked(package: str) -> None:
    registry = load(package)
    assert f"{package}.fedavg" not in sys.modules
    assert registry.names() == ["fedavg", "fedprox"]
    assert registry["fedprox"]() == "fedprox"  # type: ignore[operator]
    assert [name for name, _ in registry.items()] == ["fedavg", "fedprox"]
    assert f"{package}._private" not in sys.modules


def test_a_wrong_name_is_told_the_nearest_and_all(package: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(package)["fedporx"]
    assert caught.value.message == "There is no algorithm 'fedporx'. Did you mean 'fedprox'?"
    assert caught.value.fix == "choose one of: fedavg, fedprox."


def test_two_of_one_name_are_refused(package: str) -> None:
    registry = load(package)
    item = registry["fedavg"]
    registry.register("fedavg")(item)  # the same object again is no conflict
    with pytest.raises(ValueError, match="two algorithms are called 'fedavg'"):
        registry.register("fedavg")(object())


def test_a_broken_module_fails_every_time(package: str, tmp_path: Path) -> None:
    """Not only on the first look-up, with half the names on the second."""
    (tmp_path / package / "fedbroken.py").write_text("import a_library_that_is_not_there\n")
    registry = load(package)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
            registry.names()


def test_another_package_adds_by_entry_point(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(monkeypatch, EntryPoint("fedown", "collections:OrderedDict", f"morphfed.{package}"))
    registry = load(package)
    assert registry.names() == ["fedavg", "fedown", "fedprox"]
    assert registry["fedown"].__name__ == "OrderedDict"  # type: ignore[attr-defined]
    assert registry.refused() == {}


@pytest.mark.parametrize("value", ["no_such_package.x:y", "collections:NoSuchName"])
def test_a_broken_foreign_one_is_named_when_asked_for_and_stops_nothing_else(
    package: str, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    foreign(monkeypatch, EntryPoint("fedown", value, f"morphfed.{package}"))
    registry = load(package)
    assert registry.names() == ["fedavg", "fedprox"]
    with pytest.raises(ConfigError, match=r"algorithm 'fedown' of package .* cannot be loaded") as caught:
        registry["fedown"]
    assert "update or uninstall" in caught.value.fix
    assert list(registry.refused()) == ["fedown"]


def test_a_foreign_one_cannot_take_a_built_in_name(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign(monkeypatch, EntryPoint("fedavg", "collections:OrderedDict", f"morphfed.{package}"))
    registry = load(package)
    assert registry["fedavg"]() == "fedavg"  # type: ignore[operator]
    assert "taken" in registry.refused()["fedavg"]
