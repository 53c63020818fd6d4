"""PFA: worked cases, the formula written out with NumPy's full transforms, FedAvg as a limit, and resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from morphfed.algorithms.base import ALGORITHMS, Outlook
from morphfed.algorithms.prr.fourier import Pfa, PfaConfig, share_of_sides
from morphfed.algorithms.prr.spectrum import band_weights, matrix, plane, share_band, shared_band, weight_of
from morphfed.core.types import Tensors, Upload
from morphfed.models.layout import Layout

Make = Callable[..., Any]
PHASES = ["private", "arithmetic", "circular", "complex"]
WHOLE = {"l_start": 1.0, "l_end": 1.0}
W1 = [[1, -2, 3, 0], [4, 1, -1, 2], [0, 2, 5, -3], [-2, 1, 0, 1]]
W2 = [[0, 1, -1, 2], [3, -2, 1, 0], [1, 1, 4, -1], [2, 0, -3, 1]]
# W1's result at L = 0.7 with the published band.
GOLDEN = {
    "private": [
        [1.026670, -2.054121, 2.839569, -0.079640],
        [3.800122, 0.719331, -1.148839, 1.931952],
        [-0.265210, 1.892140, 5.023971, -3.133379],
        [-2.038661, 1.118689, 0.012378, 0.855028],
    ],
    "arithmetic": [
        [1.303307, -2.157646, 2.382473, -0.156574],
        [3.997508, 0.849641, -1.441787, 1.706079],
        [0.261574, 2.282160, 4.677645, -3.342940],
        [-1.432626, 1.274873, -0.498094, 0.794407],
    ],
    "complex": [
        [1.1875, -2.4375, 2.5625, 0.1875],
        [3.875, 0.625, -1.3125, 1.9375],
        [0.1875, 2.0, 4.6875, -3.125],
        [-1.5, 0.9375, -0.4375, 1.125],
    ],
}


def written_out(models: np.ndarray, ratio: float, phase: str, symmetric: bool, sides: int) -> tuple[np.ndarray, float]:
    """The rule with full shifted transforms: models ``(K, …)`` afterwards, and the largest imaginary part."""
    axes = tuple(range(-sides, 0))
    spectrum = np.fft.fftshift(np.fft.fftn(models, axes=axes), axes=axes)
    masks = []
    for n in models.shape[-sides:]:
        b, c = int(np.floor(n * ratio / 2)), n // 2
        inside = np.zeros(n, dtype=bool)
        inside[c - b : c + b + (1 if symmetric else 0)] = True
        masks.append(inside)
    inside = np.logical_and.outer(*masks) if sides == 2 else masks[0]
    # Rounding gives real coefficients an angle of π in one model and -π in another: no part of the rule.
    angle = np.where(np.abs(spectrum.imag) < 1e-12, np.where(spectrum.real < 0, np.pi, 0.0), np.angle(spectrum))
    amplitude = np.abs(spectrum)
    if phase == "complex":
        common = np.broadcast_to(spectrum.mean(0), spectrum.shape)
    else:
        phases = {
            "private": angle,
            "arithmetic": angle.mean(0),
            "circular": np.angle(np.exp(1j * angle).mean(0)),
        }[phase]
        common = amplitude.mean(0) * np.exp(1j * np.broadcast_to(phases, spectrum.shape))
    mixed = np.where(inside, common, spectrum)
    found = np.fft.ifftn(np.fft.ifftshift(mixed, axes=axes), axes=axes)
    return found.real, float(np.abs(found.imag).max())


def mix(models: np.ndarray, ratio: float, phase: Any, symmetric: bool, sides: Any) -> np.ndarray:
    stack = torch.from_numpy(models)
    shares = [1 / len(models)] * len(models)
    found = share_band(list(stack), stack.mean(0), shares, ratio=ratio, phase=phase, symmetric=symmetric, sides=sides)
    return torch.stack(list(found)).numpy()


@pytest.mark.parametrize("phase", GOLDEN)
def test_four_by_four(phase: Any) -> None:
    found = mix(np.array([W1, W2], dtype=float), 0.7, phase, False, 2)
    np.testing.assert_allclose(found[0], GOLDEN[phase], atol=1e-6)


@pytest.mark.parametrize(
    ("n", "bands"),
    [
        (3, [(0, 2), (0, 2), (0, 2)]),
        (9, [(1, 7), (1, 7), (0, 8)]),
        (64, [(10, 54), (6, 58), (2, 62)]),
        (96, [(15, 81), (9, 87), (3, 93)]),
        (256, [(39, 217), (24, 232), (8, 248)]),
    ],
)
def test_published_bands_by_hand(n: int, bands: list[tuple[int, int]]) -> None:
    for ratio, (start, stop) in zip((0.7, 0.82, 0.945), bands, strict=True):
        shifted = torch.fft.fftshift(shared_band(n, ratio, symmetric=False)).tolist()
        assert shifted == [start <= i < stop for i in range(n)]


@pytest.mark.parametrize(
    ("shape", "shares"),
    [((9, 96), (0.458, 0.542, 0.833)), ((96, 96), (0.473, 0.660, 0.879)), ((768, 768), (0.487, 0.669, 0.889))],
)
def test_published_share_of_coefficients(shape: tuple[int, int], shares: tuple[float, ...]) -> None:
    for ratio, share in zip((0.7, 0.82, 0.945), shares, strict=True):
        rows, columns = (shared_band(n, ratio, symmetric=False).double().mean().item() for n in shape)
        assert rows * columns == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 64])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
def test_a_symmetric_band_is_its_own_mirror_image(n: int, ratio: float) -> None:
    """So each of its coefficients counts in full; at L = 1 it holds every frequency, also of odd sides."""
    assert set(band_weights((n, n), ratio, symmetric=True).flatten().tolist()) <= {0.0, 1.0}
    band = shared_band(n, ratio, symmetric=True)
    assert band[0]
    assert ratio < 1 or bool(band.all())


def test_the_schedule_never_reaches_its_end() -> None:
    found = [share_of_sides(0.7, 0.95, r, 50) for r in (1, 26, 50)]
    assert found == pytest.approx([0.700, 0.825, 0.945])


def test_layout_by_hand_and_back() -> None:
    w = torch.zeros(2, 2, 1, 2)
    for o in range(2):
        for i in range(2):
            for b in range(2):
                w[o, i, 0, b] = 100 * o + 10 * i + b
    assert matrix(w).tolist() == [[0, 100, 1, 101], [10, 110, 11, 111]]
    for shape in [(5, 3, 2, 4), (5, 3, 7), (2, 3, 2, 3, 4), (5, 3)]:
        weight = torch.randn(shape)
        assert matrix(weight).shape[1] == shape[0] * (shape[-1] if len(shape) > 2 else 1) or len(shape) == 2
        assert torch.equal(weight_of(plane(weight), weight.shape), weight)
    rows = torch.randn(6, 5, 3, 3)
    expected = rows.permute(1, 2, 3, 0).reshape(15, 18)
    assert torch.equal(matrix(rows), expected)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(9, 96), (6, 7), (7, 6), (1, 5), (2, 2)])
def test_against_full_transforms(phase: str, symmetric: bool, shape: tuple[int, int]) -> None:
    models = np.random.default_rng(0).normal(size=(3, *shape))  # of an odd number no directions cancel
    for ratio in (0.3, 0.7, 0.945, 1.0):
        expected, imaginary = written_out(models, ratio, phase, symmetric, 2)
        np.testing.assert_allclose(mix(models, ratio, phase, symmetric, 2), expected, atol=1e-9)
        if symmetric and phase != "arithmetic":  # a mean of the angles 0 and π of a real coefficient is neither
            assert imaginary < 1e-12


def test_the_published_band_leaves_imaginary_parts() -> None:
    models = np.random.default_rng(0).normal(size=(4, 9, 12))
    assert written_out(models, 0.7, "complex", False, 2)[1] > 1e-3


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_one_by_one(phase: str, symmetric: bool) -> None:
    models = np.random.default_rng(1).normal(size=(3, 5, 64))
    found = mix(models, 0.7, phase, symmetric, 1)
    np.testing.assert_allclose(found, written_out(models, 0.7, phase, symmetric, 1)[0], atol=1e-9)
    other = models.copy()
    other[:, 1:] = 0.5
    np.testing.assert_allclose(mix(other, 0.7, phase, symmetric, 1)[:, 0], found[:, 0], atol=1e-12)


@pytest.mark.parametrize("phase", PHASES)
def test_equal_models_stay_as_they_are(phase: Any) -> None:
    one = np.random.default_rng(2).normal(size=(1, 8, 10)).astype(np.float32)
    np.testing.assert_allclose(mix(np.repeat(one, 3, 0), 0.8, phase, True, 2)[0], one[0], atol=1e-5)


def test_negative_angles_at_the_edge_are_not_averaged_to_their_opposite() -> None:
    """A constant negative matrix has one coefficient, real and negative: its angle is π in every model."""
    models = np.stack([np.full((6, 6), -1.0), np.full((6, 6), -3.0)])
    np.testing.assert_allclose(mix(models, 0.7, "arithmetic", False, 2), np.full((2, 6, 6), -2.0), atol=1e-12)


def test_phases_that_cancel_stay_each_model_s_own() -> None:
    models = np.stack([np.full((4, 4), -1.0), np.full((4, 4), 1.0)])
    np.testing.assert_allclose(mix(models, 1.0, "circular", True, 2), models, atol=1e-12)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )


def layout_of(model: nn.Module) -> Layout:
    return Layout.of(model, ("5.weight", "5.bias"))


def uploads_of(names: tuple[str, ...], count: int) -> list[Tensors]:
    state = network().state_dict()
    found = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        found.append({n: state[n] + 0.3 * torch.randn(state[n].shape, generator=generator) for n in names})
    return found


def coordinator(**keys: Any) -> tuple[Pfa, tuple[str, ...]]:
    model = network()
    config, layout = PfaConfig(**keys), layout_of(model)
    names = ALGORITHMS["pfa"].travels(config, layout)
    half = Pfa({n: model.state_dict()[n] for n in names}, layout, config)
    half.plan(Outlook(10))
    return half, names


def one_round(half: Pfa, number: int, models: dict[str, Tensors], weight: float = 1.0) -> None:
    half.begin_round(number, list(models))
    for i, (site, tensors) in enumerate(models.items()):
        half.fold(Upload(site, number, tensors, weight + i))
    half.end_round()


def test_norms_stay_and_all_else_travels() -> None:
    assert coordinator()[1] == ("0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias", "5.weight", "5.bias")
    assert "1.running_mean" in coordinator(norms="travel")[1]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("classifier", ["rows", "matrix"])
def test_every_tensor_by_its_own_rule(phase: str, classifier: str) -> None:
    """Layers of one shape are transformed together; each comes out as if it were alone."""
    half, names = coordinator(phase=phase, classifier=classifier, symmetric=False)
    models = uploads_of(names, 3)
    one_round(half, 4, dict(zip("abc", models, strict=True)))
    ratio = 0.7 + 3 / 10 * 0.25
    for name in names:
        stack = np.stack([m[name].double().numpy() for m in models])
        if name.endswith("bias"):
            expected = np.broadcast_to(stack.mean(0), stack.shape)
        elif name == "5.weight":
            expected = written_out(stack, ratio, phase, False, 1 if classifier == "rows" else 2)[0]
        else:
            flat = np.stack([w.transpose(1, 2, 3, 0).reshape(w.shape[1] * w.shape[2], -1) for w in stack])
            back = written_out(flat, ratio, phase, False, 2)[0]
            o, i, kh, kw = stack.shape[1:]
            expected = back.reshape(3, i, kh, kw, o).transpose(0, 4, 1, 2, 3)
        for k, site in enumerate("abc"):
            np.testing.assert_allclose(half.download(site)[name].numpy(), expected[k], atol=2e-5, err_msg=name)


def test_a_site_without_an_upload_gets_the_band_of_the_others() -> None:
    half, names = coordinator(phase="complex")
    a, b, c, d = uploads_of(names, 4)
    one_round(half, 1, {"a": a, "b": b})
    before = half.download("b")["2.weight"].double().clone()
    one_round(half, 2, {"a": c, "c": d})
    mean = (c["2.weight"] + d["2.weight"]).double() / 2
    flat = [plane(before), plane(mean)]
    expected, _ = share_band(flat, flat[1], [0.0, 1.0], ratio=0.725, phase="complex", symmetric=True, sides=2)
    torch.testing.assert_close(plane(half.download("b")["2.weight"]).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half.model()["2.weight"].double(), mean, atol=1e-6, rtol=1e-6)
    assert half.download("nobody") is half.model()


def test_weights_by_images() -> None:
    half, names = coordinator(weighting="images", **WHOLE)
    a, b = uploads_of(names, 2)
    one_round(half, 1, {"a": a, "b": b}, weight=2.0)  # 2 and 3 images
    torch.testing.assert_close(half.download("a")["0.weight"], (2 * a["0.weight"] + 3 * b["0.weight"]) / 5)


def test_the_rounds_must_be_known() -> None:
    half, names = coordinator()
    half.plan(Outlook(0))
    with pytest.raises(RuntimeError, match="plan"):
        one_round(half, 1, {"a": uploads_of(names, 1)[0]})


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_with_all_shared_it_is_fedavg_to_the_bit(federation: Make, norm: str) -> None:
    """Without norms FedAvg; with norms that stay FedBN."""
    other = "fedavg" if norm == "none" else "fedbn"
    plain = federation(None, algorithm=other, keys={"weighting": "uniform"}, norm=norm).loop.run()
    found = federation(None, algorithm="pfa", keys=WHOLE, norm=norm).loop.run()
    assert plain.last.keys() == found.last.keys()
    assert all(torch.equal(plain.last[k], found.last[k]) for k in plain.last)
    for site, own in found.last_sites.items():
        assert all(torch.equal(own[f"download/{k}"], t) for k, t in plain.last.items()), site


def test_each_site_is_judged_by_its_own_download(federation: Make) -> None:
    from morphfed.federation.loop import downloads_of

    made = federation(None, algorithm="pfa", rounds=2)
    outcome = made.loop.run()
    used = downloads_of(outcome.last, outcome.last_sites)
    assert all(torch.equal(used[s][k], t) for s in used for k, t in made.coordinator.download(s).items())
    assert not torch.equal(used["kampala"]["0.weight"], used["lagos"]["0.weight"])
    mean = sum(u["0.weight"] for u in used.values()) / 3
    torch.testing.assert_close(mean, outcome.last["0.weight"])  # a linear rule keeps the mean


@pytest.mark.parametrize("phase", PHASES)
def test_steady(steady: Callable[..., Any], phase: str) -> None:
    outcome = steady("pfa", {"phase": phase})
    assert {name.partition("/")[0] for name in outcome.last_sites["quito"]} == {"local", "download"}


def test_free_of_order_and_strict(order_free: Callable[..., None], refuses: Callable[..., None]) -> None:
    order_free("pfa")
    refuses(PfaConfig, "symetric", "symmetric")


def test_bytes_of_own_downloads_are_counted(federation: Make, tmp_path: Path) -> None:
    plain = federation(None, algorithm="fedbn", rounds=2).loop.run().progress
    found = federation(tmp_path, algorithm="pfa", rounds=2).loop.run().progress
    assert (found.bytes_down, found.bytes_up) == (plain.bytes_down, plain.bytes_up)
