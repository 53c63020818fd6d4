"""The scale from the cells: against drawn discs, and against the expert masks of two real labs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphfed.data.decode import decode
from morphfed.data.scale import REFERENCE_NUCLEUS_UM, crop_side, estimate_scale, nucleus_diameter


def _cell(diameter: float, size: int = 120, seed: int = 0) -> np.ndarray:
    """A dark violet disc in a pale one on a cream ground, with some noise."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    r = np.hypot(x, y)
    image = np.full((size, size, 3), (245, 232, 210), dtype=float)
    image[r < diameter * 0.85] = (205, 190, 215)
    image[r < diameter / 2] = (80, 50, 130)
    image += np.random.default_rng(seed).normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("diameter", [25.0, 40.0, 55.0])
def test_diameter_of_a_drawn_nucleus(diameter: float) -> None:
    assert nucleus_diameter(_cell(diameter)) == pytest.approx(diameter, rel=0.04)


@pytest.mark.parametrize("image", [np.zeros((50, 50, 3), np.uint8), np.full((50, 50, 3), 255, np.uint8)])
def test_nothing_to_find(image: np.ndarray) -> None:
    assert nucleus_diameter(image) is None


def test_estimate_is_the_reference_over_the_median(tmp_path: Path) -> None:
    files = []
    for i, diameter in enumerate((30.0, 40.0, 40.0, 40.0, 50.0, 40.0)):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(_cell(diameter, seed=i)).save(files[-1])
    (tmp_path / "bad.png").write_text("no image")
    scale = estimate_scale([*files, tmp_path / "bad.png"], decode=decode)
    assert scale.origin == "nucleus"
    assert (scale.found, scale.looked_at) == (6, 7)
    assert scale.um_per_px == pytest.approx(REFERENCE_NUCLEUS_UM / 40, rel=0.04)


def test_too_few_nuclei_give_no_scale(tmp_path: Path) -> None:
    Image.fromarray(_cell(40)).save(tmp_path / "x.png")
    scale = estimate_scale([tmp_path / "x.png"], decode=decode)
    assert (scale.um_per_px, scale.origin) == (None, "none")


def test_crop_side() -> None:
    assert crop_side(25.0, 0.1) == 250
    assert crop_side(0.0, 0.1) is None
    assert crop_side(25.0, None) is None


@pytest.mark.shared
@pytest.mark.parametrize("lab", ["Dataset 1", "Dataset 2"])
def test_against_the_masks_of_a_real_lab(lab: str, shared_data: Path) -> None:
    """Median nucleus diameter within 10 % of the one that the lab's masks give."""
    files = sorted((shared_data / "cells" / "segmentation_WBC" / lab).glob("*.bmp"))
    scale = estimate_scale(files, decode=decode)
    masks = [np.asarray(Image.open(p.with_suffix(".png"))) for p in files]
    expected = np.median([np.sqrt(4 * (m > 200).sum() / np.pi) for m in masks])
    assert scale.nucleus_px == pytest.approx(expected, rel=0.10)


@pytest.mark.shared
def test_the_known_scale_of_barcelona_is_recovered(shared_data: Path) -> None:
    root = shared_data / "cells" / "PBC_dataset_normal_DIB"
    files = [
        p for c in ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil") for p in (root / c).glob("*.jpg")
    ]
    assert estimate_scale(files, decode=decode).um_per_px == pytest.approx(0.1, rel=0.05)
