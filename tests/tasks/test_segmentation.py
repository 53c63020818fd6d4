"""Losses over masks against MONAI and by hand, and what turns with a picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from morphfed.core.seeding import torch_stream
from morphfed.tasks.segmentation import SEGMENTATION, MaskLossConfig, make_mask_loss, soft_dice
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import MaskSet, pool
from morphfed.training.trainer import Trainer, _views


def drawn(n: int = 5, classes: int = 3, side: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch_stream(3, n, classes)
    return torch.randn(n, classes, side, side, generator=g) * 2, torch.randint(0, classes, (n, side, side), generator=g)


def test_soft_dice_against_monai() -> None:
    from monai.losses import DiceLoss

    oracle = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0, batch=True
    )
    for classes in (2, 3, 5):
        logits, masks = drawn(classes=classes)
        assert soft_dice(logits, masks).item() == pytest.approx(oracle(logits, masks[:, None]).item(), abs=1e-6)


def test_soft_dice_by_hand() -> None:
    # One structure, four pixels, p = ½ everywhere; the truth has one of them: (2·½ + 1) / (2 + 1 + 1) = ½.
    logits, masks = torch.zeros(1, 2, 2, 2), torch.tensor([[[1, 0], [0, 0]]])
    assert soft_dice(logits, masks).item() == pytest.approx(0.5)
    # A structure that is nowhere and that nobody draws costs nothing.
    sure = torch.tensor([40.0, -40.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert soft_dice(sure, torch.zeros(1, 2, 2, dtype=torch.int64)).item() == pytest.approx(0.0, abs=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    logits, masks = drawn()
    config = MaskLossConfig(cross_entropy=0.3, dice=2.0)
    expected = 0.3 * F.cross_entropy(logits, masks) + 2.0 * soft_dice(logits, masks)
    counts = torch.tensor([1, 1, 1])
    assert make_mask_loss(config, counts)(logits, masks.to(torch.uint8)).item() == pytest.approx(expected.item())
    only = make_mask_loss(MaskLossConfig(cross_entropy=1.0, dice=0.0), counts)
    assert only(logits, masks).item() == pytest.approx(F.cross_entropy(logits, masks).item())
    with pytest.raises(ValidationError, match="at least one weight"):
        MaskLossConfig(cross_entropy=0, dice=0)


def test_every_view_comes_back_upright() -> None:
    images = torch.rand(2, 3, 7, 7, generator=torch_stream(1))
    for number, seen in enumerate(_views(images, 8)):
        assert torch.equal(SEGMENTATION.upright(seen, number), images), number


class Stored:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows]


def pictures(n: int, seed: int = 0, side: int = 16) -> MaskSet:
    """A red square on dark ground in each picture, somewhere else each time; its mask."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (n, side, side, 3), dtype=np.uint8)
    masks = np.zeros((n, side, side), dtype=np.uint8)
    for i in range(n):
        y, x = rng.integers(0, side - 6, 2)
        pixels[i, y : y + 6, x : x + 6, 0] += 150
        masks[i, y : y + 6, x : x + 6] = 1
    ids = np.array([f"{seed}/{i}" for i in range(n)], dtype=object)
    return MaskSet(
        Stored(pixels), np.arange(n), np.arange(n)[::1].astype(np.int64), 2, ids, ids, masks=Stored(masks),
        present=np.ones((n, 1), dtype=bool), um_per_px=np.full(n, np.nan),
    )  # fmt: skip


def trainer(**keys: object) -> Trainer:
    config = TrainConfig(**{"precision": "fp32", "batch_size": 4, "lr": 0.02, "channels_last": False, **keys})
    return Trainer(config, mean=(0.5,) * 3, std=(0.25,) * 3, device=torch.device("cpu"), seed=0, task=SEGMENTATION)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))


def test_a_small_network_learns_to_draw() -> None:
    data, loop, model = pictures(24), trainer(local_epochs=15), network()
    before = loop.loss(model, data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    report = loop.fit(model, optimizer, data, site="a", round_number=1, rounds=1)
    assert (report.steps, report.images) == (15 * 6, 15 * 24)
    assert loop.loss(model, data) < 0.2 * before
    new = pictures(8, seed=1)
    answers = loop.answers(model, new)
    assert (answers.dtype, answers.shape) == (np.uint8, (8, 16, 16))
    assert (answers == new.truth()).mean() > 0.98
    assert (loop.answers(model, new, views=8) == new.truth()).mean() > 0.98
    assert loop.answers(model, pool([new])).tobytes() == answers.tobytes()


def test_the_mean_loss_is_over_images_not_batches() -> None:
    batches = [(torch.zeros(n, 2, 2, 2), torch.zeros(n, 2, 2, dtype=torch.uint8)) for n in (3, 1)]
    values = iter([1.0, 5.0])
    found = SEGMENTATION.mean_loss(lambda logits, masks: torch.tensor(next(values)), batches)
    assert found == pytest.approx((3 * 1.0 + 1 * 5.0) / 4)
    uniform = SEGMENTATION.mean_loss(make_mask_loss(MaskLossConfig(dice=0), torch.ones(2)), batches)
    assert uniform == pytest.approx(math.log(2))


def test_counts_are_of_pixels_and_pooling_keeps_masks_with_their_pictures() -> None:
    a, b = pictures(3), pictures(2)
    assert a.class_counts.tolist() == [3 * 256 - 108, 108]
    both = pool([a, MaskSet(a.store, b.rows, b.labels, 2, b.ids, b.clusters, masks=a.masks, present=b.present,
                            um_per_px=b.um_per_px)])  # fmt: skip
    assert len(both) == 5
    assert np.array_equal(both.truth()[3:], a.truth()[:2])
    images, masks = both.batch(np.array([4]))
    assert np.array_equal(masks[0].numpy(), a.truth()[1])
    assert images.shape == (1, 3, 16, 16)
