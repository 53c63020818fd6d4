"""What a head looked at, and the picture of it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from morphfed.data.bags.store import BagStore
from morphfed.experiment.attention import examine, thumbnail_of
from morphfed.models.mil import build_head
from morphfed.training.bags import BagSet


def slide(folder: Path, *, geometry: bool) -> BagSet:
    """Four tiles in a square; the third has another feature."""
    (folder / "h5_files").mkdir(parents=True)
    with h5py.File(folder / "h5_files" / "s1.h5", "w") as file:
        bag = np.zeros((4, 2), dtype=np.float32)
        bag[2, 0] = 5
        file.create_dataset("features", data=bag)
        coords = file.create_dataset("coords", data=np.array([[0, 0], [100, 0], [0, 100], [100, 100]]))
        if geometry:
            coords.attrs.update({"patch_size_level0": 100, "level0_width": 200, "level0_height": 200})
        file.create_dataset("names", data=[b"a/0.png", b"a/1.png", b"a/2.png", b"a/3.png"])
    store = BagStore([folder / "h5_files" / "s1.h5"], np.array([4]), 2, [None])
    one = np.array(["x/s1.h5"], dtype=object)
    return BagSet(store, np.array([0]), np.array([1]), 2, one, one, sizes=np.array([4]), dim=2)  # type: ignore[arg-type]


def told(number: int, logits: torch.Tensor) -> tuple[str, str]:
    assert (number, logits.shape) == (0, (2,))
    return "yes", ("no", "yes")[int(logits.argmax())]


def attending() -> torch.nn.Module:
    """A head that looks at the first feature alone: tanh(h₀), times four."""
    head = build_head("abmil", 2, 2, hidden=(), attention=1, dropout=0.0)
    with torch.no_grad():
        for name, value in {"v.weight": [[1.0, 0.0]], "v.bias": [0.0], "w.weight": [[4.0]], "w.bias": [0.0]}.items():
            head.get_parameter(f"attention.{name}").copy_(torch.tensor(value))
    return head


def test_weights_positions_and_names(tmp_path: Path) -> None:
    data = slide(tmp_path, geometry=False)
    (found,) = examine(attending(), data, torch.device("cpu"), told)
    scores = np.array([0, 0, 4 * np.tanh(5), 0])
    weights = np.exp(scores) / np.exp(scores).sum()
    assert (found["id"], found["truth"], found["n"]) == ("x/s1.h5", "yes", 4)
    assert found["effective"] == pytest.approx(1 / (weights**2).sum(), rel=1e-5)
    first = found["top"][0]
    assert (first["index"], first["at"], first["name"]) == (2, [0, 100], "2.png")
    assert first["weight"] == pytest.approx(weights[2], rel=1e-5)
    assert "map" not in found  # the tiles' size is not known


def test_the_map_lies_over_the_thumbnail(tmp_path: Path) -> None:
    data = slide(tmp_path, geometry=True)
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((40, 40, 3), 250, dtype=np.uint8)).save(tmp_path / "masks" / "s1.png")
    (found,) = examine(attending(), data, torch.device("cpu"), told)
    kind, _, content = found["map"].partition(",")
    assert kind == "data:image/png;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)
    assert picture.shape == (40, 40, 3)
    quarters = {
        (y, x): picture[20 * y + 5 : 20 * y + 15, 20 * x + 5 : 20 * x + 15].mean() for y in (0, 1) for x in (0, 1)
    }
    assert max(quarters, key=lambda k: quarters[k]) == (1, 0)  # plasma's upper end is bright


def test_no_thumbnail(tmp_path: Path) -> None:
    slide(tmp_path, geometry=True)
    assert thumbnail_of(tmp_path / "h5_files" / "s1.h5") is None


def test_a_head_without_attention_shows_nothing(tmp_path: Path) -> None:
    data = slide(tmp_path, geometry=True)
    assert examine(build_head("max", 2, 2), data, torch.device("cpu"), told) == []
