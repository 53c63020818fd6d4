"""What is coded and what is not, error feedback, and rounded downloads, on tensors made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from morphfed.core.errors import TrainingError
from morphfed.core.types import Spec, Tensors
from morphfed.federation.coding.base import UploadConfig
from morphfed.federation.coding.wire import Coding, Download

CODES: list[dict[str, Any]] = [
    {"code": "bf16"},
    {"code": "fp16"},
    {"code": "int8"},
    {"code": "int8", "scale": "tensor", "rounding": "stochastic"},
    {"code": "topk", "share": 0.1},
    {"code": "blocktopk", "share": 0.1},
]
SHAPES = {"w": (6, 10), "b": (6,), "mean": (6,), "control/w": (6, 10), "extra": (20,)}


def made(download: Download = "fp32", seed: int = 0, **upload: Any) -> Coding:
    specs = {name: Spec(shape, "float32") for name, shape in SHAPES.items()} | {"count": Spec((6,), "int64")}
    return Coding(UploadConfig(**upload), download, specs=specs, weights={"w", "b"}, changes={"control/w"}, seed=seed)


def tensors(seed: int) -> Tensors:
    stream = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=stream) for n, shape in SHAPES.items()} | {"count": torch.arange(6)}


def specs_of(found: Tensors) -> dict[str, Spec]:
    return {name: Spec.of(t) for name, t in found.items()}


@pytest.mark.parametrize("upload", CODES)
def test_weights_are_coded_and_all_else_is_the_same_object(upload: dict[str, Any]) -> None:
    coding, trained, download = made(**upload), tensors(1), tensors(2)
    coded, left = coding.encode(trained, download, {}, site="kampala", round_number=1)
    assert specs_of(coded) == coding.specs
    assert all(coded[name] is trained[name] for name in ("mean", "extra", "count"))
    assert set(left) == {"w", "b", "control/w"}
    assert coding.nbytes == sum(t.numel() * t.element_size() for t in coded.values())
    exact = 4 * (6 + 20) + 8 * 6
    assert coding.nbytes - exact < 0.55 * 4 * (60 + 6 + 60)
    read = coding.decode(coded, download)
    assert specs_of(read) == specs_of(trained)
    assert all(torch.equal(read[name], trained[name]) for name in ("mean", "extra", "count"))


def test_fp32_is_nothing_at_all() -> None:
    coding, trained = made(), tensors(1)
    assert coding.plain
    coded, left = coding.encode(trained, tensors(2), {}, site="kampala", round_number=1)
    assert left == {}
    assert all(coded[name] is trained[name] for name in trained)
    assert coding.decode(coded, tensors(2)) is coded
    downloads = {"kampala": tensors(2)}
    assert coding.send(downloads)["kampala"] is downloads["kampala"]
    assert coding.open(downloads["kampala"]) is downloads["kampala"]


def test_float64_and_what_a_code_would_enlarge_go_as_they_are() -> None:
    specs = {"wide": Spec((50,), "float64"), "one": Spec((1,), "float32"), "none": Spec((0, 3), "float32")}
    for code in ("fp32", "int8", "topk"):
        assert Coding(UploadConfig(code=code), "fp32", specs=specs, weights=set(specs)).specs == specs
    everything = Coding(UploadConfig(code="topk", share=1.0), "fp32", specs={"w": Spec((9,), "float32")}, weights={"w"})
    assert everything.plain  # a value and its position take more than a value


def test_a_change_by_hand() -> None:
    specs = {"w": Spec((4,), "float32")}
    coding = Coding(UploadConfig(code="int8"), "fp32", specs=specs, weights={"w"})
    download = {"w": torch.tensor([100.0, 200.0, 300.0, 400.0])}
    trained = {"w": torch.tensor([163.5, 199.75, 300.75, 390.0])}  # changes 63.5, -0.25, 0.75, -10 in steps of 0.5
    coded, left = coding.encode(trained, download, {}, site="kampala", round_number=1)
    assert coded["w#codes"].tolist() == [127, 0, 2, -20]
    assert coded["w#scale"].item() == 0.5
    assert left["w"].tolist() == [0.0, -0.25, -0.25, 0.0]
    assert coding.decode(coded, download)["w"].tolist() == [163.5, 200.0, 301.0, 390.0]
    # The next round's change is 63.5, -0.25, 0.5, 0; with what was left -0.5 and 0.25.
    again = {"w": torch.tensor([163.5, 199.75, 300.5, 400.0])}
    coded, left = coding.encode(again, download, left, site="kampala", round_number=2)
    assert coded["w#codes"].tolist() == [127, -1, 0, 0]
    assert left["w"].tolist() == [0.0, 0.0, 0.25, 0.0]


@pytest.mark.parametrize("upload", CODES)
def test_decoded_changes_and_the_residual_add_up_to_the_true_changes(upload: dict[str, Any]) -> None:
    coding = made(**upload)
    residual: Tensors = {}
    names = ("w", "b", "control/w")
    true = {n: torch.zeros(SHAPES[n], dtype=torch.float64) for n in names}
    arrived = {n: t.clone() for n, t in true.items()}
    for number in range(1, 13):
        trained, download = tensors(number), tensors(100 + number)
        coded, residual = coding.encode(trained, download, residual, site="kampala", round_number=number)
        read = coding.decode(coded, download)
        for n in names:
            base = download[n].double() if n != "control/w" else 0.0
            true[n] += trained[n].double() - base
            arrived[n] += read[n].double() - base
    for n in names:
        torch.testing.assert_close(arrived[n] + residual[n].double(), true[n], atol=2e-5, rtol=0)
        assert not torch.allclose(arrived[n], true[n], atol=2e-5, rtol=0), "the code left nothing out"


def test_a_small_change_arrives_with_error_feedback_alone() -> None:
    download = {"w": torch.zeros(10)}
    trained = {"w": torch.tensor([1.0, 0.15, *[0.0] * 8])}
    for feedback in (True, False):
        upload = UploadConfig(code="topk", share=0.1, error_feedback=feedback)
        coding = Coding(upload, "fp32", specs={"w": Spec((10,), "float32")}, weights={"w"})
        residual: Tensors = {}
        second = 0.0
        for number in range(1, 9):
            coded, residual = coding.encode(trained, download, residual, site="kampala", round_number=number)
            second += coding.decode(coded, download)["w"][1].item()
        assert bool(residual) is feedback
        assert second == (pytest.approx(7 * 0.15) if feedback else 0.0)


def test_draws_differ_by_site_round_tensor_and_seed_and_by_nothing_else() -> None:
    upload = {"code": "int8", "rounding": "stochastic"}

    def sent(site: str = "kampala", number: int = 1, seed: int = 0) -> Tensors:
        return made(seed=seed, **upload).encode(tensors(1), tensors(2), {}, site=site, round_number=number)[0]

    first = sent()
    assert all(torch.equal(first[name], t) for name, t in sent().items())
    for other in (sent(site="lagos"), sent(number=2), sent(seed=1)):
        assert not torch.equal(first["w#codes"], other["w#codes"])
    # Tensors are coded alike in whatever order they come.
    turned = dict(reversed(tensors(1).items()))
    coded, _ = made(**upload).encode(turned, tensors(2), {}, site="kampala", round_number=1)
    assert torch.equal(coded["w#codes"], first["w#codes"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_change_that_is_not_finite_names_the_site_and_spoils_no_residual(value: float) -> None:
    coding = made(code="int8")
    _, residual = coding.encode(tensors(1), tensors(2), {}, site="kampala", round_number=1)
    before = {name: t.clone() for name, t in residual.items()}
    bad = tensors(3)
    bad["w"][2, 3] = value
    with pytest.raises(TrainingError, match=r"Site 'kampala', round 2: the change of 'w' is not finite"):
        coding.encode(bad, tensors(2), residual, site="kampala", round_number=2)
    assert all(torch.equal(residual[name], t) for name, t in before.items())


def test_rounded_downloads_leave_the_coordinators_weights_as_they_are() -> None:
    coding = made("bf16")
    assert not coding.plain  # also in fp32 the weights are then sent as changes
    held, same = tensors(2), tensors(2)
    sent = coding.send({"kampala": held, "lagos": held})
    assert sent["kampala"]["w"].dtype == torch.bfloat16
    assert sent["kampala"]["w"] is sent["lagos"]["w"]
    assert all(sent["kampala"][name] is held[name] for name in ("mean", "extra", "control/w", "count"))
    assert all(torch.equal(held[name], same[name]) for name in held)
    started = coding.open(sent["kampala"])
    assert torch.equal(started["w"], held["w"].to(torch.bfloat16).float())
    trained = {**tensors(1), "w": started["w"] + 2**-10}  # far below a step of bfloat16
    coded, left = coding.encode(trained, started, {}, site="kampala", round_number=1)
    assert left == {}
    assert torch.equal(coded["w"], trained["w"] - started["w"])
    assert torch.equal(coding.decode(coded, held)["w"], held["w"] + coded["w"])


def test_an_exact_download_is_opened_as_it_is() -> None:
    """The finished model is handed out in full precision."""
    held = tensors(2)
    opened = made("bf16").open(held)
    assert all(torch.equal(opened[name], t) for name, t in held.items())
