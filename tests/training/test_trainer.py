"""Optimiser state, schedule and batches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from morphfed.models import weights
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet, pool
from morphfed.training.optimise import export_state, import_state, learning_rate, make_optimizer
from morphfed.training.trainer import FitReport, Trainer


class Pictures:
    def __init__(self, n: int) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 255, (n, 8, 8, 3), dtype=np.uint8)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def image_set(n: int, store: Pictures | None = None) -> ImageSet:
    ids = np.array([str(i) for i in range(n)], dtype=object)
    return ImageSet(store or Pictures(n), np.arange(n), np.arange(n) % 3, 3, ids, ids)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def trainer(**keys: object) -> Trainer:
    config = TrainConfig(precision="fp32", channels_last=False, **keys)  # type: ignore[arg-type]
    return Trainer(config, mean=(0.5,) * 3, std=(0.5,) * 3, device=torch.device("cpu"), seed=0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_moments_survive_as_named_tensors(optimizer: str) -> None:
    def run(break_at: int | None) -> dict[str, torch.Tensor]:
        t, data, model = trainer(optimizer=optimizer, batch_size=5), image_set(20), network()
        opt = make_optimizer(t.config, model)
        for number in (1, 2, 3):
            if number == break_at:
                saved = {k: v.clone() for k, v in export_state(opt).items()}
                opt = make_optimizer(t.config, model)
                import_state(opt, saved)
            t.fit(model, opt, data, site="a", round_number=number, rounds=3)
        return model.state_dict()

    whole, broken = run(None), run(2)
    assert all(torch.equal(whole[k], broken[k]) for k in whole)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_moments_from_a_file_fit_weights_in_another_memory_layout(optimizer: str, tmp_path: Path) -> None:
    """Files hold contiguous tensors; a fused step over channels-last weights would mix up their moments."""

    def run(broken: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(*convolutions).to(memory_format=torch.channels_last)
        config = TrainConfig(optimizer=optimizer, lr=1e-2)
        opt = make_optimizer(config, model)
        images, labels = torch.randn(6, 3, 12, 12), torch.arange(6) % 4
        for step in range(4):
            if broken and step == 2:
                weights.save(tmp_path / "moments.safetensors", export_state(opt), {})
                opt = make_optimizer(config, model)
                import_state(opt, weights.load(tmp_path / "moments.safetensors"))
            opt.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            opt.step()
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


def test_learning_rate_by_hand() -> None:
    config = TrainConfig(lr=1.0, warmup=0.1, final_lr=0.0)
    assert learning_rate(config, 0.05) == pytest.approx(0.5)
    assert learning_rate(config, 0.1) == pytest.approx(1.0)
    assert learning_rate(config, 0.55) == pytest.approx(0.5)
    assert learning_rate(config, 1.0) == pytest.approx(0.0)
    assert learning_rate(TrainConfig(lr=2.0, schedule="constant", warmup=0.0), 0.7) == 2.0


@pytest.mark.parametrize(("n", "batch", "sizes"), [(17, 8, [6, 6, 5]), (9, 8, [5, 4]), (3, 8, [3])])
def test_no_batch_of_one(n: int, batch: int, sizes: list[int]) -> None:
    found = [len(p.targets) for pieces in trainer(batch_size=batch)._batches(image_set(n), "a", 1, 1) for p in pieces]
    assert found == sizes


def test_each_image_once_an_epoch_in_an_order_of_its_own() -> None:
    t, data = trainer(batch_size=4, local_epochs=2, augment={"flips": False}), image_set(12)
    seen: list[int] = []
    original = data.batch
    object.__setattr__(data, "batch", lambda where: (seen.extend(where.tolist()), original(where))[1])
    assert [len(list(pieces)) for pieces in t._batches(data, "a", 1, 2)] == [1] * 6  # pictures are never cut up
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_weight_decay_spares_vectors() -> None:
    groups = make_optimizer(TrainConfig(weight_decay=0.3), network()).param_groups
    assert {(p.ndim > 1, g["weight_decay"]) for g in groups for p in g["params"]} == {
        (True, 0.3),
        (False, 0.0),
    }


def test_reported_loss_is_the_mean_over_images() -> None:
    data, model = image_set(9), network()
    # Without perturbation and with next to no learning rate the mean loss is that of the fixed model.
    from morphfed.data.augment import NO_AUGMENTATION

    t = trainer(lr=1e-12, batch_size=9, augment=NO_AUGMENTATION)
    report = t.fit(model, make_optimizer(t.config, model), data, site="a", round_number=1, rounds=1)
    fixed = network().train()
    pixels = torch.from_numpy(data.store.gather(data.rows)).permute(0, 3, 1, 2).float() / 255
    expected = nn.functional.cross_entropy(fixed((pixels - 0.5) / 0.5), torch.from_numpy(data.labels))
    assert report.loss == pytest.approx(expected.item(), rel=1e-4)
    assert (report.steps, report.images) == (1, 9)


def test_prediction_is_a_distribution_and_in_order() -> None:
    data, model = image_set(11), network()
    whole = trainer().predict(model, data, batch_size=128)
    parts = trainer().predict(model, data, batch_size=3)
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(whole, parts, atol=1e-6)


def test_restimated_norms_equal_the_statistics_of_the_images() -> None:
    model, data = network(), image_set(12)
    trainer().restimate_norms(model, data)
    layer = model[2]
    pixels = torch.from_numpy(data.store.gather(data.rows)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        hidden = model[1](model[0]((pixels - 0.5) / 0.5))
    torch.testing.assert_close(layer.running_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)
    assert not layer.training
    assert layer.momentum == pytest.approx(0.1)


def test_pool_needs_one_store() -> None:
    store = Pictures(6)
    assert len(pool([image_set(6, store), image_set(4, store)])) == 10
    with pytest.raises(ValueError, match="one image store"):
        pool([image_set(3), image_set(3)])


def test_a_loss_of_a_known_network_falls() -> None:
    t, data, model = trainer(lr=0.05, batch_size=6, local_epochs=20), image_set(18), network()
    opt = make_optimizer(t.config, model)
    first = t.fit(model, opt, data, site="a", round_number=1, rounds=2).loss
    second = t.fit(model, opt, data, site="a", round_number=2, rounds=2).loss
    assert second < first < math.log(3) * 1.5


def test_eight_views_are_all_that_a_square_can_be_turned_and_mirrored_into() -> None:
    from morphfed.training.trainer import _views

    picture = torch.arange(9.0).reshape(1, 1, 3, 3)
    found = {tuple(view.flatten().tolist()) for view in _views(picture, 8)}
    assert len(found) == 8
    assert {tuple(torch.rot90(torch.tensor(v).reshape(3, 3)).flatten().tolist()) for v in found} == found
    assert [v.flatten().tolist() for v in _views(picture, 1)] == [list(range(9))]


def test_prediction_over_views_is_the_mean_and_blind_to_turns() -> None:
    data = image_set(6)
    t, model = trainer(), network()
    one = t.predict(model, data, views=8)
    assert one.sum(axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    turned = image_set(6)
    turned.store.pixels = np.ascontiguousarray(np.rot90(turned.store.pixels, axes=(1, 2)))  # type: ignore[attr-defined]
    np.testing.assert_allclose(t.predict(model, turned, views=8), one, atol=1e-5)
    assert not np.allclose(t.predict(model, turned), t.predict(model, data), atol=1e-4)


@pytest.mark.parametrize("views", [1, 8])
def test_logarithms_are_those_of_the_probabilities_and_go_on_where_these_end(views: Literal[1, 8]) -> None:
    data, t, model = image_set(7), trainer(), network()
    probabilities, logs = t.predict_logs(model, data, views=views, batch_size=3)
    np.testing.assert_array_equal(probabilities, t.predict(model, data, views=views, batch_size=3))
    np.testing.assert_allclose(np.exp(logs), probabilities, rtol=1e-5)
    with torch.no_grad():
        model[-1].weight.mul_(1e4)
    probabilities, logs = t.predict_logs(model, data, views=views)
    gone = probabilities == 0
    assert gone.any()
    assert np.isfinite(logs).all()
    assert len(np.unique(logs[gone])) == gone.sum()
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1.0)


def test_two_reports_add_up_and_the_loss_is_the_mean_over_all_images() -> None:
    # (1 · 30 + 4 · 10) / 40
    assert FitReport(1.0, 3, 30) + FitReport(4.0, 2, 10) == FitReport(1.75, 5, 40)


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (1, 3, 8, 8), (2, 3, 1, 1), (0, 3, 4, 4)])
def test_normalisation_is_the_same_to_the_bit_in_every_memory_layout(shape: tuple[int, ...]) -> None:
    by_hand = Trainer(
        TrainConfig(precision="fp32"), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), device=torch.device("cpu"), seed=0
    )
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    expected = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    turned = images.transpose(2, 3).contiguous().transpose(2, 3)
    for laid in (images.clone(), images.clone().contiguous(memory_format=torch.channels_last), turned):
        assert torch.equal(by_hand._normalise(laid), expected)


def test_steps_of_a_round() -> None:
    """17 images in batches of 8 are 3 steps a pass; with local_steps the passes count in units of local_epochs."""
    assert TrainConfig(batch_size=8).steps(17, passes=2) == 6
    steps = TrainConfig(batch_size=8, local_epochs=2, local_steps=5)
    assert steps.steps(17, passes=2) == steps.steps(1000, passes=2) == 5
    assert steps.steps(17, passes=4) == 10  # a half that trains a personal model as long again
    assert steps.steps(17, passes=2, sites=3) == 15


@pytest.mark.parametrize(("steps", "images"), [(2, 12), (3, 17), (7, 40)])
def test_local_steps_break_off_a_pass_or_go_on(steps: int, images: int) -> None:
    t, model = trainer(batch_size=8, local_steps=steps), network()
    report = t.fit(model, make_optimizer(t.config, model), image_set(17), site="a", round_number=1, rounds=2)
    assert (report.steps, report.images) == (steps, images)  # batches of 6, 6, 5 and again


def test_as_many_local_steps_as_a_pass_has_change_nothing() -> None:
    def trained(**keys: object) -> dict[str, torch.Tensor]:
        t, model = trainer(batch_size=8, **keys), network()
        optimizer = make_optimizer(t.config, model)
        for number in (1, 2):
            t.fit(model, optimizer, image_set(17), site="a", round_number=number, rounds=2)
        return model.state_dict()

    by_epochs, by_steps = trained(), trained(local_steps=3)
    assert all(torch.equal(by_epochs[k], by_steps[k]) for k in by_epochs)


def test_pooled_images_get_the_steps_of_all_their_sites() -> None:
    store = Pictures(12)
    parts = [image_set(4, store), image_set(8, store)]
    t, model = trainer(batch_size=4, local_steps=2), network()
    report = t.fit(model, make_optimizer(t.config, model), pool(parts), site="pooled", round_number=1, rounds=1)
    assert report.steps == 4


def test_images_with_a_coarser_label_train_by_their_classes_together() -> None:
    data = replace(image_set(12), labels=np.array([0, 1, 2, 3] * 3), parents=((0, 1),))
    model = network()
    t = trainer(batch_size=12)
    p = t.predict(model, data).astype(np.float64)
    chosen = np.where(data.labels == 3, p[:, 0] + p[:, 1], p[np.arange(12), data.labels % 3])
    assert t.loss(model, data) == pytest.approx(-np.log(chosen).mean(), rel=1e-5)
    assert data.class_counts.tolist() == [3, 3, 3]
    only = data.only(~data.exact)
    t = trainer(batch_size=3, lr=0.02, schedule="constant")
    opt = make_optimizer(t.config, model)
    for number in range(1, 30):
        t.fit(model, opt, only, site="a", round_number=number, rounds=30)
    assert t.predict(model, only)[:, :2].sum(axis=1).min() > 0.9


def test_pooled_sites_agree_on_the_coarser_labels() -> None:
    store = Pictures(6)
    with pytest.raises(ValueError, match="coarser"):
        pool([image_set(6, store), replace(image_set(6, store), parents=((0, 1),))])
