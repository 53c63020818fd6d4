"""MOON: the contrastive term against NumPy and finite differences, and FedAvg where it must vanish."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from morphfed.algorithms.base import ALGORITHMS, SiteWork
from morphfed.algorithms.moon import ContrastiveSite, Features, MoonConfig, contrastive
from morphfed.core.config import validate
from morphfed.core.errors import ConfigError
from morphfed.models.layout import Layout

Make = Callable[..., Any]


def written_out(z: np.ndarray, z_glob: np.ndarray, z_prev: np.ndarray, temperature: float) -> float:
    """Equation 3 of the paper as it stands, in NumPy."""

    def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        similarity: np.ndarray = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
        return similarity

    near, far = np.exp(cosine(z, z_glob) / temperature), np.exp(cosine(z, z_prev) / temperature)
    return float(np.mean(-np.log(near / (near + far))))


def test_by_hand() -> None:
    """z along z_glob and across z_prev, τ = 0.5: -log(e² / (e² + 1)) = log(1 + e⁻²)."""
    z, across = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert contrastive(z, z * 5, across, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert contrastive(z, across, z, 0.5).item() == pytest.approx(math.log(1 + math.exp(2)))
    assert contrastive(z, across, across, 0.5).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_against_numpy_and_finite_differences(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    z, z_glob, z_prev = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    found = contrastive(z, z_glob, z_prev, temperature).item()
    assert found == pytest.approx(written_out(z.numpy(), z_glob.numpy(), z_prev.numpy(), temperature), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: contrastive(x, z_glob, z_prev, temperature), z.requires_grad_())


def test_where_both_models_agree_the_gradient_is_zero() -> None:
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    other = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    contrastive(z, other, other.clone(), 0.5).backward()
    torch.testing.assert_close(z.grad, torch.zeros(4, 3), rtol=0, atol=1e-8)


def test_features_are_what_enters_the_classifier() -> None:
    """Vectors as they are; a map, of a classifier that is a 1 × 1 convolution, as its mean over space."""
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(48, 2))
    with Features.of(plain, Layout.of(plain, ["2.weight", "2.bias"])) as seen:
        plain(images)
        assert torch.equal(seen.take(), images.flatten(1).relu())
        with pytest.raises(RuntimeError, match="not called"):
            seen.take()
    spatial = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 1))
    with Features.of(spatial, Layout.of(spatial, ["1.weight", "1.bias"])) as seen:
        spatial(images)
        torch.testing.assert_close(seen.take(), images.relu().mean(dim=(2, 3)))
    assert not spatial[1]._forward_pre_hooks


def test_with_mu_zero_it_is_fedavg_to_the_bit(federation: Make) -> None:
    plain = federation(None).loop.run()
    found = federation(None, algorithm="moon", keys={"mu": 0.0}).loop.run()
    assert all(torch.equal(found.last[k], plain.last[k]) for k in plain.last)
    assert found.last_sites == {}


def test_the_frozen_models_draw_no_numbers_and_move_no_statistics(federation: Make) -> None:
    """With a μ too small to change a bit of any gradient, all the machinery runs and FedAvg comes out."""
    plain = federation(None).loop.run()
    found = federation(None, algorithm="moon", keys={"mu": 1e-30}).loop.run()
    assert all(torch.equal(found.last[k], plain.last[k]) for k in plain.last)
    assert not all(
        torch.equal(t, plain.last[k])
        for k, t in federation(None, algorithm="moon", keys={"mu": 1.0}).loop.run().last.items()
    )


def test_the_first_round_is_plain_and_keeps_what_was_uploaded(federation: Make) -> None:
    plain = federation(None, rounds=1, sizes={"kampala": 12}).loop.run().last
    found = federation(None, algorithm="moon", keys={"mu": 5.0}, rounds=1, sizes={"kampala": 12}).loop.run()
    assert all(torch.equal(found.last[k], plain[k]) for k in plain)
    assert all(torch.equal(found.last_sites["kampala"][f"algorithm/{k}"], plain[k]) for k in plain)


def test_term_of_the_second_round_is_that_of_three_networks(federation: Make) -> None:
    """z, z_glob and z_prev by three networks of our own; the term that training adds is μ ℓ_con of them."""
    made = federation(None, algorithm="moon", sizes={"kampala": 12})
    generator = torch.Generator().manual_seed(5)
    travels = made.workspace.travels
    # Near the start, so that variances stay positive.
    now, prev = (
        {
            k: made.model.state_dict()[k] + 0.1 * torch.rand(made.model.state_dict()[k].shape, generator=generator)
            for k in travels
        }
        for _ in range(2)
    )
    made.workspace.load(now)
    work: SiteWork = made.sites[0]._work(2, 3)
    work.state.update({k: t.clone() for k, t in prev.items()})
    images = torch.randn(5, 3, 8, 8, generator=generator)
    terms = []

    def fit(*, extra_loss: Any) -> Any:
        made.model.eval()
        terms.append(extra_loss(images, made.model(images)).item())
        return made.sites[0]._trainer.fit

    work.fit = fit
    answer = ContrastiveSite(3.0, 0.5).train(work, now)
    assert all(torch.equal(made.model.state_dict()[k], now[k]) for k in travels)
    assert all(torch.equal(answer.tensors[k], now[k]) for k in travels)

    def features(weights: dict[str, torch.Tensor]) -> np.ndarray:
        network = federation(None).model
        network.load_state_dict(weights, strict=False)
        with torch.no_grad():
            return network.eval()[:-1](images).double().numpy()

    expected = 3.0 * written_out(features(now), features(now), features(prev), 0.5)
    assert terms == [pytest.approx(expected, rel=1e-5)]
    assert abs(expected - 3.0 * math.log(2)) > 1e-4


@pytest.mark.parametrize("norm", ["batch", "local"])
def test_steady(steady: Callable[..., Any], norm: str) -> None:
    steady("moon", keys={"mu": 5.0}, norm=norm)


def test_free_of_order(order_free: Callable[..., None]) -> None:
    order_free("moon")


def test_keys(refuses: Callable[..., None]) -> None:
    refuses(MoonConfig, "temprature", "temperature")
    with pytest.raises(ConfigError, match="'temperature' = 0"):
        validate(MoonConfig, {"temperature": 0}, where="study.toml: arms.moon")
    assert ALGORITHMS["moon"].config() == MoonConfig(mu=1.0, temperature=0.5)
