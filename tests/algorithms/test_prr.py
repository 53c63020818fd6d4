"""PRR-FL: what its pieces come to alone and together, the exchange of prototypes, and missing classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from morphfed.algorithms.base import ALGORITHMS, SiteWork
from morphfed.algorithms.fedavg import FedAvgConfig, averaging
from morphfed.algorithms.prr.presets import Prr2021Config, PrrConfig
from morphfed.algorithms.prr.prototypes import (
    MEAN,
    SEEN,
    SITES,
    SPREAD,
    PrototypeConfig,
    PrototypeExchange,
    PrototypeObjective,
)
from morphfed.core.types import Spec, Tensors, Upload
from morphfed.federation.loop import Outcome
from morphfed.models.layout import Layout
from morphfed.training.trainer import FitReport

Make = Callable[..., Any]
PLAIN = {"aggregation": "mean", "transfer": False, "loss": "task"}


def same(one: Outcome, two: Outcome) -> None:
    assert one.last.keys() == two.last.keys()
    assert all(torch.equal(one.last[k], two.last[k]) for k in one.last)
    assert one.last_sites.keys() == two.last_sites.keys()
    for site, kept in one.last_sites.items():
        assert kept.keys() == two.last_sites[site].keys()
        assert all(torch.equal(t, two.last_sites[site][k]) for k, t in kept.items()), site


def test_published_defaults() -> None:
    found = PrrConfig()
    assert (found.phase, found.symmetric, found.classifier, found.loss) == ("arithmetic", False, "rows", "cpa")
    assert (found.l_start, found.l_end, found.alpha1, found.alpha2) == (0.7, 0.95, 0.7, 0.9)
    assert (found.beta, found.tau, found.prototypes, found.std_floor, found.init_share) == (
        0.8,
        3.0,
        "gaussian",
        1.0,
        0.3,
    )
    assert (found.weighting, found.norms, found.criterion, found.metric) == (
        "uniform",
        "stay",
        "validation",
        "macro_f1",
    )
    earlier = Prr2021Config()
    assert (earlier.phase, earlier.classifier, earlier.loss, earlier.symmetric) == ("private", "matrix", "task", False)
    assert ALGORITHMS["prr"].counts(found)
    assert not ALGORITHMS["prr-2021"].counts(earlier)
    assert ALGORITHMS["prr"].passes(found, 5) == 10
    assert ALGORITHMS["prr"].passes(PrrConfig(transfer=False), 5) == 5


def test_the_preset_without_deputies_is_prr_with_three_other_keys() -> None:
    ours = ALGORITHMS["pfa-cpa"].config()
    assert ours.model_dump() == PrrConfig(transfer=False, phase="complex", symmetric=True).model_dump()
    assert ALGORITHMS["pfa-cpa"].counts(ours)
    assert ALGORITHMS["pfa-cpa"].passes(ours, 5) == 5


@pytest.mark.parametrize(
    ("keys", "other", "its_keys"),
    [
        (PLAIN, "fedbn", {"weighting": "uniform"}),
        ({**PLAIN, "norms": "travel", "weighting": "images"}, "fedavg", {}),
        ({**PLAIN, "aggregation": "median", "norms": "travel"}, "fedmedian", {}),
        ({**PLAIN, "aggregation": "pfa"}, "pfa", {"phase": "arithmetic", "symmetric": False}),
        ({**PLAIN, "transfer": True, "norms": "travel", "weighting": "images"}, "det", {}),
    ],
)
def test_each_piece_alone_is_the_algorithm_of_its_name(
    federation: Make, keys: dict[str, object], other: str, its_keys: dict[str, object]
) -> None:
    train = {"local_epochs": 2}
    found = federation(None, algorithm="prr", keys=keys, rounds=2, train=train).loop.run()
    same(found, federation(None, algorithm=other, keys=its_keys, rounds=2, train=train).loop.run())


def test_cpa_without_its_factors_is_cross_entropy(federation: Make) -> None:
    plain = federation(None, algorithm="prr", keys=PLAIN, rounds=2).loop.run()
    off = {**PLAIN, "loss": "cpa", "beta": 0.0, "init_share": 1.0}
    found = federation(None, algorithm="prr", keys=off, rounds=2).loop.run()
    for name, tensor in plain.last.items():
        torch.testing.assert_close(found.last[name], tensor, rtol=1e-4, atol=1e-6)
    on = federation(None, algorithm="prr", keys={**PLAIN, "loss": "cpa", "init_share": 0.0}, rounds=2).loop.run()
    assert not torch.equal(on.last["0.weight"], found.last["0.weight"])


def work_of(model: nn.Sequential, state: Tensors, number: int = 2, **keys: Any) -> SiteWork:
    layout = Layout.of(model, ("2.weight", "2.bias"))
    counts = np.array([6, 3, 0])
    return SiteWork(
        "kampala",
        number,
        model,
        layout,
        layout.order,
        1,
        lambda **_: FitReport(0.0, 1, 1),
        lambda: 0.0,
        lambda _: None,
        state,
        rounds=10,
        seed=4,
        class_counts=counts,
        **keys,
    )


def body() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def nothing() -> Tensors:
    return {MEAN: torch.zeros(3, 5), SPREAD: torch.zeros(3, 5), SITES: torch.zeros(3)}


def test_prototypes_are_class_means_of_what_enters_the_classifier() -> None:
    model, state = body(), {}
    images, labels = torch.randn(9, 4), torch.tensor([0, 0, 1, 0, 1, 0, 0, 1, 0])
    with PrototypeObjective(PrototypeConfig()).of(work_of(model, state), nothing(), model) as aim:
        assert aim.watched is not None
        for part in (slice(0, 4), slice(4, 9)):
            aim.watched(model(images[part]), labels[part])
    z = torch.relu(model[0](images)).detach()
    found = aim.uploads()
    torch.testing.assert_close(
        found[MEAN], torch.stack([z[labels == 0].mean(0), z[labels == 1].mean(0), torch.zeros(5)])
    )
    assert found[SEEN].tolist() == [1, 1, 0]
    assert all(torch.equal(state[name], tensor) for name, tensor in found.items())


@pytest.mark.parametrize("channels_last", [False, True])
def test_prototypes_of_masks_are_means_over_images_of_means_over_pixels(channels_last: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 1))
    images, masks = torch.randn(5, 2, 6, 4), torch.randint(0, 2, (5, 6, 4), dtype=torch.uint8)
    masks[3] = 0  # this image shows nothing; no image shows class 2
    if channels_last:
        images, model = (
            images.contiguous(memory_format=torch.channels_last),
            model.to(memory_format=torch.channels_last),
        )  # type: ignore[call-overload]
    state: Tensors = {}
    with PrototypeObjective(PrototypeConfig()).of(work_of(model, state), nothing(), model) as aim:
        assert aim.watched is not None
        for part in (slice(0, 2), slice(2, 5)):
            aim.watched(model(images[part]), masks[part])
    z = torch.relu(model[0](images)).detach().permute(0, 2, 3, 1)
    rows = [torch.stack([z[i][masks[i] == k].mean(0) for i in range(5) if (masks[i] == k).any()]) for k in (0, 1)]
    assert [len(row) for row in rows] == [5, 4]
    found = aim.uploads()
    torch.testing.assert_close(found[MEAN], torch.stack([*(row.mean(0) for row in rows), torch.zeros(5)]))
    assert found[SEEN].tolist() == [1, 1, 0]


def test_defaults_of_masks_are_those_of_the_prostate() -> None:
    for name in ("prr", "prr-2021"):
        found = ALGORITHMS[name].config(**ALGORITHMS[name].defaults["segmentation"])
        assert found.model_dump(include={"tau", "prototypes", "init_share", "metric", "beta"}) == {
            "tau": 1.0,
            "prototypes": "average",
            "init_share": 0.05,
            "metric": "dice",
            "beta": 0.8,
        }


def test_gamma_compares_with_the_round_before() -> None:
    own = {MEAN: torch.eye(3, 5), SEEN: torch.tensor([1.0, 1.0, 0.0])}
    down = {MEAN: torch.eye(3, 5), SPREAD: torch.zeros(3, 5), SITES: torch.tensor([2.0, 1.0, 2.0])}
    down[MEAN][1] = torch.tensor([1.0, 0, 0, 0, 0])  # across the site's own
    half = PrototypeObjective(PrototypeConfig(prototypes="average", init_share=0.3))
    assert half.gamma(work_of(body(), own, 4), down).tolist() == pytest.approx([1.0, 4 / 3, 1.0])
    assert half.gamma(work_of(body(), own, 3), down).tolist() == [1.0, 1.0, 1.0]  # rounds 1 to 3 of 10: too early
    assert half.gamma(work_of(body(), {}, 4), down).tolist() == [1.0, 1.0, 1.0]
    nobody = {**down, SITES: torch.zeros(3)}
    assert half.gamma(work_of(body(), own, 4), nobody).tolist() == [1.0, 1.0, 1.0]


def test_the_draw_is_the_same_at_all_sites_and_new_in_each_round() -> None:
    own = {MEAN: torch.ones(3, 5), SEEN: torch.ones(3)}
    down = {MEAN: torch.ones(3, 5), SPREAD: torch.zeros(3, 5), SITES: torch.full((3,), 2.0)}
    half = PrototypeObjective(PrototypeConfig(init_share=0.0))
    first = half.gamma(work_of(body(), dict(own), 5), down)
    assert torch.equal(first, half.gamma(work_of(body(), dict(own), 5), down))
    assert not torch.equal(first, half.gamma(work_of(body(), dict(own), 6), down))
    assert (first > 1).all()  # a floor of 1 shakes it although all sites agree
    still = PrototypeObjective(PrototypeConfig(init_share=0.0, std_floor=0.0))
    torch.testing.assert_close(still.gamma(work_of(body(), dict(own), 5), down), torch.ones(3))


def test_the_loss_is_gamma_times_seesaw() -> None:
    own = {MEAN: torch.eye(3, 5), SEEN: torch.ones(3)}
    down = {MEAN: torch.eye(3, 5)[[1, 0, 2]], SPREAD: torch.zeros(3, 5), SITES: torch.full((3,), 2.0)}
    config = PrototypeConfig(prototypes="average", init_share=0.0, tau=1.0)  # γ = 2, 2, 1
    model = body()
    z, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 0])
    with PrototypeObjective(config).of(work_of(model, dict(own)), down, model) as aim:
        assert aim.other is not None
        found = aim.other(z, labels).item()
    n = [6.0, 3.0, 1.0]  # a class that nobody has counts as one image
    expected = 0.0
    for row, y in zip(z.tolist(), labels.tolist(), strict=True):
        s = [min(1.0, (n[j] / n[y]) ** 0.8) for j in range(3)]
        below = sum(s[j] * np.exp(row[j]) for j in range(3))
        expected -= [2, 2, 1][y] * np.log(np.exp(row[y]) / below) / 4
    assert found == pytest.approx(expected, rel=1e-5)


def test_common_prototypes_are_mean_and_spread_of_the_sites_that_have_the_class() -> None:
    specs = {MEAN: Spec((4, 3), "float32"), SEEN: Spec((4,), "float32")}
    layout = Layout.of(nn.Linear(1, 1))
    half = PrototypeExchange(
        averaging(FedAvgConfig(), {"weight": torch.zeros(1, 1)}, layout), specs, torch.device("cpu")
    )
    rng = np.random.default_rng(0)
    means = rng.normal(size=(3, 4, 3)).astype(np.float32)
    seen = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]], dtype=np.float32)
    half.begin_round(1, "abc")
    for site, mean, row in zip("abc", means, seen, strict=True):
        tensors = {"weight": torch.ones(1, 1), MEAN: torch.from_numpy(mean), SEEN: torch.from_numpy(row)}
        half.fold(Upload(site, 1, tensors, 2.0))
    half.end_round()
    down = half.download("a")
    assert down[SITES].tolist() == [3, 2, 1, 0]
    np.testing.assert_allclose(down[MEAN][0], means[:, 0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(down[MEAN][1], means[[0, 2], 1].mean(0), rtol=1e-5)
    np.testing.assert_allclose(down[MEAN][2], means[1, 2], rtol=1e-5)
    np.testing.assert_allclose(down[SPREAD][0], means[:, 0].std(0, ddof=1), rtol=1e-5)
    assert not down[SPREAD][2:].any()
    assert not down[MEAN][3].any()
    assert list(half.model()) == ["weight"]
    again = PrototypeExchange(
        averaging(FedAvgConfig(), {"weight": torch.zeros(1, 1)}, layout), specs, torch.device("cpu")
    )
    again.load_state({k: t.clone() for k, t in half.state().items()})
    assert all(torch.equal(t, again.download("a")[k]) for k, t in down.items())


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_class_missing_at_a_site_or_everywhere(federation: Make, everywhere: bool) -> None:
    made = federation(None, algorithm="prr", keys={"init_share": 0.0}, rounds=3, train={"local_epochs": 2})
    for site in made.sites:
        if everywhere or site.name == "lagos":
            site._train = replace(site._train, labels=np.zeros(len(site._train), dtype=np.int64))
    outcome = made.loop.run()
    assert not outcome.progress.rejected
    assert all(torch.isfinite(t).all() for t in outcome.last.values())
    assert outcome.last_sites["lagos"][f"algorithm/{SEEN}"].tolist() == [1, 0]
    assert made.coordinator.download("quito")[SITES].tolist() == ([3, 0] if everywhere else [3, 2])


def test_what_leaves_is_declared_and_in_the_ledger(federation: Make, tmp_path: Path) -> None:
    with_cpa = federation(tmp_path / "a", algorithm="prr", rounds=2).loop.run()
    lines = [json.loads(line) for line in (tmp_path / "a" / "lagos.jsonl").read_text().splitlines()]
    assert [(line["round"], line["values"]) for line in lines if line.get("statistic")] == [(0, [4, 4])]
    assert with_cpa.progress.class_counts == [13, 13]
    without = federation(tmp_path / "b", algorithm="prr", keys={"loss": "task"}, rounds=2).loop.run()
    assert without.progress.class_counts is None
    # Counts up once from three sites; prototypes (2, 4) and a row of 2 in each of two rounds.
    assert with_cpa.progress.bytes_up - without.progress.bytes_up == 3 * 2 * 8 + 2 * 3 * (8 + 2) * 4
    assert not (tmp_path / "a" / "lagos.jsonl").read_text().count("personal")


def test_counts_that_an_algorithm_asks_for_do_not_change_the_study_s_loss(federation: Make) -> None:
    made = federation(
        None, algorithm="prr", keys={"loss": "task"}, rounds=1, train={"loss": {"kind": "class_balanced"}}
    )
    site = made.sites[0]
    before = site._work(1, 1).loss()
    site.use_class_counts(np.array([1000, 1]))
    assert site._work(1, 1).loss() == before
    assert site._work(1, 1).class_counts.tolist() == [1000, 1]


@pytest.mark.parametrize("keys", [{"init_share": 0.0}, {"transfer": False, "init_share": 0.0, "aggregation": "median"}])
def test_steady(steady: Callable[..., Any], keys: dict[str, object]) -> None:
    steady("prr", keys, train={"local_epochs": 2})


def test_free_of_order_and_strict(order_free: Callable[..., None], refuses: Callable[..., None]) -> None:
    order_free("prr", {"phase": "complex", "symmetric": True, "init_share": 0.0})
    refuses(PrrConfig, "agregation", "aggregation")
