"""The floors of docs/explanation/architecture.md: a module imports only from floors below its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

PROJECT = Path(__file__).resolve().parents[1]

# Low to high.
FLOORS = (
    ("core",),
    ("data",),
    ("models",),
    ("tasks",),
    ("privacy",),
    ("training",),
    ("algorithms",),
    ("federation",),
    ("evaluation",),
    ("reporting",),
    ("experiment",),
    ("deploy",),
    ("cli",),
)
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
# Imported late, so that `morphfed --help` answers at once.
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "matplotlib",
    "pandas",
    "sklearn",
    "skimage",
    "pyarrow",
    "scipy",
    "numpy",
)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("morphfed", include_external_packages=True, cache_dir=None)


def own(graph: grimp.ImportGraph) -> list[str]:
    return sorted(m for m in graph.modules if m == "morphfed" or m.startswith("morphfed."))


def floor(module: str) -> str:
    """Floor of a module; the root package, which holds the version, is below all floors."""
    return ([*module.split("."), ""])[1]


def rises(importer: str, imported: str) -> bool:
    """Whether an import goes up, or sideways into another part of the same floor."""
    here, there = floor(importer), floor(imported)
    return here != there and there != "" and (here == "" or HEIGHT[there] >= HEIGHT[here])


def test_every_module_stands_on_a_floor(graph: grimp.ImportGraph) -> None:
    homeless = [m for m in own(graph) if floor(m) and floor(m) not in HEIGHT]
    assert not homeless, f"put these on a floor, in architecture.md and in FLOORS: {homeless}"


def test_imports_go_down(graph: grimp.ImportGraph) -> None:
    wrong = [
        f"{d['importer']}:{d['line_number']} imports {d['imported']}: {d['line_contents']}"
        for importer in own(graph)
        for imported in graph.find_modules_directly_imported_by(importer)
        if imported.startswith("morphfed") and rises(importer, imported)
        for d in graph.get_import_details(importer=importer, imported=imported)
    ]
    assert not wrong, "imports that go up:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported", "expected"),
    [
        ("morphfed.core.files", "morphfed.data.manifest", True),
        ("morphfed.data.manifest", "morphfed.core.files", False),
        ("morphfed.data.cache", "morphfed.data.sources.base", False),
        ("morphfed.experiment.runner", "morphfed.deploy.site", True),
        ("morphfed.experiment.runner", "morphfed.reporting", False),
        ("morphfed.reporting.report", "morphfed.experiment.study", True),
        ("morphfed.core.errors", "morphfed", False),
        ("morphfed", "morphfed.core", True),
    ],
)
def test_the_rule_itself(importer: str, imported: str, expected: bool) -> None:
    assert rises(importer, imported) is expected


def test_the_page_shows_the_same_floors() -> None:
    page = (PROJECT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    shown = re.findall(r"^ (\w+)/", page.split("```")[1], flags=re.MULTILINE)
    assert set(shown) == set(HEIGHT)
    assert shown == sorted(shown, key=HEIGHT.__getitem__, reverse=True)


def test_flower_stays_in_its_adapter(graph: grimp.ImportGraph) -> None:
    allowed = ("morphfed.federation.transports.flower", "morphfed.deploy")
    flower = {m for m in graph.modules if m.split(".")[0] in ("flwr", "flwr_datasets")}
    outside = {
        importer
        for module in flower
        for importer in graph.find_modules_that_directly_import(module)
        if not importer.startswith(allowed)
    }
    assert not outside, f"flwr is imported outside {allowed}: {outside}"


def loaded_by(statement: str) -> set[str]:
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_command_line_starts_without_heavy_libraries() -> None:
    assert "torch" in loaded_by("import torch")  # the test can see what it looks for
    assert loaded_by("import morphfed.cli") & set(HEAVY) == set()
    assert loaded_by("import morphfed.cli.doctor") & set(HEAVY) == set()


def test_help_starts_without_heavy_libraries() -> None:
    statement = (
        "from morphfed.cli import main\n"
        "sys.argv = ['morphfed', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    assert loaded_by(statement) & set(HEAVY) == set()
