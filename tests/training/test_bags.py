"""Bags in training: read as they are asked for, computed in pieces that add up to the batch."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from morphfed.data.bags.store import BagStore, Standard, standard_of
from morphfed.models.bags import Bags
from morphfed.models.mil import build_head
from morphfed.tasks.mil import MIL
from morphfed.training import bags as module
from morphfed.training.bags import BagSet
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import pool
from morphfed.training.trainer import Trainer

DIM = 3


def bag_set(folder: Path, sizes: list[int], *, seed: int = 0, max_instances: int | None = None) -> BagSet:
    """Bags with one bright instance are positive."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, places = np.random.default_rng(seed), []
    labels = np.arange(len(sizes)) % 2
    for i, (n, label) in enumerate(zip(sizes, labels, strict=True)):
        bag = draw.normal(size=(n, DIM)).astype(np.float32)
        bag[n // 2, 0] += 6 * label
        np.save(folder / f"{i}.npy", bag)
        places.append(folder / f"{i}.npy")
    n = len(sizes)
    store = BagStore(places, np.array(sizes), DIM, [None] * n)
    ids = np.array([f"{seed}/{i}" for i in range(n)], dtype=object)
    known = {"sizes": np.array(sizes), "dim": DIM, "max_instances": max_instances}
    return BagSet(store, np.arange(n), labels.astype(np.int64), 2, ids, ids, **known)  # type: ignore[arg-type]


def trainer(**train: object) -> Trainer:
    config = TrainConfig.model_validate({"precision": "fp32", "batch_size": 4, "schedule": "constant", **train})
    device = torch.device("cpu")
    return Trainer(config, mean=(0.0,) * 3, std=(1.0,) * 3, device=device, seed=0, task=MIL)


def head(name: str = "abmil", **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_head(name, DIM, 2, **{"hidden": (6,), "dropout": 0.0, **options})


def fit(t: Trainer, model: nn.Module, data: BagSet, rounds: int = 1) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=t.config.lr)
    reports = [t.fit(model, optimizer, data, site="a", round_number=r + 1, rounds=rounds) for r in range(rounds)]
    return reports[-1].loss


def test_a_step_is_the_gradient_of_the_mean_over_its_bags(tmp_path: Path) -> None:
    data, model = bag_set(tmp_path, [4, 1, 7, 3]), head()
    expected = copy.deepcopy(model)
    logits = [expected(torch.from_numpy(np.load(tmp_path / f"{i}.npy"))).logits for i in range(4)]
    F.cross_entropy(torch.stack(logits), torch.from_numpy(data.labels)).backward()
    with torch.no_grad():
        for p in expected.parameters():
            p -= 0.5 * p.grad
    fit(trainer(optimizer="sgd", lr=0.5, clip=0.0, warmup=0.0), model, data)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [{}, {"kind": "class_balanced", "beta": 0.9}, {"kind": "logit_adjusted"}])
@pytest.mark.parametrize("name", ["abmil", "clam_sb", "dsmil"])
def test_pieces_add_up_to_the_batch(
    name: str, loss: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bag_set(tmp_path, [4, 9, 7, 3, 5, 6, 8])
    whole, cut = head(name), head(name)
    how = {"optimizer": "sgd", "lr": 0.3, "loss": loss, "batch_size": 4}
    seen = []
    for model, most in ((whole, 10**6), (cut, 10 * DIM)):
        monkeypatch.setattr(module, "NUMBERS_AT_ONCE", most)
        seen.append([len(p) for p in data.pieces(np.arange(7))])
        fit(trainer(**how), model, data, rounds=2)
    assert seen == [[7], [1, 1, 2, 1, 1, 1]]
    for key, value in cut.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[key], rtol=1e-4, atol=1e-6)


def test_a_class_balanced_bag_alone_keeps_its_weight() -> None:
    config = TrainConfig.model_validate({"loss": {"kind": "class_balanced", "beta": 0.5}})
    criterion = MIL.criterion(config, torch.tensor([1, 3]))
    logits = torch.tensor([[0.2, -0.1]])
    raw = np.array([1.0, 0.5 / (1 - 0.5**3)])  # (1 - β) / (1 - β^n)
    weights = raw * 2 / raw.sum()
    for label in (0, 1):
        plain = F.cross_entropy(logits, torch.tensor([label]))
        assert float(criterion(logits, torch.tensor([label]))) == pytest.approx(float(plain) * weights[label], rel=1e-5)


def test_it_learns_which_bags_hold_the_bright_instance(tmp_path: Path) -> None:
    data, test = bag_set(tmp_path / "a", [5] * 40), bag_set(tmp_path / "b", [5] * 40, seed=1)
    model, t = head(hidden=(16,)), trainer(lr=0.02, local_epochs=20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    t.fit(model, optimizer, data, site="a", round_number=1, rounds=1)
    probabilities = t.predict(model, test)
    assert probabilities.shape == (40, 2)
    assert (probabilities.argmax(1) == test.labels).mean() > 0.85


def test_instances_are_drawn_anew_without_repeats(tmp_path: Path) -> None:
    data = bag_set(tmp_path, [50, 3], max_instances=10)
    whole = np.load(tmp_path / "0.npy")
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(2):
        found, labels = data.sample(np.array([0, 1]), generator)
        assert isinstance(found, Bags)
        assert found.sizes == (10, 3)
        assert labels.tolist() == [0, 1]
        first, short = (bag.numpy() for bag in found)
        np.testing.assert_array_equal(short, np.load(tmp_path / "1.npy"))
        rows = [int(np.flatnonzero((whole == one).all(axis=1))[0]) for one in first]
        assert sorted(set(rows)) == rows
        draws.append(rows)
    assert draws[0] != draws[1]
    assert data.read(np.array([0])).sizes == (50,)  # judged on all of them


def test_same_seed_same_bytes_and_another_site_another_order(tmp_path: Path) -> None:
    data = bag_set(tmp_path, [5, 6, 7, 8, 9, 4], max_instances=4)
    models = [head(dropout=0.3) for _ in range(3)]
    for model, site in zip(models, ("a", "a", "b"), strict=True):
        t = trainer(lr=0.1)
        t.fit(model, torch.optim.SGD(model.parameters(), lr=0.1), data, site=site, round_number=1, rounds=1)
    one, two, other = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_pooled_bags_keep_their_sizes(tmp_path: Path) -> None:
    data = bag_set(tmp_path, [5, 6, 7, 8])
    first, second = data.only(np.arange(4) < 2), data.only(np.arange(4) >= 2)
    joined = pool([second, first])
    assert isinstance(joined, BagSet)
    assert joined.sizes.tolist() == [7, 8, 5, 6]
    assert joined.read(joined.rows).sizes == (7, 8, 5, 6)
    assert joined.sites == 2


def test_standardising_is_numpys(tmp_path: Path) -> None:
    data = bag_set(tmp_path, [5, 1, 30])
    places = [tmp_path / f"{i}.npy" for i in range(3)]
    every = np.concatenate([np.load(p) for p in places]).astype(np.float64)
    found = standard_of(places)
    np.testing.assert_allclose(found.mean, every.mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.spread, every.std(axis=0), rtol=1e-5)
    store = BagStore(places, data.sizes, DIM, [found, None, None])
    np.testing.assert_allclose(store.read(0), (np.load(places[0]) - found.mean) / found.spread, rtol=1e-5)
    np.testing.assert_array_equal(store.read(1), np.load(places[1]))
    np.save(tmp_path / "flat.npy", np.full((4, 2), 7.0, dtype=np.float32))
    assert standard_of([tmp_path / "flat.npy"]).spread.tolist() == [1.0, 1.0]
    assert Standard(found.mean, found.spread).of(np.ones((2, DIM), dtype=np.float32)).dtype == np.float32
