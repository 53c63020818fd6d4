"""The coordinator's rules beside Flower's strategies, where those compute what the papers say.

Where Flower does not: it starts second moments at 0 instead of τ² (given to it here), corrects FedAdam's rate as of the
round after (divided out here), and lets buffers take part (constant here).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from tests.algorithms.common import coordinator, model

from morphfed.core.types import Tensors, Upload

if find_spec("flwr") is None:
    pytest.skip("the extra 'flower' is not installed; make test-network has it", allow_module_level=True)

import morphfed.federation.transports.flower  # noqa: F401 -- it silences Flower's telemetry, which is read at import

# isort: split
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common import Metadata
from flwr.serverapp import strategy as strategies

SITES, SIZE, ROUNDS = 5, 40, 4
ETA, BETA1, BETA2, TAU = 0.1, 0.8, 0.95, 1e-2
COUNTS, LOSSES = [30, 10, 20, 25, 15], [0.9, 0.2, 1.4, 0.5, 0.7]


def drawn(number: int) -> list[Tensors]:
    generator = torch.Generator().manual_seed(number)
    return [{**model([0.0]), "w": torch.randn(SIZE, generator=generator)} for _ in range(SITES)]


def record(tensors: Tensors) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.numpy().copy()) for name, tensor in tensors.items()})


def replies(models: Sequence[Tensors], counts: Sequence[int]) -> list[Any]:
    made = []
    for k, (tensors, count) in enumerate(zip(models, counts, strict=True)):
        arrays = record(tensors)
        numbers = MetricRecord({"num-examples": count, "train_loss": LOSSES[k]})
        about = Metadata(1, f"m{k}", k + 1, 1, "", "g", time.time(), 3600.0, "train")
        made.append(Message(metadata=about, content=RecordDict({"arrays": arrays, "metrics": numbers})))
    return made


def theirs(strategy: Any, number: int, models: Sequence[Tensors], counts: Sequence[int]) -> np.ndarray:
    arrays, _ = strategy.aggregate_train(number, replies(models, counts))
    return np.asarray(arrays["w"].numpy(), dtype=np.float64)


def ours(half: Any, number: int, models: Sequence[Tensors], counts: Sequence[int]) -> np.ndarray:
    sites = [f"s{k}" for k in range(len(models))]
    half.begin_round(number, sites)
    for k, (site, tensors) in enumerate(zip(sites, models, strict=True)):
        half.fold(
            Upload(site, number, {n: t.clone() for n, t in tensors.items()}, counts[k], {"start_loss": LOSSES[k]})
        )
    half.end_round()
    found: np.ndarray = half.model()["w"].double().numpy()
    return found


CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], Sequence[int]]] = {
    "fedavg": ("fedavg", {}, "FedAvg", {}, COUNTS),
    "fedmedian": ("fedmedian", {}, "FedMedian", {}, COUNTS),
    "fedtrimmed": ("fedtrimmed", {"beta": 0.2}, "FedTrimmedAvg", {"beta": 0.2}, COUNTS),
    "krum": ("krum", {"f": 1}, "Krum", {"num_malicious_nodes": 1}, [1] * SITES),
    "multikrum": (
        "multikrum",
        {"f": 1, "m": 3},
        "MultiKrum",
        {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
        [1] * SITES,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_round(case: str) -> None:
    name, keys, strategy, their_keys, counts = CASES[case]
    uploads = drawn(7)
    expected = theirs(getattr(strategies, strategy)(**their_keys), 1, uploads, counts)
    found = ours(coordinator(name, {**model([0.0]), "w": torch.zeros(SIZE)}, **keys), 1, uploads, counts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_fair_federated_averaging() -> None:
    start = {**model([0.0]), "w": torch.full((SIZE,), 0.5)}
    rule = strategies.QFedAvg(client_learning_rate=0.05, q=0.7, train_loss_key="train_loss")
    rule.current_arrays = record(start)
    expected = theirs(rule, 1, drawn(3), COUNTS)
    found = ours(coordinator("qfedavg", start, q=0.7, lipschitz=20.0), 1, drawn(3), COUNTS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_momentum_over_rounds() -> None:
    start = {**model([0.0]), "w": torch.full((SIZE,), 0.5)}
    half = coordinator("fedavgm", start, eta=0.7, beta=BETA1)
    rule = strategies.FedAvgM(server_learning_rate=0.7, server_momentum=BETA1)
    rule.current_arrays = record(start)
    for number in range(1, ROUNDS + 1):
        expected = theirs(rule, number, drawn(number), COUNTS)
        found = ours(half, number, drawn(number), COUNTS)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "strategy"), [("fedadagrad", "FedAdagrad"), ("fedadam", "FedAdam"), ("fedyogi", "FedYogi")]
)
def test_adaptive_servers_over_rounds(name: str, strategy: str) -> None:
    start = {**model([0.0]), "w": torch.full((SIZE,), 0.5)}
    known: dict[str, Any] = {"eta": ETA, "tau": TAU}
    half = coordinator(name, start, **known, **_betas(name, "beta1", "beta2"))
    rule = getattr(strategies, strategy)(**known, **_betas(name, "beta_1", "beta_2"))
    rule.v_t = {n: np.full(t.shape, TAU**2) for n, t in start.items()}
    now = start["w"].double().numpy()
    for number in range(1, ROUNDS + 1):
        rule.current_arrays = {n: (now if n == "w" else t.numpy()) for n, t in start.items()}
        step = theirs(rule, number, drawn(number), COUNTS) - now
        if name == "fedadam":
            step /= np.sqrt(1 - BETA2 ** (number + 1)) / (1 - BETA1 ** (number + 1))
        found = ours(half, number, drawn(number), COUNTS)
        np.testing.assert_allclose(found, now + step, rtol=1e-4, atol=1e-5)
        now = found


def _betas(name: str, first: str, second: str) -> dict[str, float]:
    """Adagrad has no β of its own in Flower."""
    return {} if name == "fedadagrad" else {first: BETA1, second: BETA2}
