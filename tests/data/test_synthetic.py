"""Synthetic films: sizes against physiology, looks against real cells, bytes against the seed."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import convex_hull_image

from morphfed.core.errors import ConfigError
from morphfed.core.progress import Event
from morphfed.core.seeding import numpy_stream
from morphfed.data.decode import decode
from morphfed.data.synthetic import CELL_CLASSES, PRESETS, SyntheticSite, render_cell, write_films
from morphfed.data.synthetic.canvas import Canvas
from morphfed.data.synthetic.cells import PAINTERS
from morphfed.data.synthetic.sites import AZURE, EOSIN

ALDER = PRESETS["alder"]

# Diameters in µm on dried films, as haematology atlases give them.
ATLAS = {
    "neutrophil": (12, 14.5),
    "band": (12, 14.5),
    "lymphocyte": (8, 11),
    "monocyte": (15, 20),
    "eosinophil": (12, 15.5),
    "basophil": (10.5, 14),
    "platelet": (2, 5),
    "erythroblast": (8, 11),
}


def painted(cell_class: str, seed: int) -> Canvas:
    canvas = Canvas(256, 0.1, np.random.default_rng(seed))
    PAINTERS[cell_class](canvas, (0.0, 0.0))
    return canvas


def diameter(canvas: Canvas) -> float:
    area = (canvas.dye.sum(axis=0) > 0.08).sum() * canvas.um_per_px**2
    return float(2 * np.sqrt(area / np.pi))


def nucleus(canvas: Canvas) -> NDArray[np.bool_]:
    return canvas.dye[AZURE] > 0.35


@pytest.mark.parametrize("cell_class", CELL_CLASSES)
def test_cells_have_their_physical_size(cell_class: str) -> None:
    low, high = ATLAS[cell_class]
    sizes = [diameter(painted(cell_class, seed)) for seed in range(12)]
    assert low <= np.median(sizes) <= high
    assert min(sizes) > 0.85 * low
    assert max(sizes) < 1.12 * high


def test_nuclei_tell_the_classes_apart() -> None:
    share, solidity = {}, {}
    for cell_class in ("neutrophil", "band", "lymphocyte", "monocyte"):
        shares, solidities = [], []
        for seed in range(10):
            canvas = painted(cell_class, seed)
            mask = ndimage.binary_closing(nucleus(canvas), iterations=3)
            shares.append(mask.sum() / (canvas.dye.sum(axis=0) > 0.08).sum())
            solidities.append(mask.sum() / convex_hull_image(mask).sum())
        share[cell_class], solidity[cell_class] = np.median(shares), np.median(solidities)
    assert share["lymphocyte"] > 0.6 > share["neutrophil"]
    assert 0.3 < share["monocyte"] < 0.7
    assert solidity["lymphocyte"] > 0.93  # round
    assert solidity["band"] < 0.85  # bent
    assert solidity["neutrophil"] < 0.85  # lobes with gaps between them


def test_granules_take_the_dye_that_names_them() -> None:
    def outside_nucleus(cell_class: str, dye: int) -> float:
        canvas = painted(cell_class, 3)
        body = ndimage.binary_erosion(canvas.dye.sum(axis=0) > 0.08, iterations=8)
        return float(canvas.dye[dye][body & ~nucleus(canvas)].mean())

    assert outside_nucleus("eosinophil", EOSIN) > 2 * outside_nucleus("neutrophil", EOSIN)
    dark = {c: (nucleus(painted(c, 3)) & (painted(c, 3).dye[AZURE] > 0.9)).sum() for c in ("basophil", "platelet")}
    assert dark["basophil"] > 20 * max(dark["platelet"], 1)


def test_red_cells_measure_seven_to_eight_micrometres() -> None:
    empty = ALDER.model_copy(update={"red_cells": 0.3, "gradient": 0.0, "noise": 0.0, "pallor": 0.2, "blur": 0.0})
    found = []
    for seed in range(30):
        image = render_cell("platelet", empty, np.random.default_rng(seed)).astype(float)
        blobs, _ = ndimage.label(image[..., 1] < 0.93 * np.median(image[..., 1]))
        for index, window in enumerate(ndimage.find_objects(blobs), start=1):
            area = (blobs[window] == index).sum() * ALDER.um_per_px**2
            inside = all(s.start > 0 and s.stop < ALDER.image_px for s in window)
            if inside and 25 < area < 70:  # whole, single, and not the platelet
                found.append(2 * np.sqrt(area / np.pi))
    assert len(found) > 10
    assert 7.0 <= np.median(found) <= 8.0


def test_same_stream_same_picture_other_stream_other_picture() -> None:
    a, b, c = (render_cell("monocyte", ALDER, numpy_stream(0, n)) for n in ("x", "x", "y"))
    assert a.shape == (ALDER.image_px, ALDER.image_px, 3)
    assert a.dtype == np.uint8
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_presets_differ_as_real_laboratories_do() -> None:
    colours = {
        name: np.mean([render_cell("neutrophil", site, numpy_stream(0, name, i)).mean((0, 1)) for i in range(6)], 0)
        for name, site in PRESETS.items()
    }
    names = sorted(colours)
    gaps = [np.abs(colours[a] - colours[b]).max() for i, a in enumerate(names) for b in names[i + 1 :]]
    assert len(names) == 4
    assert min(gaps) > 12  # grey levels; the spread inside a site is below 8
    assert len({(s.um_per_px, s.image_px) for s in PRESETS.values()}) == 4


def test_beer_lambert() -> None:
    """Twice the stain squares the light that passes: no noise, no blur, one dye."""
    site = ALDER.model_copy(update={"background": (1.0, 1.0, 1.0), "strength_sd": 0.0, "background_sd": 0.0})
    film = site.film(np.random.default_rng(0))
    assert np.allclose(np.exp(-film.vectors[AZURE]), site.azure, atol=1e-5)
    double = site.model_copy(update={"strength": 2.0}).film(np.random.default_rng(0))
    assert np.allclose(np.exp(-double.vectors), np.exp(-film.vectors) ** 2, atol=1e-5)


def checksums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_films_on_disk(tmp_path: Path) -> None:
    events: list[Event] = []
    sites = [ALDER, PRESETS["birch"]]
    counts = {"alder": {"neutrophil": 5, "platelet": 2}, "birch": {"monocyte": 3}}
    folders = write_films(tmp_path / "a", sites, counts, seed=7, patients=3, report=events.append)
    assert folders == {"alder": tmp_path / "a/alder", "birch": tmp_path / "a/birch"}
    with (folders["alder"] / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["label"] for r in rows] == ["neutrophil"] * 5 + ["platelet"] * 2
    assert [r["patient"] for r in rows[:4]] == ["alder-P00", "alder-P01", "alder-P02", "alder-P00"]
    assert {r["um_per_px"] for r in rows} == {"0.2"}
    assert all(decode(folders["alder"] / r["path"]).shape == (128, 128, 3) for r in rows)
    assert (events[0].done, events[-1].done, events[-1].total) == (0, 10, 10)


def test_bytes_depend_on_the_seed_alone(tmp_path: Path) -> None:
    both = [ALDER, PRESETS["birch"]]
    write_films(tmp_path / "a", both, {"band": 3, "platelet": 2}, seed=7)
    write_films(tmp_path / "b", both, {"band": 3, "platelet": 2}, seed=7, jobs=2)
    write_films(tmp_path / "c", [ALDER], {"band": 4}, seed=7)
    write_films(tmp_path / "d", [ALDER], {"band": 3}, seed=8)
    a, b, c, d = (checksums(tmp_path / x) for x in "abcd")
    assert a == b
    shared = "alder/band/P02_0002.jpg"
    assert a[shared] == c[shared]
    assert a[shared] != d[shared]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"neutrofil": 2}, "neutrofil"),
        ({"neutrophil": -1}, "-1 pictures"),
        ({"birch": {"neutrophil": 1}}, "not 'alder'"),
    ],
)
def test_wrong_counts(tmp_path: Path, counts: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        write_films(tmp_path, [ALDER], counts, seed=0)
    assert not any(tmp_path.iterdir())


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'monocyte'"):
        render_cell("monocite", ALDER, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="patients = 0"):
        write_films(tmp_path, [ALDER], {"band": 1}, seed=0, patients=0)
    with pytest.raises(ConfigError, match="one name"):
        write_films(tmp_path, [ALDER, ALDER], {"band": 1}, seed=0)
    with pytest.raises(ValueError, match="um_per_px"):
        SyntheticSite(name="x", um_per_px=0)


@pytest.mark.shared
def test_colours_lie_where_real_ones_do(shared_data: Path) -> None:
    """The crisp preset imitates Barcelona: mean colours agree within the spread of real cells."""
    folder = shared_data / "cells/PBC_dataset_normal_DIB"
    for prefix, cell_class in {
        "SNE": "neutrophil",
        "EO": "eosinophil",
        "LY": "lymphocyte",
        "MO": "monocyte",
    }.items():
        files = sorted(folder.rglob(f"{prefix}_*.jpg"))[:40]
        assert len(files) == 40
        real = np.array([decode(f)[110:250, 110:250].mean((0, 1)) for f in files])
        drawn = np.array(
            [
                render_cell(cell_class, ALDER, numpy_stream(0, cell_class, i))[29:99, 29:99].mean((0, 1))
                for i in range(40)
            ]
        )
        assert (np.abs(real.mean(0) - drawn.mean(0)) < 30).all(), (cell_class, real.mean(0), drawn.mean(0))
