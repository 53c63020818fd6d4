"""Configuration: a mistake is refused before any work; the message names the key and the nearest one."""

from __future__ import annotations

import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator, model_validator

from morphfed.core.config import Config, override, read_toml, validate
from morphfed.core.errors import ConfigError


class Norm(StrEnum):
    batch = "batch"
    group = "group"


class Train(Config):
    lr: float = Field(default=1e-3, gt=0)
    epochs: int = 5
    norm: Norm = Norm.batch
    loss: Literal["focal", "cross-entropy"] = "focal"


class Site(Config):
    folder: str
    train: Train = Train()


class FedAvg(Config):
    name: Literal["fedavg"] = "fedavg"
    momentum: float = 0.0


class FedProx(Config):
    name: Literal["fedprox"] = "fedprox"
    mu: float = 0.01


class Study(Config):
    name: str
    sites: dict[str, Site] = Field(default_factory=dict)
    train: Train = Train()
    extra: Train | None = None
    arms: list[FedAvg | FedProx] = Field(default_factory=list)
    tagged: list[Annotated[FedAvg | FedProx, Field(discriminator="name")]] = Field(default_factory=list)
    seeds: tuple[int, ...] = (0,)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if " " in value:
            raise ValueError("a study's name has no spaces")
        return value

    @model_validator(mode="after")
    def _seeds(self) -> Study:
        if not self.seeds:
            raise ValueError("a study needs a seed")
        return self


def message(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Study, values, where="four-labs.toml")
    assert caught.value.message.startswith("four-labs.toml: ")
    assert caught.value.exit_code == 2
    return caught.value.message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"nmae": "a", "name": "a"}, "unknown key 'nmae'. Did you mean 'name'?"),
        ({"name": "a", "train": {"ephocs": 3}}, "unknown key 'train.ephocs'. Did you mean 'epochs'?"),
        ({"name": "a", "extra": {"ler": 1}}, "unknown key 'extra.ler'. Did you mean 'lr'?"),
        (
            {"name": "a", "sites": {"kampala": {"foldr": "x", "folder": "x"}}},
            "unknown key 'sites.kampala.foldr'. Did you mean 'folder'?",
        ),
        (
            {"name": "a", "sites": {"kampala": {"folder": "x", "train": {"epoch": 1}}}},
            "unknown key 'sites.kampala.train.epoch'. Did you mean 'epochs'?",
        ),
        # A site that is called like a key of its own table.
        (
            {"name": "a", "sites": {"train": {"folder": "x", "foldre": 1}}},
            "unknown key 'sites.train.foldre'.",
        ),
        (
            {"name": "a", "tagged": [{"name": "fedavg"}, {"name": "fedprox", "mou": 1}]},
            "unknown key 'tagged.1.fedprox.mou'. Did you mean 'mu'?",
        ),
        ({"name": "a", "zzzzzz": 1}, "Known here: arms, extra, name, seeds, sites, tagged, train."),
        ({"name": "a", "weird[0]": 1}, "unknown key 'weird[0]'"),
        ({}, "key 'name' is missing."),
        ({"name": "a", "sites": {"kampala": {}}}, "key 'sites.kampala.folder' is missing."),
        ({"name": "a", "train": {"lr": -1}}, "'train.lr' = -1: Input should be greater than 0."),
        ({"name": "a", "train": {"lr": float("nan")}}, "'train.lr' = nan: Input should be a finite number."),
        ({"name": "a", "train": {"epochs": 1.5}}, "'train.epochs' = 1.5: "),
        ({"name": "a", "train": {"loss": "focall"}}, "or 'cross-entropy'. Did you mean 'focal'?"),
        ({"name": "a", "train": {"norm": "gruop"}}, "Did you mean 'group'?"),
        ({"name": "a", "train": {"loss": 3}}, "'train.loss' = 3: Input should be 'focal' or"),
        ({"name": "a b"}, "'name' = 'a b': a study's name has no spaces."),
        ({"name": "a", "seeds": []}, "a study needs a seed."),
        ({"name": "a", "train": 3}, "'train' = 3: "),
    ],
)  # fmt: skip
def test_message_names_the_key_and_the_nearest_known_one(values: dict[str, Any], expected: str) -> None:
    assert expected in message(values)


def test_all_mistakes_are_told_at_once() -> None:
    told = message({"nmae": "a", "train": {"lr": 0, "epohcs": 1}})
    for expected in ("'nmae'", "'name' is missing", "'train.lr' = 0", "'train.epohcs'"):
        assert expected in told


def test_a_long_value_is_cut() -> None:
    assert len(message({"name": "a", "train": {"lr": "x" * 5000}})) < 300


def test_configuration_is_frozen_and_defaults_are_checked() -> None:
    study = validate(Study, {"name": "a"}, where="x")
    with pytest.raises(ValidationError, match="frozen"):
        study.name = "b"

    class Wrong(Config):
        share: float = Field(default=2.0, le=1.0)

    with pytest.raises(ConfigError, match=r"'share' = 2\.0"):
        validate(Wrong, {}, where="x")


def test_override_leaves_its_input_alone_and_makes_missing_tables() -> None:
    given_values = {"train": {"lr": 0.1, "deep": {"a": 1}}, "seeds": [0]}
    result = override(given_values, ["train.lr=0.2", "train.deep.a=2", "sites.kampala.folder=cells", "seeds=[1, 2]"])
    assert result == {
        "train": {"lr": 0.2, "deep": {"a": 2}},
        "sites": {"kampala": {"folder": "cells"}},
        "seeds": [1, 2],
    }
    assert given_values == {"train": {"lr": 0.1, "deep": {"a": 1}}, "seeds": [0]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("True", "True"),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ('["fedavg", "fedprox"]', ["fedavg", "fedprox"]),
        ("{a = 1}", {"a": 1}),
        ("torchvision/squeezenet1_1", "torchvision/squeezenet1_1"),
        ("a=b", "a=b"),
        ("two words", "two words"),
        ("", ""),
        ("007", "007"),
        ("1\nother = 2", "1\nother = 2"),
        ("µm", "µm"),
    ],
)
def test_a_value_is_toml_or_else_a_string(text: str, value: Any) -> None:
    assert override({}, [f"key={text}"]) == {"key": value}


def test_the_last_of_two_overrides_counts() -> None:
    assert override({}, ["a=1", "a=2"]) == {"a": 2}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("train.lr", "write key=value"),
        ("=3", "write key=value"),
        (".lr=3", "write key=value"),
        ("train..lr=3", "write key=value"),
        ("train.=3", "write key=value"),
        ("train.lr.x=3", "'lr' is a value, not a table"),
        ("arms=[fedavg, fedprox]", """for the shell, the whole: 'arms=["a", "b"]'"""),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(assignment: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override({"train": {"lr": 1}}, [assignment])
    assert expected in str(caught.value)
    assert assignment.partition("=")[0] in str(caught.value)


@given(st.dictionaries(st.sampled_from("abcd"), st.integers() | st.booleans() | st.floats(allow_nan=False)))
def test_overrides_written_out_give_the_same_table(values: dict[str, Any]) -> None:
    # TOML writes booleans in lower case; integers and floats as Python does, infinity included.
    written = [f"t.{k}={str(v).lower()}" for k, v in values.items()]
    assert override({}, written) == ({"t": values} if values else {})


def test_read_toml(tmp_path: Path) -> None:
    study = tmp_path / "four-labs.toml"
    study.write_text('title = "µm"\n[train]\nlr = 0.1\n', encoding="utf-8")
    assert read_toml(study) == {"title": "µm", "train": {"lr": 0.1}}
    with pytest.raises(ConfigError, match=r"four-lab\.toml does not exist\. Did you mean 'four-labs\.toml'\?"):
        read_toml(tmp_path / "four-lab.toml")
    with pytest.raises(ConfigError, match="does not exist"):
        read_toml(tmp_path / "nowhere" / "x.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_toml(tmp_path)
    study.write_text("a = 1\nname = four labs\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        read_toml(study)
    study.write_bytes(b'name = "\xff"\n')
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(study)


def test_read_toml_without_permission(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("a = 1\n", encoding="utf-8")
    (tmp_path / "study.toml").chmod(0)
    program = (
        "import os\n"
        "from pathlib import Path\n"
        "from morphfed.core.config import read_toml\n"
        "from morphfed.core.errors import ConfigError\n"
        "if os.geteuid() == 0:\n"
        "    os.seteuid(65534)\n"  # root may read everything
        "try:\n"
        "    read_toml(Path('study.toml'))\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert "study.toml cannot be read" in done.stdout
    assert "permissions" in done.stdout
