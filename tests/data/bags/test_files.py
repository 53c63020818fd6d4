"""Bag files as their producers write them, and files that are none."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from morphfed.core.errors import DataError
from morphfed.data.bags import files

RNG = np.random.default_rng(0)
BAG = RNG.normal(size=(70, 5)).astype(np.float32)
PLACES = RNG.integers(0, 10_000, (70, 2))


def clam(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=BAG, chunks=(32, 5))
        file.create_dataset("coords", data=PLACES.astype(np.int32), chunks=(32, 2))


def trident(path: Path) -> None:
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", data=BAG.astype(np.float16), chunks=(1, 5), maxshape=(None, 5))
        features.attrs["encoder"] = "uni_v1"
        features.attrs["savetodir"] = "None"
        coords = file.create_dataset("coords", data=PLACES.astype(np.int64), chunks=(1, 2))
        coords.attrs["patch_size"] = 256
        coords.attrs["downsample"] = (4.0, 4.0)  # CLAM and `morphfed slides` write pairs
        coords.attrs["level0_magnification"] = "None"


def uni2(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=BAG[None])
        file.create_dataset("coords", data=PLACES[None])


def tensor(path: Path) -> None:
    torch.save(torch.from_numpy(BAG), path)


def old_tensor(path: Path) -> None:
    torch.save(torch.from_numpy(BAG), path, _use_new_zipfile_serialization=False)


def mapping(path: Path) -> None:
    torch.save({"features": torch.from_numpy(BAG), "coords": torch.from_numpy(PLACES)}, path)


def bfloat(path: Path) -> None:
    torch.save(torch.from_numpy(BAG).bfloat16(), path)


def array_by_torch(path: Path) -> None:
    torch.save(BAG, path)


def array_by_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(BAG.astype(np.float64), protocol=4))


def array_by_pickle_5(path: Path) -> None:
    path.write_bytes(pickle.dumps(BAG, protocol=5))


def npy(path: Path) -> None:
    np.save(path, BAG)


@pytest.mark.parametrize(
    ("write", "suffix", "exact"),
    [
        (clam, ".h5", True),
        (trident, ".h5", False),
        (uni2, ".h5", True),
        (tensor, ".pt", True),
        (old_tensor, ".pt", True),
        (mapping, ".pt", True),
        (bfloat, ".pt", False),
        (array_by_torch, ".pt", True),
        (array_by_pickle, ".pt", True),
        (array_by_pickle_5, ".pt", True),
        (npy, ".npy", True),
    ],
)
def test_every_producer(write: Callable[[Path], None], suffix: str, exact: bool, tmp_path: Path) -> None:
    path = tmp_path / f"slide{suffix}"
    write(path)
    facts = files.facts_of(path)
    assert (facts.instances, facts.dim) == (70, 5)
    found = files.read(path)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, BAG, rtol=0 if exact else 1e-2)
    some = np.array([0, 3, 31, 32, 69])
    np.testing.assert_array_equal(files.read(path, some), found[some])
    assert files.odd_instances(path) == 0
    if exact:  # whatever the format
        np.save(tmp_path / "same.npy", BAG)
        assert files.fingerprint(path) == files.fingerprint(tmp_path / "same.npy")


def test_attributes_and_coordinates(tmp_path: Path) -> None:
    trident(tmp_path / "a.h5")
    uni2(tmp_path / "b.h5")
    facts = files.facts_of(tmp_path / "a.h5")
    assert facts.encoder == "uni_v1"
    assert facts.dtype == "float16"
    assert dict(facts.geometry) == {"patch_size": 256, "downsample": [4.0, 4.0], "level0_magnification": None}  # a text
    for name in ("a.h5", "b.h5"):
        np.testing.assert_array_equal(files.read_coords(tmp_path / name), PLACES)
    tensor(tmp_path / "c.pt")
    assert files.read_coords(tmp_path / "c.pt") is None
    assert files.slide_id(Path("x/TCGA-01.2_patches.h5")) == "TCGA-01.2"


@pytest.mark.parametrize("shape", [(0, 5), (0,), (1, 0, 5)])
def test_an_empty_slide_is_an_empty_bag(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "glass.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=np.zeros(shape, dtype=np.float32))
        file.create_dataset("coords", data=np.zeros((0, 2)))  # floats, as TRIDENT writes there
    facts = files.facts_of(path)
    assert facts.instances == 0
    assert facts.dim == (None if shape == (0,) else 5)
    assert len(files.read(path)) == 0
    assert len(files.fingerprint(path)) == 64


def test_written_bags_are_read_back(tmp_path: Path) -> None:
    files.write_bag(tmp_path / "a.h5", BAG, PLACES, encoder="resnet18")
    assert files.facts_of(tmp_path / "a.h5").encoder == "resnet18"
    np.testing.assert_array_equal(files.read(tmp_path / "a.h5"), BAG)
    np.testing.assert_array_equal(files.read_coords(tmp_path / "a.h5"), PLACES)


# ── refused ─────────────────────────────────────────────────────────────────────────────────────────────────
class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def by_torch(thing: object, path: Path) -> None:
    torch.save(thing, path)


def by_torch_old(thing: object, path: Path) -> None:
    torch.save(thing, path, _use_new_zipfile_serialization=False)


def by_pickle(thing: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(thing))


@pytest.mark.parametrize("write", [by_torch, by_torch_old, by_pickle])
@pytest.mark.parametrize("inside", ["alone", "in an array", "in a list"])
def test_a_pickle_that_runs_something_is_refused(
    write: Callable[[object, Path], None], inside: str, tmp_path: Path
) -> None:
    mark, path = tmp_path / "ran", tmp_path / "slide.pt"
    evil: object = Evil(mark)
    write({"alone": evil, "in an array": np.array([evil], dtype=object), "in a list": [BAG, evil]}[inside], path)
    with pytest.raises(DataError, match=r"slide\.pt"):
        files.facts_of(path)
    assert not mark.exists()
    if write is by_pickle and inside == "alone":  # the file would have run it
        pickle.loads(path.read_bytes())
        assert mark.exists()


def test_only_the_codec_of_bytes_is_offered(tmp_path: Path) -> None:
    from morphfed.data.bags.pickles import load_array

    path = tmp_path / "slide.pt"
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
    with pytest.raises(DataError, match="rot13"):
        load_array(path)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"coords": PLACES}, r"no dataset 'features' \(it holds coords\)"),
        ({}, "it holds nothing"),
        ({"features": BAG[0]}, r"one vector of the whole slide"),
        ({"features": np.stack([BAG, BAG])}, r"shape \(2, 70, 5\)"),
        ({"features": np.array([b"a", b"b"])}, "numbers were expected"),
    ],
)
def test_h5_that_is_no_bag(datasets: dict[str, Any], message: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        for name, data in datasets.items():
            file.create_dataset(name, data=data)
    with pytest.raises(DataError, match=message):
        files.facts_of(tmp_path / "slide.h5")


@pytest.mark.parametrize(("write", "suffix"), [(clam, ".h5"), (tensor, ".pt"), (npy, ".npy"), (array_by_torch, ".pt")])
@pytest.mark.parametrize("kept", [0, 200])
def test_a_file_cut_short_is_named(write: Callable[[Path], None], suffix: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / f"slide{suffix}"
    write(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="slide"):
        files.read(path)


def test_a_missing_file_and_another_suffix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        files.facts_of(tmp_path / "slide.h5")
    (tmp_path / "slide.txt").write_text("x")
    with pytest.raises(DataError, match="no bag file"):
        files.facts_of(tmp_path / "slide.txt")


def test_instances_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    bag = np.tile(BAG, (100, 1))
    bag[3, 1], bag[6000, 0], bag[6000, 4] = np.nan, np.inf, np.nan
    np.save(tmp_path / "slide.npy", bag)
    assert files.odd_instances(tmp_path / "slide.npy") == 2


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────
PEAK = """
import sys
from pathlib import Path
import h5py, numpy as np, torch
from morphfed.data.bags import files
from morphfed.data.bags.store import BagStore, Standard

def memory(line):
    text = Path("/proc/self/status").read_text()
    return int(text.split(line + ":")[1].split()[0]) * 1024

small, *paths = [Path(p) for p in sys.argv[2:]]
files.read(small)  # what the libraries themselves need
for path in paths:
    n, d = files.facts_of(path).instances, 256
    standard = Standard(np.zeros(d, np.float32), np.ones(d, np.float32)) if sys.argv[1] == "standardised" else None
    store = BagStore([path], np.array([n]), d, [standard])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = memory("VmRSS")
    bag = torch.from_numpy(store.read(0))
    print(memory("VmHWM") - before, bag.nbytes)
    del bag
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is measured as Linux tells it")
@pytest.mark.parametrize(("dtype", "how"), [("float32", "plain"), ("float16", "standardised")])
def test_a_long_bag_needs_its_own_size_and_no_more(dtype: str, how: str, tmp_path: Path) -> None:
    clam(tmp_path / "small.h5")
    for instances in (40_000, 80_000):
        with h5py.File(tmp_path / f"{instances}.h5", "w") as file:
            file.create_dataset("features", data=np.ones((instances, 256), dtype=dtype), chunks=(32, 256))
    paths = [str(tmp_path / f"{name}.h5") for name in ("small", "40000", "80000")]
    done = subprocess.run([sys.executable, "-c", PEAK, how, *paths], capture_output=True, text=True, check=True)
    (one, size), (two, twice) = ([int(part) for part in line.split()] for line in done.stdout.splitlines())
    assert twice == 2 * size == 80_000 * 256 * 4
    assert one < 1.05 * size + 16 * 2**20
    assert two < 1.05 * twice + 16 * 2**20  # in proportion: a second copy would be 78 MiB more
