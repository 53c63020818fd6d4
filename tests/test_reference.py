"""docs/reference/study.md and errors.md are what scripts/reference writes from the code as it is now."""

from __future__ import annotations

import re
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from morphfed.core import errors
from morphfed.core.config import validate
from morphfed.experiment.study import Study, resolve_arm

PROJECT = Path(__file__).resolve().parents[1]
REFERENCE = PROJECT / "docs" / "reference"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("morphfed_scripts_reference", str(PROJECT / "scripts" / "reference"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["study.md", "errors.md"])
def test_page_is_up_to_date(script: ModuleType, page: str) -> None:
    written = (REFERENCE / page).read_text(encoding="utf-8")
    assert written == script.pages()[page], "run .venv/bin/python scripts/reference and commit the pages"


def test_keys_of_the_tables_are_in_the_page() -> None:
    text = (REFERENCE / "study.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `\[([\w.]+)\]`\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    for table, keys in {
        "train": {"lr", "local_epochs", "optimizer_state"},
        "train.augment": {"stain", "flips"},
        "train.loss": {"kind", "gamma"},
        "data.split": {"train", "validation", "test"},
        "sites.NAME": {"path", "um_per_px"},
    }.items():
        assert keys <= set(re.findall(r"^\| `(\w+)` \|", sections[table], flags=re.MULTILINE))
    assert "### `fedprox`" in sections["arms.NAME"]
    assert "`mu`" in sections["arms.NAME"]


def test_default_and_range_of_a_key_worked_by_hand(script: ModuleType) -> None:
    row = next(li for li in script.study_page().splitlines() if li.startswith("| `quorum` |"))
    assert row.startswith("| `quorum` | number, > 0, ≤ 1 | `0.5` | share of the sites")


def test_example_of_the_page_is_a_study() -> None:
    text = (REFERENCE / "study.md").read_text(encoding="utf-8")
    example = re.search(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert example is not None
    study = validate(Study, tomllib.loads(example[1]), where="study.md")
    strong = resolve_arm(study, "fedprox-strong", where="study.md")
    assert (strong.algorithm.name, strong.config.model_dump()["mu"], strong.train.lr) == ("fedprox", 0.1, 1e-4)


def test_every_error_of_the_tree_has_an_entry() -> None:
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.MorphfedError)]
    assert len(kinds) >= 10
    for kind in kinds:
        assert f"### {kind.code}\n`{kind.__name__}`, exit code {kind.exit_code}. " in text
