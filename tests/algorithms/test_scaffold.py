"""SCAFFOLD: the control variate against option II, the coordinator against NumPy, one site against plain SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from morphfed.algorithms.base import ALGORITHMS
from morphfed.algorithms.scaffold import CONTROL, ControlledMean, ScaffoldConfig
from morphfed.core.types import Spec, Upload
from morphfed.federation.transports.inprocess import InProcess
from morphfed.models.layout import Layout

Make = Callable[..., Any]
LAYOUT = Layout(("w", "mean"), frozenset({"w"}), frozenset({"mean"}), frozenset(), frozenset())


def coordinator(server_lr: float = 1.0) -> ControlledMean:
    return ControlledMean({"w": torch.tensor([1.0, 2.0]), "mean": torch.tensor([10.0])}, LAYOUT, server_lr=server_lr)


def upload(site: str, w: list[float], change: list[float], mean: float) -> Upload:
    tensors = {"w": torch.tensor(w), "mean": torch.tensor([mean]), CONTROL + "w": torch.tensor(change)}
    return Upload(site, 1, tensors, weight={"a": 30.0, "b": 10.0}[site])


def test_two_of_four_sites_by_hand() -> None:
    half = coordinator(server_lr=0.5)
    half.begin_round(1, ["a", "b", "c", "d"])
    half.fold(upload("a", [3.0, 2.0], [1.0, 0.0], 12.0))
    half.fold(upload("b", [5.0, 0.0], [3.0, -2.0], 20.0))
    half.end_round()
    # Mean update ((2, 0) + (4, -2)) / 2 = (3, -1), half of it; images do not count.
    assert torch.equal(half.model()["w"], torch.tensor([2.5, 1.5]))
    # Statistics are no descent direction: their mean, whatever η_g.
    assert torch.equal(half.model()["mean"], torch.tensor([16.0]))
    # |S| / N = 2 / 4 of the mean change (2, -1).
    assert torch.equal(half.download("a")[CONTROL + "w"], torch.tensor([1.0, -0.5]))
    half.begin_round(2, ["a", "b", "c", "d"])
    half.fold(upload("a", [2.5, 1.5], [4.0, 4.0], 16.0))
    half.end_round()
    assert torch.equal(half.model()["w"], torch.tensor([2.5, 1.5]))
    assert torch.equal(half.download("a")[CONTROL + "w"], torch.tensor([2.0, 0.5]))


def test_a_round_without_uploads_changes_nothing_and_state_comes_back() -> None:
    one, two = coordinator(), coordinator()
    one.begin_round(1, ["a"])
    one.fold(upload("a", [0.0, 0.0], [7.0, 7.0], 1.0))
    one.end_round()
    before = {k: t.clone() for k, t in one.state().items()}
    one.begin_round(2, ["a"])
    one.end_round()
    two.load_state(one.state())
    for name, tensor in before.items():
        assert torch.equal(tensor, one.state()[name])
        assert torch.equal(tensor, two.download("a")[name])
    assert set(before) == {"w", "mean", CONTROL + "w"}
    assert set(one.model()) == {"w", "mean"}


def test_only_parameters_have_control_variates(federation: Make) -> None:
    made = federation(None, algorithm="scaffold")
    specs = {name: Spec.of(made.model.state_dict()[name]) for name in made.workspace.travels}
    declared = ALGORITHMS["scaffold"].uploads(ScaffoldConfig(), made.layout, specs)
    extra = {name.removeprefix(CONTROL) for name in declared if name.startswith(CONTROL)}
    assert extra == set(made.layout.parameters)
    assert "1.running_mean" not in extra
    assert all(declared[CONTROL + name] == specs[name] for name in extra)


class Listening(InProcess):
    """Keeps every download and upload."""

    def __init__(self, sites: Any) -> None:
        super().__init__(sites)
        self.seen: list[tuple[int, str, dict[str, np.ndarray], dict[str, np.ndarray], float]] = []

    def train(self, number: int, rounds: int, downloads: Any) -> Iterator[Any]:
        given = {k: t.numpy().astype(np.float64) for k, t in next(iter(downloads.values())).items()}
        for answer in super().train(number, rounds, downloads):
            sent = {k: t.numpy().astype(np.float64) for k, t in answer.tensors.items()}
            self.seen.append((number, answer.site, given, sent, answer.metrics["steps"]))
            yield answer


def test_plain_sgd_gives_option_two_and_the_published_coordinator(federation: Make, sgd: dict[str, object]) -> None:
    """NumPy replays algorithm 1 from what travelled: c_k⁺ = c_k - c + (x - y) / (K η), x and c as published."""
    rate = 0.05
    made = federation(None, algorithm="scaffold", keys={"server_lr": 0.7}, train={**sgd, "lr": rate, "local_epochs": 2})
    listening = Listening(made.sites)
    made.loop._transport = listening
    outcome = made.loop.run()
    sites = ("kampala", "lagos", "quito")
    names = sorted(made.layout.parameters)
    own = {site: {n: np.zeros_like(listening.seen[0][2][n]) for n in names} for site in sites}
    c = {n: np.zeros_like(own["lagos"][n]) for n in names}
    for number in (1, 2, 3):
        answers = [s for s in listening.seen if s[0] == number]
        assert len(answers) == 3
        changes = []
        for _, site, x, sent, steps in answers:
            renewed = {n: own[site][n] - c[n] + (x[n] - sent[n]) / (steps * rate) for n in names}
            changes.append({n: renewed[n] - own[site][n] for n in names})
            for n in names:
                np.testing.assert_allclose(x[CONTROL + n], c[n], atol=2e-5)
                np.testing.assert_allclose(sent[CONTROL + n], changes[-1][n], atol=2e-5)
            own[site] = renewed
        c = {n: c[n] + 3 / 3 * np.mean([ch[n] for ch in changes], axis=0) for n in names}
        # Every site took part, so c is the mean of the c_k.
        for n in names:
            np.testing.assert_allclose(c[n], np.mean([own[s][n] for s in sites], axis=0), atol=2e-5)
    x, final = answers[0][2], {k: t.numpy() for k, t in outcome.last.items()}
    for n in names:
        expected = x[n] + 0.7 * np.mean([sent[n] - x[n] for _, _, _, sent, _ in answers], axis=0)
        np.testing.assert_allclose(final[n], expected, atol=1e-6)
    np.testing.assert_allclose(
        final["1.running_mean"], np.mean([a[3]["1.running_mean"] for a in answers], axis=0), rtol=1e-5
    )
    assert max(np.abs(c[n]).max() for n in names) > 0.01  # the tolerances above mean something


def test_one_site_is_plain_sgd(federation: Make, sgd: dict[str, object]) -> None:
    """c = c_1 takes the correction away: to the bit in round 1 (both zero), then to rounding, for c is a sum of Δc."""
    for rounds, tolerance in ((1, 0.0), (3, 1e-6)):
        options = {"sizes": {"kampala": 12}, "rounds": rounds, "train": {**sgd, "lr": 0.05}}
        one = federation(None, algorithm="scaffold", **options).loop.run().last
        two = federation(None, algorithm="fedavg", **options).loop.run().last
        for name in two:
            torch.testing.assert_close(one[name], two[name], rtol=tolerance, atol=tolerance)


def test_with_several_sites_it_is_not_fedavg(federation: Make, sgd: dict[str, object]) -> None:
    one = federation(None, algorithm="scaffold", rounds=2, train=sgd).loop.run().last
    two = federation(None, algorithm="fedavg", keys={"weighting": "uniform"}, rounds=2, train=sgd).loop.run().last
    assert float((one["0.weight"] - two["0.weight"]).abs().max()) > 1e-4


def test_the_mean_of_raw_gradients_stands_before_clipping_and_momentum(federation: Make) -> None:
    """Two local steps with clipping, momentum and decay: c_1 is the mean of what autograd gave, nothing else."""
    train = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1, "clip": 1e-3, "batch_size": 6}
    seen: list[torch.Tensor] = []
    bare = federation(None, sizes={"kampala": 12}, rounds=1, train=train)
    bare.sites[0]._work(1, 1).fit(after_backward=lambda m: seen.append(m[6].weight.grad.clone()))
    assert len(seen) == 2
    outcome = federation(None, algorithm="scaffold", sizes={"kampala": 12}, rounds=1, train=train).loop.run()
    found = outcome.last_sites["kampala"][f"algorithm/{CONTROL}6.weight"]
    torch.testing.assert_close(found, (seen[0] + seen[1]) / 2, rtol=1e-6, atol=0)


def test_a_rejected_site_counts_in_n_but_not_in_s(federation: Make, sgd: dict[str, object]) -> None:
    made = federation(None, algorithm="scaffold", rounds=1, train=sgd)

    class Spoiling(InProcess):
        def train(self, *args: Any) -> Iterator[Any]:
            for answer in super().train(*args):
                if answer.site == "lagos":
                    answer.tensors["0.bias"] = torch.full_like(answer.tensors["0.bias"], float("nan"))
                yield answer

    made.loop._transport = Spoiling(made.sites)
    outcome = made.loop.run()
    name = CONTROL + "0.weight"
    kept = [outcome.last_sites[s][f"algorithm/{name}"] for s in ("kampala", "quito")]
    torch.testing.assert_close(made.coordinator.download("quito")[name], (kept[0] + kept[1]) / 3)


@pytest.mark.parametrize("norm", ["batch", "local"])
def test_steady_also_with_control_variates_at_the_sites(steady: Callable[..., Any], norm: str) -> None:
    outcome = steady("scaffold", norm=norm)
    kept = {k for k in outcome.last_sites["lagos"] if k.startswith(f"algorithm/{CONTROL}")}
    assert len(kept) == (6 if norm == "batch" else 4)  # site-local norms do not travel and have none
    assert not any(name.startswith(CONTROL) for name in outcome.last)


def test_free_of_order(order_free: Callable[..., None]) -> None:
    order_free("scaffold")


def test_keys(refuses: Callable[..., None]) -> None:
    refuses(ScaffoldConfig, "serverlr", "server_lr")
