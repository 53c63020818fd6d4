"""Masks: what their values stand for, what is refused, and that they stay on their pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from morphfed.core.errors import DataError
from morphfed.core.files import sha256_file
from morphfed.core.seeding import torch_stream
from morphfed.data.augment import Augment, AugmentConfig
from morphfed.data.cache import cut
from morphfed.data.decode import decode_mask
from morphfed.data.masks import (
    OTHER_SIZE,
    UNKNOWN_VALUES,
    UNREADABLE,
    Mask,
    MaskStore,
    cut_mask,
    indices,
    known_values,
    look,
)


def saved(values: NDArray[np.uint8], path: Path, mode: str | None = None) -> Path:
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize(
    ("structures", "given", "expected"),
    [
        (("nucleus", "cytoplasm"), {}, {0: 0, 1: 1, 2: 2}),
        (("cell",), {}, {0: 0, 1: 1, 255: 1}),
        (("nucleus",), {"nucleus": 255, "cytoplasm": 128}, {0: 0, 128: 0, 255: 1}),
        (("cytoplasm", "nucleus"), {"nucleus": 255, "cytoplasm": 128}, {0: 0, 128: 1, 255: 2}),
        (("cell",), {"cell": (128, 255)}, {0: 0, 128: 1, 255: 1}),
        (("cell",), {"cell": 0}, {0: 1}),
    ],
)
def test_what_values_stand_for(structures: tuple[str, ...], given: dict[str, int], expected: dict[int, int]) -> None:
    assert known_values(structures, given) == expected


def test_values_that_are_missing_or_shared() -> None:
    with pytest.raises(DataError, match="no value for 'cytoplasm'; they know nucleus"):
        known_values(("nucleus", "cytoplasm"), {"nucleus": 255})
    with pytest.raises(DataError, match="share the value 7"):
        known_values(("a", "b"), {"a": 7, "b": (7, 8)})


def test_an_unknown_value_is_the_nearest_known_one() -> None:
    values = np.array([[0, 45, 64, 65, 128, 191, 192, 255]])
    assert indices(values, {0: 0, 128: 2, 255: 1}).tolist() == [[0, 0, 0, 2, 2, 2, 1, 1]]


def test_looking_at_a_mask(tmp_path: Path) -> None:
    known = {0: 0, 128: 2, 255: 1}
    values = np.zeros((20, 30), dtype=np.uint8)
    values[:5], values[5:10, :3] = 255, 128
    facts = look(saved(values, tmp_path / "a.png"), (30, 20), known)
    assert (facts.problem, facts.pixels, facts.stray) == ("", (600 - 150 - 15, 150, 15), 0)
    assert facts.sha256 == sha256_file(tmp_path / "a.png")
    values[19, :6] = 130  # 1 %
    facts = look(saved(values, tmp_path / "b.png"), (30, 20), known)
    assert (facts.problem, facts.stray, facts.detail) == ("", 6, "130 in 6 pixels")
    assert facts.pixels == (600 - 150 - 15 - 6, 150, 21)
    values[19, 6] = 9
    facts = look(saved(values, tmp_path / "c.png"), (30, 20), known)
    assert (facts.problem, facts.detail) == (UNKNOWN_VALUES, "130 in 6 pixels, 9 in 1 pixels")
    facts = look(tmp_path / "a.png", (20, 30), known)
    assert (facts.problem, facts.detail) == (OTHER_SIZE, "30×20 pixels, its image 20×30")
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    for name in ("d.png", "missing.png"):
        facts = look(tmp_path / name, (30, 20), known)
        assert facts.problem == UNREADABLE
        assert name in facts.detail


def test_masks_in_other_modes(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    grey_as_rgb = saved(values, tmp_path / "rgb.png", "RGB")
    assert decode_mask(grey_as_rgb.read_bytes(), "rgb").tolist() == values.tolist()
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.save(tmp_path / "p.png")
    assert decode_mask((tmp_path / "p.png").read_bytes(), "p").tolist() == values.tolist()
    bilevel = saved(values * 255, tmp_path / "1.png", "1")
    assert set(np.unique(decode_mask(bilevel.read_bytes(), "1"))) == {0, 1}
    colour = np.zeros((2, 2, 3), dtype=np.uint8)
    colour[0, 0] = 9, 0, 0
    with pytest.raises(DataError, match="coloured picture"):
        decode_mask(saved(colour, tmp_path / "c.png").read_bytes(), "c")


@pytest.mark.parametrize("shape", [(90, 120), (121, 77)])
@pytest.mark.parametrize(("crop", "pad"), [(None, "none"), (51, "none"), (150, "edge"), (150, "none")])
def test_a_mask_is_cut_as_its_picture(tmp_path: Path, shape: tuple[int, int], crop: int | None, pad: str) -> None:
    """The mask drawn as a picture goes through the pictures' path; both must show the same region."""
    rows, columns = np.indices(shape)
    region = ((rows - 40) / 22) ** 2 + ((columns - 37) / 13) ** 2 < 1
    picture = saved((np.repeat(region[..., None], 3, axis=2) * 255).astype(np.uint8), tmp_path / "a.png")
    image = cut(picture, size=64, crop_px=crop, pad=pad)[..., 0] > 127  # type: ignore[arg-type]
    mask = cut_mask(region.astype(np.uint8), size=64, crop_px=crop, pad=pad) == 1  # type: ignore[arg-type]
    assert mask.any()
    assert (mask != image).mean() < 0.01  # along the outline, interpolated and nearest differ
    for axis in (0, 1):
        assert abs(np.nonzero(mask)[axis].mean() - np.nonzero(image)[axis].mean()) < 0.15


def test_the_store_keeps_masks_by_content_cut_and_meaning(tmp_path: Path) -> None:
    values = np.zeros((40, 40), dtype=np.uint8)
    values[10:30, 10:30] = 255
    path = saved(values, tmp_path / "m.png")
    store = MaskStore(tmp_path / "cache", size=16)
    masks = [Mask(path, sha256_file(path), None, {0: 0, 255: k}) for k in (1, 2)]
    gone = Mask(tmp_path / "gone.png", "0" * 64, None, {0: 0, 1: 1})
    notes = store.ensure([*masks, gone])
    assert list(notes.failed) == [str(gone.path)]
    found = store.gather(store.rows_of(store.key(m) for m in masks))
    assert (found.dtype, found.shape) == (np.uint8, (2, 16, 16))
    assert found[0].sum() * 2 == found[1].sum() > 0
    assert MaskStore(tmp_path / "cache", size=16).keys() == {store.key(m) for m in masks}
    saved(values + 0 * values, path)
    path.write_bytes(path.read_bytes() + b" ")
    assert "changed" in MaskStore(tmp_path / "other", size=16).ensure(masks[:1]).failed[str(path)]


def test_a_mask_moves_with_its_picture() -> None:
    rows, columns = np.indices((48, 48))
    region = torch.from_numpy((((rows - 20) / 14) ** 2 + ((columns - 26) / 8) ** 2 < 1).astype(np.uint8))
    masks = region.expand(16, -1, -1).contiguous() * 3
    images = (region.float()).expand(16, 3, -1, -1).contiguous()
    augment = Augment(AugmentConfig(strength=0, rotate_degrees=40, scale=0.3, shift=0.1))
    moved, along = augment.with_masks(images, masks, augment.draw(len(images), torch_stream(5)))
    assert along.dtype == torch.uint8
    assert set(along.unique().tolist()) == {0, 3}
    assert ((moved[:, 0] > 0.5) != (along == 3)).float().mean() < 0.01
    assert (along != masks).any(dim=(1, 2)).all()


def test_pictures_with_masks_change_as_those_without() -> None:
    images = torch.rand(6, 3, 24, 24, generator=torch_stream(1))
    augment = Augment(AugmentConfig())
    one = augment(images.clone(), torch_stream(2))
    draws = augment.draw(len(images), torch_stream(2))
    other, _ = augment.with_masks(images.clone(), torch.zeros(6, 24, 24, dtype=torch.uint8), draws)
    assert torch.equal(one, other)


@pytest.mark.shared
def test_a_real_pair_stays_aligned(shared_data: Path) -> None:
    """A nucleus absorbs more light than what is around it: most of all under its own mask, not under a shifted one."""
    folder = shared_data / "cells" / "segmentation_WBC"
    for path, crop in ((folder / "Dataset 1" / "001.bmp", 90), (folder / "Dataset 2" / "001.bmp", None)):
        mask = decode_mask(path.with_suffix(".png").read_bytes(), path)
        small = cut_mask(indices(mask, {0: 0, 128: 2, 255: 1}), size=96, crop_px=crop, pad="none") == 1
        dark = 255.0 - cut(path, size=96, crop_px=crop)[..., 1]

        def contrast(dy: int, dx: int, dark: NDArray[np.float64] = dark, small: NDArray[np.bool_] = small) -> float:
            shifted = np.roll(small, (dy, dx), (0, 1))
            return float(dark[shifted].mean() - dark[~shifted].mean())

        best = max((contrast(dy, dx), dy, dx) for dy in range(-4, 5) for dx in range(-4, 5))
        assert abs(best[1]) <= 1, path
        assert abs(best[2]) <= 1, path
        assert best[0] > 20
