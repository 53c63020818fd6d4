"""Augmentation: exact where it can be, reproducible, in range, off when off."""

from __future__ import annotations

import pytest
import torch

from morphfed.core.seeding import torch_stream
from morphfed.data.augment import NO_AUGMENTATION, Augment, AugmentConfig, mix_channels, move


def _images(n: int = 6, size: int = 12) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_same_stream_same_bytes_and_another_stream_not() -> None:
    augment = Augment(AugmentConfig())
    one = augment(_images(), torch_stream(0, "a"))
    assert torch.equal(one, augment(_images(), torch_stream(0, "a")))
    assert not torch.equal(one, augment(_images(), torch_stream(0, "b")))


def test_all_off_changes_nothing() -> None:
    images = _images()
    assert torch.equal(Augment(NO_AUGMENTATION)(images.clone(), torch_stream(0)), images)


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_range_and_shape(strength: float) -> None:
    out = Augment(AugmentConfig(strength=strength))(_images(32), torch_stream(3))
    assert out.shape == (32, 3, 12, 12)
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.isfinite(out).all()


def test_right_angles_and_flips_are_the_eight_symmetries_of_the_square() -> None:
    augment = Augment(NO_AUGMENTATION.model_copy(update={"flips": True, "right_angles": True}))
    images = _images(64)
    out = augment(images.clone(), torch_stream(0))
    seen = set()
    for before, after in zip(images, out, strict=True):
        options = [torch.rot90(f, k, (1, 2)) for f in (before, before.flip(2)) for k in range(4)]
        distances = torch.stack([(o - after).abs().max() for o in options])
        assert distances.min() < 1e-4
        seen.add(int(distances.argmin()))
    assert seen == set(range(8))


def test_move_by_half_a_side() -> None:
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, :, 2:] = 1
    shifted = move(image, torch.tensor([[[1.0, 0, 1.0], [0, 1, 0]]]))  # looks half a side to the right
    assert torch.allclose(shifted[0, 0, 0, :2], torch.ones(2))


def test_stain_perturbation_keeps_clear_glass_clear() -> None:
    """Optical density zero stays zero without an offset: an empty field has no stain to change."""
    augment = Augment(NO_AUGMENTATION.model_copy(update={"stain": 0.5, "stain_mix": 0.2}))
    white = torch.ones(4, 3, 5, 5)
    assert torch.allclose(augment(white, torch_stream(0)), white)


def test_stain_strength_by_hand() -> None:
    augment = Augment(NO_AUGMENTATION.model_copy(update={"stain": 0.5}))
    images = torch.full((1, 3, 1, 1), 0.5)
    factor = torch.exp(torch.randn(1, 3, generator=torch_stream(7)) * 0.5)
    expected = 0.5**factor  # exp(-k · -log 0.5)
    assert torch.allclose(augment(images, torch_stream(7)).flatten(), expected.flatten(), atol=1e-6)


def test_hue_and_saturation_keep_grey_grey_and_brightness_scales() -> None:
    grey = torch.full((8, 3, 2, 2), 0.4)
    turned = Augment(NO_AUGMENTATION.model_copy(update={"hue": 0.3, "saturation": 0.9}))(grey.clone(), torch_stream(1))
    assert torch.allclose(turned, grey, atol=2e-3)
    lit = Augment(NO_AUGMENTATION.model_copy(update={"brightness": 0.5}))(grey.clone(), torch_stream(1))
    assert ((lit >= 0.2 - 1e-6) & (lit <= 0.6 + 1e-6)).all()
    assert lit.std() > 0.01


def test_mix_channels_by_hand() -> None:
    swap = torch.tensor([[[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]])
    image = torch.tensor([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1)
    assert mix_channels(image, swap).flatten().tolist() == pytest.approx([0.2, 0.1, 0.3])
