"""FedPer: the classifier stays at its site, the body is FedAvg's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from morphfed.algorithms.base import ALGORITHMS
from morphfed.algorithms.fedper import FedPerConfig
from morphfed.core.errors import ConfigError
from morphfed.federation.transports.inprocess import InProcess
from morphfed.models.layout import Layout

Make = Callable[..., Any]
HEAD = ("6.weight", "6.bias")


def test_the_classifier_stays_and_all_else_travels(federation: Make) -> None:
    made = federation(None, algorithm="fedper")
    assert made.workspace.local == HEAD
    assert set(made.workspace.travels) | set(HEAD) == set(made.layout.order)


def test_with_one_site_it_is_fedavg_to_the_bit(federation: Make) -> None:
    """Who shares with nobody keeps body and head alike."""
    one = federation(None, algorithm="fedper", sizes={"kampala": 12}).loop.run()
    two = federation(None, algorithm="fedavg", sizes={"kampala": 12}).loop.run()
    mine = {**one.last, **{k: one.last_sites["kampala"][f"local/{k}"] for k in HEAD}}
    assert mine.keys() == two.last.keys()
    assert all(torch.equal(mine[k], two.last[k]) for k in mine)


def test_one_round_by_hand(federation: Make) -> None:
    """Body: the weighted NumPy mean of what the sites trained; heads: as each site trained its own."""
    made = federation(None, algorithm="fedper", rounds=1)
    trained: dict[str, dict[str, np.ndarray]] = {}

    class Listening(InProcess):
        def train(self, *args: Any) -> Any:
            for upload in super().train(*args):
                trained[upload.site] = {k: t.numpy().astype(np.float64) for k, t in made.model.state_dict().items()}
                yield upload

    made.loop._transport = Listening(made.sites)
    outcome = made.loop.run()
    images = {"kampala": 12, "lagos": 8, "quito": 6}
    for name, tensor in outcome.last.items():
        expected = sum(n * trained[site][name] for site, n in images.items()) / 26
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-7)
    for site in images:
        for name in HEAD:
            np.testing.assert_array_equal(outcome.last_sites[site][f"local/{name}"].numpy(), trained[site][name])
    assert not np.array_equal(trained["kampala"]["6.weight"], trained["lagos"]["6.weight"])


@pytest.mark.parametrize("name", ["fedper", "fedrep", "moon"])
def test_a_network_whose_classifier_is_unknown_is_refused_before_training(federation: Make, name: str) -> None:
    layout = Layout.of(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=f"{name}: this network's classifier is not known") as caught:
        ALGORITHMS[name].travels(ALGORITHMS[name].config(), layout)
    assert "model.name" in caught.value.fix
    with pytest.raises(ConfigError):
        federation(None, algorithm=name, head=())


def test_steady_and_free_of_order(steady: Callable[..., Any], order_free: Callable[..., None]) -> None:
    outcome = steady("fedper")
    assert not set(HEAD) & set(outcome.last)
    order_free("fedper")


def test_a_newcomer_has_no_classifier(refuses: Callable[..., None]) -> None:
    assert ALGORITHMS["fedper"].newcomer(FedPerConfig()) == ""
    refuses(FedPerConfig, "wheighting", "weighting")
