"""Noise at a site: clipping by hand, the spread of the draws, ε against the Gaussian mechanism's own formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from morphfed.core.config import validate
from morphfed.core.errors import ConfigError, MissingExtraError, TrainingError
from morphfed.core.types import Tensors
from morphfed.privacy import accounting
from morphfed.privacy.accounting import epsilon, need_accounting
from morphfed.privacy.noise import Noise, NoiseConfig, is_bias

N = 200
WHERE = {"site": "kampala", "round_number": 3}
SILENT = 1e-12
"""A multiplier whose noise is below float32's resolution."""


def calibrated(clip: float, multiplier: float, **keys: Any) -> NoiseConfig:
    return NoiseConfig(kind="calibrated", clip=clip, multiplier=multiplier, **keys)


def tensors(*, scale: float = 1.0) -> tuple[Tensors, Tensors]:
    """An upload and its download: 40,000 weights, a bias, a control variate's change, a statistic."""
    stream = torch.Generator().manual_seed(0)
    down = {"w": torch.randn(N, N, generator=stream), "bias": torch.zeros(N), "mean": torch.ones(4)}
    up = {name: t + scale * torch.randn(t.shape, generator=stream) for name, t in down.items()}
    return {**up, "control/w": scale * torch.randn(N, N, generator=stream)}, down


def test_a_change_of_length_five_is_cut_to_one() -> None:
    noise = Noise(calibrated(1.0, SILENT), weights=["w"], changes=["c"])
    up, down = {"w": torch.tensor([13.0, 20.0]), "c": torch.tensor([4.0])}, {"w": torch.tensor([10.0, 20.0])}
    found = noise.add(up, down, **WHERE)
    torch.testing.assert_close(found["w"], torch.tensor([10.6, 20.0]))
    torch.testing.assert_close(found["c"], torch.tensor([0.8]))
    assert up["w"].tolist() == [13.0, 20.0]  # the network that it refers to stays


def test_a_short_change_and_none_at_all_are_left() -> None:
    noise = Noise(calibrated(6.0, SILENT), weights=["w"])
    down = {"w": torch.tensor([10.0, 20.0])}
    torch.testing.assert_close(noise.add({"w": torch.tensor([13.0, 24.0])}, down, **WHERE)["w"].tolist(), [13.0, 24.0])
    assert noise.add(dict(down), down, **WHERE)["w"].tolist() == [10.0, 20.0]


@pytest.mark.parametrize("scale", [1e-6, 1.0])
def test_calibrated_noise_has_the_spread_multiplier_times_clip(scale: float) -> None:
    """Whatever the change: far below the norm that is allowed, and far above."""
    up, down = tensors(scale=scale)
    found = Noise(calibrated(0.5, 3.0), weights=["w", "bias"], changes=["control/w"]).add(up, down, **WHERE)
    total = math.sqrt(sum(float((up[n] - down.get(n, 0.0)).square().sum()) for n in ("w", "bias", "control/w")))
    factor = min(1.0, 0.5 / total)
    for name in ("w", "control/w"):
        change = up[name] - down[name] if name in down else up[name]
        kept = factor * change + down.get(name, 0.0)
        drawn = found[name] - kept
        assert drawn.std().item() == pytest.approx(1.5, rel=0.02)
        assert abs(drawn.mean().item()) < 4 * 1.5 / N
    assert not torch.equal(found["bias"], up["bias"])
    assert found["mean"] is up["mean"]


@pytest.mark.parametrize("biases", [False, True])
def test_published_noise_has_a_share_of_each_tensors_spread(biases: bool) -> None:
    up, down = tensors()
    up["bias"] = 3 * torch.randn(N * N, generator=torch.Generator().manual_seed(1))
    config = NoiseConfig(kind="as_published", alpha=0.2, biases=biases)
    found = Noise(config, weights=["w", "bias"], changes=["control/w"]).add(up, down, **WHERE)
    for name in ("w", "control/w", *(["bias"] if biases else [])):
        assert (found[name] - up[name]).std().item() == pytest.approx(0.2 * up[name].std().item(), rel=0.02)
    assert (found["bias"] is up["bias"]) != biases
    assert found["mean"] is up["mean"]


def test_no_published_noise_at_alpha_zero() -> None:
    up, down = tensors()
    found = Noise(NoiseConfig(kind="as_published", alpha=0.0), weights=["w"]).add(up, down, **WHERE)
    assert all(torch.equal(found[name], up[name]) for name in up)


@pytest.mark.parametrize("kind", ["as_published", "calibrated"])
def test_draws(kind: Any) -> None:
    """From the study: the same again, others for another site, round, tensor or seed. Secret: never the same."""
    keys: dict[str, Any] = {"alpha": 1.0} if kind == "as_published" else {"clip": 1.0, "multiplier": 1.0}
    up = {name: torch.linspace(-1, 1, 50) for name in ("v", "w")}

    def drawn(seed: int = 0, draw: Any = "study", **where: Any) -> Tensors:
        noise = Noise(NoiseConfig(kind=kind, draw=draw, **keys), weights=list(up), seed=seed)
        return noise.add(up, up, **(WHERE | where))

    one = drawn()
    assert torch.equal(one["w"], drawn()["w"])
    assert not torch.equal(one["w"], one["v"])
    for other in (drawn(seed=1), drawn(site="lagos"), drawn(round_number=4), drawn(draw="secret")):
        assert not torch.equal(one["w"], other["w"])
    assert not torch.equal(drawn(draw="secret")["w"], drawn(draw="secret")["w"])


def test_a_change_that_is_not_finite_is_not_sent() -> None:
    noise = Noise(calibrated(1.0, 1.0), weights=["w"])
    for bad in (float("nan"), float("inf")):
        with pytest.raises(TrainingError, match="Site 'kampala', round 3: the change of its model is not finite"):
            noise.add({"w": torch.tensor([bad])}, {"w": torch.zeros(1)}, **WHERE)


def test_biases_are_told_by_name() -> None:
    assert [n for n in ("a.bias", "attn.in_proj_bias", "debiased.weight", "bias.weight") if is_bias(n)] == [
        "a.bias",
        "attn.in_proj_bias",
    ]


# ── ε ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def exact(multiplier: float, releases: int, delta: float) -> float:
    """R Gaussian mechanisms are one with multiplier m / √R, whose δ(ε) is known (Balle and Wang, ICML 2018, theorem 8):
    ``Φ(1 / 2m - ε m) - e^ε Φ(-1 / 2m - ε m)``."""
    m = multiplier / math.sqrt(releases)
    return float(
        brentq(lambda e: norm.cdf(0.5 / m - e * m) - math.exp(e) * norm.cdf(-0.5 / m - e * m) - delta, 0.0, 500.0)
    )


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("releases", [1, 10, 50])
def test_epsilon_is_the_gaussian_mechanisms(multiplier: float, releases: int) -> None:
    found, right = epsilon(multiplier, releases, 1e-5), exact(multiplier, releases, 1e-5)
    assert found == pytest.approx(right, rel=1e-6)


def test_epsilon_agrees_with_the_privacy_loss_distribution() -> None:
    """Numerical composition, which knows nothing of the closed form; it rounds up."""
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(4.0), 20))
    assert epsilon(4.0, 20, 1e-5) == pytest.approx(4.983, abs=1e-3)
    assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon(4.0, 20, 1e-5), abs=2e-3)


@pytest.mark.parametrize("multiplier", [1e-3, 1e3])
def test_epsilon_of_hardly_any_and_of_very_much_noise_is_a_number(multiplier: float) -> None:
    assert 0.0 <= epsilon(multiplier, 1000, 1e-5) < 1e12


def test_nothing_sent_nothing_spent() -> None:
    assert epsilon(1.0, 0, 1e-5) == 0.0


def test_a_site_counts_as_replaced_by_any_other() -> None:
    """Two clipped changes differ by 2 C at most, so noise of z C is a multiplier of z / 2."""
    noise = Noise(calibrated(0.3, 8.0), weights=["w"])
    assert noise.spent(5) == epsilon(4.0, 5, 1e-5)
    told = noise.describe(5)
    assert told == {
        "kind": "calibrated",
        "clip": 0.3,
        "std": pytest.approx(2.4),
        "unit": "site",
        "delta": 1e-5,
        "epsilon": noise.spent(5),
        "draw": "study",
    }


def test_published_noise_has_no_epsilon() -> None:
    noise = Noise(NoiseConfig(kind="as_published", alpha=10.0), weights=["w"])
    assert noise.spent(5) is None
    assert noise.describe(5)["epsilon"] is None


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"morphfed\[privacy\]"):
        need_accounting()


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "calibrated"}, "needs clip and multiplier"),
        ({"kind": "calibrated", "clip": 1.0}, "needs clip and multiplier"),
        (
            {"kind": "calibrated", "clip": 1.0, "multiplier": 1.0, "alpha": 0.1},
            "'alpha' is no key of kind = 'calibrated'",
        ),
        ({"kind": "as_published", "clip": 1.0}, "'clip' is no key of kind = 'as_published'"),
        ({"kind": "as_published", "delta": 1e-6}, "'delta' is no key"),
        ({"kind": "calibrated", "clip": 0.0, "multiplier": 1.0}, "greater than 0"),
        ({"kind": "calibrated", "clip": 1.0, "multiplier": 1.0, "delta": 1.0}, "less than 1"),
        ({"kind": "calibratd"}, "Did you mean 'calibrated'"),
        ({"klip": 1.0}, "Did you mean 'clip'"),
    ],
)
def test_keys_that_do_not_fit(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(NoiseConfig, keys, where="study.toml: federation.noise")


def test_without_noise_the_keys_of_a_kind_may_stand() -> None:
    assert NoiseConfig(clip=1.0, multiplier=2.0).kind == "none"
