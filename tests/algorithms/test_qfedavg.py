"""q-FedAvg: a case worked by hand, a NumPy transcript of algorithm 2, and uniform FedAvg at q = 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from morphfed.algorithms.base import ALGORITHMS
from morphfed.algorithms.qfedavg import START_LOSS, FairMean, QFedAvgConfig
from morphfed.core.config import validate
from morphfed.core.errors import ConfigError
from morphfed.core.types import Upload
from morphfed.federation.transports.inprocess import InProcess
from morphfed.models.layout import Layout

Make = Callable[..., Any]
LAYOUT = Layout(("w", "mean"), frozenset({"w"}), frozenset({"mean"}), frozenset(), frozenset())


def step(q: float, lipschitz: float, start: list[float], answers: list[tuple[float, list[float]]]) -> np.ndarray:
    """The weights after one round with these losses and models."""
    half = FairMean({"w": torch.tensor(start), "mean": torch.zeros(1)}, LAYOUT, q=q, lipschitz=lipschitz)
    half.begin_round(1, [str(i) for i in range(len(answers))])
    for i, (loss, w) in enumerate(answers):
        tensors = {"w": torch.tensor(w), "mean": torch.full((1,), float(i))}
        half.fold(Upload(str(i), 1, tensors, 1.0 + 9 * i, {START_LOSS: loss}))
    half.end_round()
    assert half.model()["mean"].item() == pytest.approx((len(answers) - 1) / 2)
    found: np.ndarray = half.model()["w"].numpy().astype(np.float64)
    return found


def algorithm_2(q: float, lipschitz: float, start: list[float], answers: list[tuple[float, list[float]]]) -> np.ndarray:
    """The paper's symbols in the paper's order, float64."""
    w_t = np.array(start)
    deltas, hs = [], []
    for loss, w in answers:
        f = loss + 1e-10
        dw = lipschitz * (w_t - np.array(w))
        deltas.append(f**q * dw)
        hs.append(q * f ** (q - 1) * (dw**2).sum() + lipschitz * f**q)
    moved: np.ndarray = w_t - np.sum(deltas, axis=0) / np.sum(hs)
    return moved


def test_two_sites_by_hand() -> None:
    """w = (1, 1), L = 2, q = 1; F = 3 with w_1 = (0, 1), F = 1 with w_2 = (1, 3).

    Δ_1 = (2, 0), h_1 = 4 + 2 · 3 = 10; Δ_2 = (0, -4), h_2 = 16 + 2 · 1 = 18;
    w - (3 (2, 0) + 1 (0, -4)) / 28 = (1 - 6 / 28, 1 + 4 / 28).
    """
    found = step(1.0, 2.0, [1.0, 1.0], [(3.0, [0.0, 1.0]), (1.0, [1.0, 3.0])])
    np.testing.assert_allclose(found, [1 - 6 / 28, 1 + 4 / 28], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    q=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 5.0]),
    lipschitz=st.floats(0.1, 1000),
    answers=st.lists(
        st.tuples(st.floats(0.01, 20), st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3)),
        min_size=1,
        max_size=6,
    ),
)
def test_against_algorithm_2_in_numpy_in_any_order(
    q: float, lipschitz: float, answers: list[tuple[float, list[float]]]
) -> None:
    start = [0.5, -1.0, 2.0]
    expected = algorithm_2(q, lipschitz, start, answers)
    np.testing.assert_allclose(step(q, lipschitz, start, answers), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step(q, lipschitz, start, answers[::-1]), expected, rtol=1e-4, atol=1e-5)


def test_at_q_zero_l_does_not_matter_and_the_mean_is_uniform() -> None:
    answers = [(3.0, [0.0, 1.0]), (0.2, [1.0, 3.0])]
    for lipschitz in (0.01, 1.0, 5000.0):
        np.testing.assert_allclose(step(0.0, lipschitz, [7.0, -7.0], answers), [0.5, 2.0], rtol=1e-5)


@pytest.mark.parametrize("q", [0.0, 0.1, 1.0, 3.0])
def test_a_loss_of_zero_has_no_pole(q: float) -> None:
    found = step(q, 10.0, [1.0, 1.0], [(0.0, [0.0, 1.0]), (2.0, [1.0, 3.0])])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(
        found, algorithm_2(q, 10.0, [1.0, 1.0], [(0.0, [0.0, 1.0]), (2.0, [1.0, 3.0])]), rtol=1e-5
    )


def test_all_losses_zero_has_no_pole() -> None:
    assert np.isfinite(step(2.0, 10.0, [1.0, 1.0], [(0.0, [0.0, 1.0])])).all()


def test_the_higher_loss_pulls_harder_the_larger_q() -> None:
    """Two sites at equal distance: the share of the step towards the one that is worse off."""

    def share(q: float) -> float:
        x, y = step(q, 1.0, [0.0, 0.0], [(4.0, [1.0, 0.0]), (1.0, [0.0, 1.0])])
        return float(x / (x + y))

    assert [share(q) for q in (0.0, 1.0, 2.0)] == pytest.approx([1 / 2, 4 / 5, 16 / 17])


def test_uniform_fedavg_at_q_zero(federation: Make, sgd: dict[str, object]) -> None:
    one = federation(None, algorithm="qfedavg", keys={"q": 0, "lipschitz": 100}, train=sgd).loop.run().last
    two = federation(None, algorithm="fedavg", keys={"weighting": "uniform"}, train=sgd).loop.run().last
    for name in two:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)


def test_the_loss_is_of_the_download_and_the_only_further_number(federation: Make) -> None:
    made = federation(None, algorithm="qfedavg", keys={"lipschitz": 100}, rounds=1)
    numbers: dict[str, dict[str, float]] = {}
    expected = {}
    for site in made.sites:
        images, labels = site._train.batch(site._train.rows)
        made.model.eval()
        with torch.no_grad():
            expected[site.name] = F.cross_entropy(made.model((images.float() / 255 - 0.5) / 0.25), labels).item()

    class Listening(InProcess):
        def train(self, *args: Any) -> Iterator[Any]:
            for answer in super().train(*args):
                numbers[answer.site] = answer.metrics
                yield answer

    made.loop._transport = Listening(made.sites)
    made.loop.run()
    assert {site: n[START_LOSS] for site, n in numbers.items()} == pytest.approx(expected, rel=1e-5)
    assert set(numbers["lagos"]) == {"loss", "steps", "images", START_LOSS}
    assert ALGORITHMS["qfedavg"].numbers == {START_LOSS}


def test_a_loss_that_is_not_finite_is_rejected_by_name(federation: Make) -> None:
    made = federation(None, algorithm="qfedavg", keys={"lipschitz": 100}, rounds=1)

    class Poisoning(InProcess):
        def train(self, *args: Any) -> Iterator[Any]:
            for answer in super().train(*args):
                if answer.site == "lagos":
                    answer.metrics[START_LOSS] = float("nan")
                yield answer

    made.loop._transport = Poisoning(made.sites)
    outcome = made.loop.run()
    assert [r["site"] for r in outcome.progress.rejected] == ["lagos"]
    assert f"its number '{START_LOSS}' is nan" in outcome.progress.rejected[0]["reason"]
    assert all(torch.isfinite(t).all() for t in outcome.last.values())


def test_steady_and_free_of_order(steady: Callable[..., Any], order_free: Callable[..., None]) -> None:
    steady("qfedavg", keys={"q": 0.5, "lipschitz": 10.0})
    order_free("qfedavg", keys={"q": 0.5, "lipschitz": 10.0})


def test_keys(refuses: Callable[..., None]) -> None:
    refuses(QFedAvgConfig, "lipshitz", "lipschitz")
    with pytest.raises(ConfigError, match="key 'lipschitz' is missing"):
        validate(QFedAvgConfig, {"q": 1}, where="study.toml: arms.qfedavg")
    with pytest.raises(ConfigError, match="'q' = -1"):
        validate(QFedAvgConfig, {"q": -1, "lipschitz": 1}, where="study.toml: arms.qfedavg")
