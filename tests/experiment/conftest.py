"""A study small enough for a test: drawn cells of three laboratories, a small network, two rounds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

CLASSES = ("neutrophil", "lymphocyte")

STUDY = """\
name = "tiny"
seeds = [0]
classes = ["neutrophil", "lymphocyte"]
held_out = ["cedar"]

[sites]
alder = { path = "alder" }
birch = { path = "birch" }
cedar = { path = "cedar" }

[data]
root = "films"
image_size = 32
field_um = 20.0
check = false

[model]
name = "resnet10t"

[train]
lr = 1e-3
batch_size = 8
precision = "fp32"

[federation]
rounds = 3

[arms.fedavg]

[evaluation]
resamples = 100

[compute]
device = "cpu"
jobs = 1
threads = 1
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Test workers that each take every core are slower than one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of three laboratories, drawn once."""
    from morphfed.data.synthetic import PRESETS, write_films

    folder = tmp_path_factory.mktemp("drawn") / "films"
    sites = [PRESETS[name] for name in ("alder", "birch", "cedar")]
    write_films(folder, sites, dict.fromkeys(CLASSES, 14), seed=0, patients=7)
    return folder


@pytest.fixture
def tiny(drawn: Path, tmp_path: Path) -> Path:
    """A study file beside its own copy of the films."""
    shutil.copytree(drawn, tmp_path / "films")
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    return study


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """The text of the tiny study."""
    return STUDY
