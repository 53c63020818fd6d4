"""The environment block: what is needed to repeat a run, and nobody's name."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import socket
from pathlib import Path

import pytest
import torch

from morphfed import __version__
from morphfed.experiment import environment


def test_what_is_told() -> None:
    told = environment.describe()
    assert told["morphfed"] == __version__
    assert told["python"] == platform.python_version()
    assert told["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert told["threads"] == torch.get_num_threads()
    assert 1 <= told["cores"] <= (os.cpu_count() or 1)
    assert told["memory_gib"] > 0.5
    assert told["cpu"]
    assert (told["gpu"] is None) == (not torch.cuda.is_available())
    assert json.loads(json.dumps(told)) == told


def test_the_documented_keys_are_there() -> None:
    """`docs/reference/results.md` shows them; the study adds `jobs`, a choice and no fact of the machine."""
    page = (Path(__file__).parents[2] / "docs/reference/results.md").read_text(encoding="utf-8")
    line = next(li for li in page.splitlines() if '"environment": {' in li)
    documented = set(re.findall(r'"(\w+)":', line)) - {"environment", "jobs"}
    assert documented <= set(environment.describe())


def test_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "ward-7-haematology")
    monkeypatch.setattr(platform, "node", lambda: "ward-7-haematology")
    text = json.dumps(environment.describe())
    assert "ward-7" not in text
    assert str(Path.home()) not in text
    assert f'"{getpass.getuser()}"' not in text
    assert not re.search(r'"/\w', text)  # no absolute path


def test_limits_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"cpu.max": "150000 100000", "memory.max": str(3 * 2**30)}
    monkeypatch.setattr(environment, "_cgroup", files.get)
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert environment.cores() == 2
    assert environment.memory_bytes() == min(3 * 2**30, environment.memory_bytes())
    files["cpu.max"] = "10000 100000"  # a tenth of a core is still one
    assert environment.cores() == 1
    for unlimited in ({"cpu.max": "max 100000", "memory.max": "max"}, {}):
        monkeypatch.setattr(environment, "_cgroup", unlimited.get)
        assert environment.cores() == 64
        assert environment.memory_bytes() > 2**29


def test_a_library_that_is_not_installed_is_none() -> None:
    assert environment.installed("no-such-distribution-of-morphfed") is None
