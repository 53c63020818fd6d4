"""Stored features: computed once, of the right picture and view, and trained on."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from morphfed.data.augment import NO_AUGMENTATION, AugmentConfig
from morphfed.data.cache import ImageStore, Picture
from morphfed.training import features as module
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import pool
from morphfed.training.features import FeatureSet, FeatureStore, view, views_of
from morphfed.training.trainer import Trainer

SIZE = 8


@pytest.fixture
def images(tmp_path: Path) -> tuple[ImageStore, NDArray[np.int64]]:
    from PIL import Image

    from morphfed.core.files import sha256_file

    pictures = []
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        pictures.append(Picture(tmp_path / f"{i}.png", sha256_file(tmp_path / f"{i}.png")))
    store = ImageStore(tmp_path / "cache", size=SIZE)
    store.ensure(pictures)
    return store, store.rows(pictures)


class Counting:
    """Features that tell views apart: means of the four quarters' first channel."""

    def __init__(self) -> None:
        self.pictures = 0

    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.pictures += len(pictures)
        half = SIZE // 2
        parts = pictures[..., 0].reshape(-1, 2, half, 2, half).mean(axis=(2, 4))
        return parts.reshape(len(pictures), 4).astype(np.float32)


def quarters(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    return Counting()(picture[None])[0]


def test_views_by_augmentation() -> None:
    assert views_of(AugmentConfig()) == (0, 1, 2, 3, 4, 5, 6, 7)
    assert views_of(AugmentConfig(flips=False)) == (0, 1, 2, 3)
    assert views_of(NO_AUGMENTATION) == (0,)
    # Mirrored horizontally, vertically, both: in terms of view() these are 4, 6 and 2.
    picture = np.random.default_rng(0).integers(0, 255, (1, 4, 4, 3), dtype=np.uint8)
    mirrored = {picture[:, ::a, ::b].tobytes() for a in (1, -1) for b in (1, -1)}
    drawn = views_of(AugmentConfig(right_angles=False))
    assert {view(picture, v).tobytes() for v in drawn} == mirrored


def test_the_eight_views_are_the_symmetries_of_the_square() -> None:
    picture = np.arange(3 * 9, dtype=np.uint8).reshape(1, 3, 3, 3)
    found = {view(picture, v).tobytes() for v in range(8)}
    assert len(found) == 8
    assert found == {np.ascontiguousarray(np.rot90(p, k, (1, 2))).tobytes() for k in range(4)
                     for p in (picture, picture.transpose(0, 2, 1, 3))}  # fmt: skip


def test_each_image_and_view_once_and_at_its_place(images: tuple[ImageStore, NDArray[np.int64]]) -> None:
    store, rows = images
    compute = Counting()
    kept = FeatureStore(store, backbone="abc", width=4)
    assert kept.ensure(rows[:3], (0, 1, 5), compute) == 9
    assert kept.ensure(rows[[0, 0, 2]], (0, 1), compute) == 0  # the same image twice is no new image
    assert kept.ensure(rows, (0,), compute) == 2
    again = FeatureStore(store, backbone="abc", width=4)  # another process
    assert again.ensure(rows, (0,), lambda _: pytest.fail("computed again")) == 0
    places = again.places(rows[[2, 0, 0]], (1, 5))
    assert places.shape == (3, 2)
    found = again.gather(places.reshape(-1)).reshape(3, 2, 4)
    for n, i in enumerate((2, 0, 0)):
        picture = store.gather(rows[[i]])
        np.testing.assert_allclose(found[n, 0], quarters(np.rot90(picture[0], 1)))
        np.testing.assert_allclose(found[n, 1], quarters(np.rot90(picture[0][:, ::-1], 1)))


def test_other_backbones_have_other_features(images: tuple[ImageStore, NDArray[np.int64]]) -> None:
    store, rows = images
    FeatureStore(store, backbone="abc", width=4).ensure(rows, (0,), Counting())
    assert FeatureStore(store, backbone="def", width=4).keys() == frozenset()
    assert (
        len(ImageStore(store.folder.parent, size=SIZE).keys()) == 5
    )  # a folder within the image store does not disturb


def test_a_damaged_segment_is_computed_again(
    images: tuple[ImageStore, NDArray[np.int64]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows = images
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "SEGMENT_BYTES", 32)  # two vectors a segment
    kept = FeatureStore(store, backbone="abc", width=4)
    kept.ensure(rows, (0,), Counting())
    expected = kept.gather(kept.places(rows, (0,))[:, 0])
    files = sorted(kept.folder.glob("*.f32"))
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:-4])
    again, compute = FeatureStore(store, backbone="abc", width=4), Counting()
    assert 1 <= again.ensure(rows, (0,), compute) <= 2
    np.testing.assert_array_equal(again.gather(again.places(rows, (0,))[:, 0]), expected)


def _set(store: FeatureStore, rows: NDArray[np.int64], views: tuple[int, ...]) -> FeatureSet:
    places = store.places(rows, views)
    ids = np.array([str(r) for r in rows], dtype=object)
    return FeatureSet(store, places[:, 0], np.arange(len(rows)) % 2, 2, ids, ids, places)


def test_training_draws_views_and_prediction_does_not(images: tuple[ImageStore, NDArray[np.int64]]) -> None:
    store, rows = images
    kept = FeatureStore(store, backbone="abc", width=4)
    kept.ensure(rows, (0, 2), Counting())
    data = _set(kept, rows, (0, 2))
    config = TrainConfig(precision="fp32", batch_size=5)
    trainer = Trainer(config, mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device("cpu"), seed=0)
    plain, turned = (kept.gather(data.views[:, v]) for v in (0, 1))
    seen = np.zeros(2, dtype=int)
    for piece in chain.from_iterable(trainer._batches(data, "a", 1, 40)):
        for row in piece.inputs.numpy():
            one, two = (bool((np.abs(f - row).max(axis=1) == 0).any()) for f in (plain, turned))
            assert one != two  # exactly as stored: neither normalised nor perturbed
            seen += (one, two)
    assert seen.sum() == 200
    assert 60 < seen[0] < 140  # even: 100 ± 7 (one standard deviation)
    model = torch.nn.Linear(4, 2)
    with torch.no_grad():
        expected = model(torch.from_numpy(plain)).softmax(1).numpy()
    np.testing.assert_allclose(trainer.predict(model, data), expected, rtol=1e-5)


def test_pooled_sets_keep_their_views(images: tuple[ImageStore, NDArray[np.int64]]) -> None:
    store, rows = images
    kept = FeatureStore(store, backbone="abc", width=4)
    kept.ensure(rows, (0, 3), Counting())
    joined = pool([_set(kept, rows[:2], (0, 3)), _set(kept, rows[2:], (0, 3))])
    assert isinstance(joined, FeatureSet)
    np.testing.assert_array_equal(joined.views, kept.places(rows, (0, 3)))
    assert len(joined) == 5
