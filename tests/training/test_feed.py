"""Batches on the way that a GPU's take, run on the CPU: the same bytes, the same order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.federated import make_mask_set, make_set
from torch import nn

from morphfed.core.errors import TrainingError
from morphfed.tasks.base import Task
from morphfed.tasks.classification import CLASSIFICATION
from morphfed.tasks.segmentation import SEGMENTATION
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet, MaskSet
from morphfed.training.features import FeatureSet
from morphfed.training.optimise import make_optimizer
from morphfed.training.resident import ResidentStore, Room, bytes_of, free_bytes
from morphfed.training.trainer import Trainer
from morphfed.training.transfer import ahead

CPU = torch.device("cpu")


class Vectors:
    """A store of features."""

    def __init__(self, n: int, width: int) -> None:
        self.values = np.random.default_rng(1).normal(size=(n, width)).astype(np.float32)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.values[rows]


def feature_set(n: int = 11, views: int = 4) -> FeatureSet:
    ids = np.array([str(i) for i in range(n)], dtype=object)
    places = np.random.default_rng(2).permutation(n * views).reshape(n, views)
    return FeatureSet(Vectors(n * views, 6), places[:, 0], np.arange(n) % 2, 2, ids, ids, places)


def network(data: ImageSet) -> nn.Module:
    torch.manual_seed(0)
    if isinstance(data, FeatureSet):
        return nn.Sequential(nn.Linear(6, 2))
    if isinstance(data, MaskSet):
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Conv2d(4, 2, 1))
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def trainer(*, waits: bool = True, task: Task = CLASSIFICATION, **keys: object) -> Trainer:
    config = TrainConfig(**{"precision": "fp32", "batch_size": 4, "lr": 0.01, **keys})  # type: ignore[arg-type]
    made = Trainer(config, mean=(0.5,) * 3, std=(0.25,) * 3, device=CPU, seed=0, task=task)
    made._waits = waits
    return made


def resident(data: ImageSet) -> ImageSet:
    stores = {name: ResidentStore(store, rows, CPU) for name, (store, rows) in data.stored().items()}
    return replace(data, **stores)


@pytest.mark.parametrize(
    "data", [make_set(18, 0), feature_set(), make_mask_set(18, 0)], ids=["images", "features", "masks"]
)
@pytest.mark.parametrize("on_device", [False, True], ids=["hosted", "resident"])
def test_a_gpus_way_gives_the_bytes_of_the_plain_one(data: ImageSet, on_device: bool) -> None:
    def fit(waits: bool, images: ImageSet) -> tuple[dict[str, torch.Tensor], float, np.ndarray]:
        model, t = network(data), trainer(waits=waits, task=task, local_epochs=2)
        report = t.fit(model, make_optimizer(t.config, model), images, site="a", round_number=1, rounds=2)
        assert t.loss(model, images) == pytest.approx(t.loss(model, data), rel=1e-6)
        return model.state_dict(), report.loss, t.answers(model, images, views=1, batch_size=5)

    task = SEGMENTATION if isinstance(data, MaskSet) else CLASSIFICATION
    state, loss, found = fit(True, data)
    other, other_loss, other_found = fit(False, resident(data) if on_device else data)
    assert all(torch.equal(state[k], other[k]) for k in state)
    assert loss == other_loss
    np.testing.assert_array_equal(found, other_found)


def test_a_resident_prediction_over_views_is_that_of_the_store() -> None:
    for data, views in ((make_set(5, 0), 8), (feature_set(5, 8), 8)):
        model = network(data)
        plain = trainer().predict(model, data, views=views)  # type: ignore[arg-type]
        np.testing.assert_array_equal(plain, trainer().predict(model, resident(data), views=views))  # type: ignore[arg-type]


def test_masks_on_the_host_beside_pictures_on_a_device_are_refused() -> None:
    data = make_mask_set(4, 0)
    half = replace(data, store=ResidentStore(data.store, data.rows_used(), CPU))
    with pytest.raises(TypeError, match="their masks are not"):
        half.marks(np.arange(2))


def test_without_waiting_a_loss_that_is_not_finite_is_still_refused_at_the_end() -> None:
    data, model = make_set(8, 0), network(make_set(2, 0))
    with torch.no_grad():
        model[0].weight[0] = torch.nan
    t = trainer(waits=False)
    with pytest.raises(TrainingError, match=r"'a', round 1: .* at or before step 2"):
        t.fit(model, make_optimizer(t.config, model), data, site="a", round_number=1, rounds=1)


def test_resident_rows_are_found_again_and_others_refused() -> None:
    data = make_set(9, 3)
    store = ResidentStore(data.store, np.array([7, 2, 2, 5]), CPU)
    assert store.rows.tolist() == [2, 5, 7]
    assert store.values.dtype == torch.uint8
    assert store.values.shape == (3, 8, 8, 3)
    wanted = np.array([5, 2, 7, 5])
    np.testing.assert_array_equal(store.fetch(wanted).numpy(), data.store.gather(wanted))
    for missing in ([3], [8], [0]):
        with pytest.raises(KeyError, match=f"row {missing[0]} is not on the device"):
            store.places(np.array([5, *missing]))
    np.testing.assert_array_equal(store.gather(np.array([3])), data.store.gather(np.array([3])))


def test_rows_are_copied_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_set(9, 3)
    monkeypatch.setattr("morphfed.training.resident.CHUNK_BYTES", 2 * 8 * 8 * 3)
    np.testing.assert_array_equal(
        ResidentStore(data.store, data.rows, CPU).values.numpy(), data.store.gather(data.rows)
    )


def test_memory_by_hand() -> None:
    # Half of 1000 free bytes is reserved; two processes have 250 each.
    assert Room(needed=500, free=1000).fits
    assert not Room(needed=501, free=1000).fits
    assert Room(needed=250, free=1000, processes=2).fits
    assert not Room(needed=251, free=1000, processes=2).fits
    data = make_set(9, 0)
    assert bytes_of(data.store, np.array([1, 1, 4])) == 2 * 8 * 8 * 3
    features = feature_set()
    assert bytes_of(features.store, features.rows_used()) == 44 * 6 * 4
    assert free_bytes(CPU) == 0


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_what_is_prepared_ahead_keeps_its_order(depth: int) -> None:
    assert list(ahead(iter(range(7)), depth=depth, device=CPU)) == list(range(7))
    assert list(ahead(iter([]), depth=depth, device=CPU)) == []


def test_the_next_item_is_prepared_while_the_first_is_used() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(9):
            made.append(i)
            yield i

    stream = ahead(items(), depth=2, device=CPU)
    assert next(stream) == 0
    limit = time.monotonic() + 30
    while len(made) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    assert made == [0, 1, 2]
    stream.close()  # type: ignore[attr-defined]
    assert made == [0, 1, 2], "nothing is prepared after the end"


def test_an_error_of_the_thread_arrives_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("row 5")

    stream = ahead(items(), depth=2, device=CPU)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="row 5"):
        next(stream)
