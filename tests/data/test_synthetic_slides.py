"""Synthetic slides: what is in them, against their masks; bytes against the seed."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from morphfed.core.errors import ConfigError
from morphfed.core.progress import Event
from morphfed.core.seeding import numpy_stream
from morphfed.data.synthetic.slides import CENTRES, LABELS, Centre, draw_slide, write_slides
from morphfed.data.synthetic.tissue import GLASS, TISSUE, TUMOUR, Tissue

pytest.importorskip("imagecodecs")
ELM = CENTRES["elm"]


def drawn(task: str, positive: bool, centre: Centre = ELM, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return draw_slide(task, centre, numpy_stream(seed, task), positive=positive, side_um=1024)  # type: ignore[arg-type]


def test_a_nucleus_has_its_size_and_direction() -> None:
    tissue = Tissue(256, 0.5, np.random.default_rng(0))
    tissue.nuclei(np.array([[128.0, 128.0]]), radius=(6.0, 6.0), aspect=(4.0, 4.0), angle=np.array([0.0]), depth=1.0)
    spot = tissue.haematoxylin > 0.4
    assert spot.sum() * 0.25 == pytest.approx(np.pi * 36, rel=0.1)  # area of a circle of 6 µm
    rows, columns = np.nonzero(spot)
    assert np.ptp(columns) * 0.5 == pytest.approx(24, abs=1.5)
    assert np.ptp(rows) * 0.5 == pytest.approx(6, abs=1.5)
    assert (columns.mean() + 0.5) * 0.5 == pytest.approx(128, abs=0.3)


def test_points_are_as_dense_as_asked() -> None:
    points = Tissue(1000, 2.0, np.random.default_rng(0)).scatter(2500)
    inside = ((points > 0) & (points < 1000)).all(axis=1)
    assert inside.sum() == pytest.approx(2500, rel=0.05)


@pytest.mark.parametrize("centre", CENTRES)
def test_the_tumour_is_where_the_mask_says(centre: str) -> None:
    """Nuclei are dark: in the solid tumour they cover several times as much as outside."""
    pixels, regions = drawn("tumour", True, CENTRES[centre])
    dark = ndimage.uniform_filter(pixels.min(axis=2).astype(float), 5)
    tissue, tumour = (dark[regions == kind] for kind in (TISSUE, TUMOUR))
    share = (regions == TUMOUR).sum() / (regions != GLASS).sum()
    assert 0.02 < share < 0.3
    limit = np.median(tissue) * 0.7
    assert (tumour < limit).mean() > 3 * (tissue < limit).mean()
    assert np.median(pixels[regions == GLASS]) > 215


def test_a_slide_without_tumour_has_none() -> None:
    _, regions = drawn("tumour", False)
    assert set(np.unique(regions)) == {GLASS, TISSUE}


def test_subtypes_differ_in_texture_only() -> None:
    """Both are tumours of like size; the first has lumens (bright spots), the second long nuclei."""
    bright = []
    for positive in (False, True):
        pixels, regions = drawn("subtype", positive)
        inside = ndimage.binary_erosion(regions == TUMOUR, iterations=10)
        assert 0.25 < (regions == TUMOUR).sum() / (regions != GLASS).sum() < 0.7
        bright.append((pixels.min(axis=2)[inside] > 200).mean())
    assert bright[0] > 0.04
    assert bright[1] < 0.005


def test_centres_look_unlike_each_other() -> None:
    """The hue of the tissue, as the direction of its optical density: however strong a slide is stained."""
    hues = []
    for centre in CENTRES.values():
        pixels, regions = draw_slide("tumour", centre, numpy_stream(0, "hue"), positive=False, side_um=512)
        density = -np.log(np.median(pixels[regions == TISSUE], axis=0) / np.median(pixels[regions == GLASS], axis=0))
        hues.append(density / np.linalg.norm(density))
    for i, one in enumerate(hues):
        for other in hues[:i]:
            assert np.degrees(np.arccos(one @ other)) > 4


def test_files_tables_and_masks(tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    said: list[Event] = []
    table = write_slides(tmp_path, "subtype", per_centre=6, side_um=320, seed=3, report=said.append)
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert len(rows) == 24
    assert list(rows[0]) == ["case_id", "slide_id", "label", "institute"]
    for centre in CENTRES:
        own = [row for row in rows if row["institute"] == centre]
        assert Counter(row["label"] for row in own) == {"glandular": 3, "spindle": 3}
        labels = {(row["case_id"], row["label"]) for row in own}
        assert len(labels) == len({row["case_id"] for row in own}) == 4  # a patient's slides have one label
    assert {row["label"] for row in rows} == set(LABELS["subtype"])
    for centre in CENTRES.values():
        slide = openslide.OpenSlide(tmp_path / centre.name / "slides" / f"{centre.name}-000.tif")
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(centre.um_per_px)
        mask = np.asarray(Image.open(tmp_path / centre.name / "masks" / f"{centre.name}-000.png"))
        assert set(np.unique(mask)) <= {GLASS, TISSUE, TUMOUR}
        assert mask.shape[0] == pytest.approx(320 / 8, abs=2)
    assert said[-1].done == said[-1].total == 24


def test_large_slides_are_pyramids(tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    from morphfed.data.synthetic.slides import write_pyramid

    pixels, _ = drawn("tumour", True)
    write_pyramid(tmp_path / "a.tif", np.tile(pixels, (2, 1, 1)), 1.0)
    slide = openslide.OpenSlide(tmp_path / "a.tif")
    assert slide.level_dimensions == ((1024, 2048), (512, 1024), (256, 512))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_seed_gives_the_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_slides(tmp_path / name, "tumour", per_centre=2, side_um=256, seed=seed)
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[key] != c[key] for key in a if key.endswith(".tif"))


def test_too_few_or_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 slides a centre"):
        write_slides(tmp_path, "tumour", per_centre=1)
    with pytest.raises(ConfigError, match="of 100 µm"):
        write_slides(tmp_path, "tumour", side_um=100)
