"""Each code against cases worked by hand, against torch's own casts, and against whatever a stranger may send."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from morphfed.core.types import Spec, Tensors
from morphfed.federation.coding.base import CODECS, Codec, UploadConfig

NAMES = sorted(CODECS.names())


def codec(code: str, **keys: Any) -> Codec:
    return CODECS[code](UploadConfig(code=code, **keys))


def there_and_back(made: Codec, tensor: torch.Tensor, seed: int = 0) -> torch.Tensor:
    parts = made.encode(tensor, seed)
    assert {name: Spec.of(t) for name, t in parts.items()} == made.parts(Spec.of(tensor))
    result = made.decode(parts, Spec.of(tensor))
    assert Spec.of(result) == Spec.of(tensor)
    return result


def test_int8_by_hand() -> None:
    # Channels with the scales 63.5 / 127 = 0.5, 0, and 254 / 127 = 2; halves go to the even neighbour.
    x = torch.tensor([[63.5, -0.25, 0.75, -10.0], [0.0, 0.0, 0.0, 0.0], [-254.0, 3.0, 1.0, 4.5]])
    made = codec("int8")
    parts = made.encode(x, 0)
    assert parts["scale"].tolist() == [0.5, 0.0, 2.0]
    assert parts["codes"].tolist() == [[127, 0, 2, -20], [0, 0, 0, 0], [-127, 2, 0, 2]]
    assert there_and_back(made, x).tolist() == [[63.5, 0, 1, -10], [0, 0, 0, 0], [-254, 4, 0, 4]]


def test_int8_with_one_scale_for_the_tensor_by_hand() -> None:
    x = torch.tensor([[63.5, -0.25], [-254.0, 3.0]])
    parts = codec("int8", scale="tensor").encode(x, 0)
    assert parts["scale"].item() == 2.0
    assert parts["codes"].tolist() == [[32, 0], [-127, 2]]  # 31.75, -0.125, -127, 1.5
    # A vector has no channels, a number neither.
    assert codec("int8").parts(Spec((5,), "float32"))["scale"].shape == ()
    assert there_and_back(codec("int8"), torch.tensor(-2.54)).item() == pytest.approx(-2.54)


def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average() -> None:
    x = torch.tensor([127.0, 0.25, -0.25, 5.9, -100.5, 3.0])
    made = codec("int8", rounding="stochastic")
    found = torch.stack([there_and_back(made, x, seed) for seed in range(4000)])
    assert bool(((found == x.floor()) | (found == x.ceil())).all())
    # The mean of 4,000 draws of a number between neighbours has a standard deviation of at most 0.5 / √4000 = 0.008.
    torch.testing.assert_close(found.mean(0), x, atol=0.04, rtol=0)
    assert torch.equal(made.encode(x, 7)["codes"], made.encode(x, 7)["codes"])
    assert len({tuple(row) for row in found.tolist()}) > 4


def test_int8_of_numbers_near_the_smallest_and_the_largest() -> None:
    for size in (1e-44, 1e-38, 3.4e38):
        x = size * torch.tensor([1.0, -0.5, 0.1])
        assert bool(there_and_back(codec("int8"), x).isfinite().all())
        for seed in range(20):
            assert bool(there_and_back(codec("int8", rounding="stochastic"), x, seed).isfinite().all())


def test_bf16_is_torchs_cast_and_the_case_by_hand() -> None:
    # Eight bits of precision: from 1 on the step is 2⁻⁷; of two equally near neighbours the even one is taken.
    x = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-16, -(1 + 2**-9)])
    assert there_and_back(codec("bf16"), x).tolist() == [1.0, 1 + 2**-6, 1 + 2**-7, -1.0]
    y = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-30, 30, 0.06)[:1000]
    assert torch.equal(there_and_back(codec("bf16"), y), y.to(torch.bfloat16).to(torch.float32))


def test_fp16_is_torchs_cast_and_does_not_overflow() -> None:
    x = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 2**-24, 6.1e-5])
    assert there_and_back(codec("fp16"), x)[:4].tolist() == [1.0, 1 + 2**-9, 0.0, 2**-24]
    y = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(there_and_back(codec("fp16"), y), y.to(torch.float16).to(torch.float32))
    assert there_and_back(codec("fp16"), torch.tensor([7e4, -1e9])).tolist() == [65504.0, -65504.0]
    top = torch.finfo(torch.float32).max
    assert bool(there_and_back(codec("bf16"), torch.tensor([top, -top])).isfinite().all())


def test_topk_by_hand() -> None:
    x = torch.tensor([[3.0, -5.0], [1.0, 4.0]])
    made = codec("topk", share=0.5)
    parts = made.encode(x, 0)
    assert parts["index"].tolist() == [1, 3]
    assert parts["values"].tolist() == [-5.0, 4.0]
    assert there_and_back(made, x).tolist() == [[0, -5], [0, 4]]


def test_blocktopk_by_hand() -> None:
    # Two blocks of 256, the second 44 long; half a per cent of 256 is 1.28, so two of each.
    x = torch.zeros(300)
    x[3], x[200], x[255] = 12.7, -2.54, 0.3
    x[256], x[299] = 0.26, -1.0
    made = codec("blocktopk", share=0.005)
    parts = made.encode(x, 0)
    assert parts["scale"].item() == pytest.approx(0.1)
    assert parts["index"].tolist() == [[3, 200], [0, 43]]
    assert parts["codes"].tolist() == [[127, -25], [3, -10]]
    expected = torch.zeros(300)
    expected[3], expected[200], expected[256], expected[299] = 12.7, -2.5, 0.3, -1.0
    torch.testing.assert_close(there_and_back(made, x), expected)


def test_two_bytes_of_every_256_numbers_for_each_that_blocktopk_keeps() -> None:
    spec = Spec((64, 48, 3, 3), "float32")
    sent = sum(part.nbytes for part in codec("blocktopk", share=5 / 256).parts(spec).values())
    assert sent == 108 * 5 * 2 + 4
    assert sent / spec.nbytes < 0.01
    topk = sum(part.nbytes for part in codec("topk", share=0.005).parts(spec).values())
    assert topk / spec.nbytes == pytest.approx(
        0.0075, rel=0.01
    )  # positions in two bytes; in four from 32,769 numbers on


@pytest.mark.parametrize("n", [1, 3, 255, 256, 257, 300, 1000])
def test_blocktopk_of_all_is_int8_with_one_scale(n: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    found = there_and_back(codec("blocktopk", share=1.0), x)
    assert torch.equal(found, there_and_back(codec("int8", scale="tensor"), x))


@pytest.mark.parametrize(("n", "share", "kept"), [(30, 0.1, 3), (31, 0.1, 4), (5, 0.001, 1), (7, 1.0, 7), (1, 0.5, 1)])
def test_how_many_topk_keeps(n: int, share: float, kept: int) -> None:
    assert codec("topk", share=share).parts(Spec((n,), "float32"))["values"].shape == (kept,)


@pytest.mark.parametrize(("n", "dtype"), [(32768, "int16"), (32769, "int32"), (2**31, "int32"), (2**31 + 1, "int64")])
def test_positions_reach_the_last_number(n: int, dtype: str) -> None:
    assert codec("topk").parts(Spec((n,), "float32"))["index"].dtype == dtype


def test_the_last_position_of_a_large_tensor_survives() -> None:
    x = torch.zeros(32768)
    x[-1] = 2.0
    assert torch.equal(there_and_back(codec("topk", share=1e-5), x), x)


@pytest.mark.parametrize("made", [codec("fp32"), codec("topk", share=1.0)])
def test_what_leaves_nothing_out_is_the_identity(made: Codec) -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(there_and_back(made, x), x)


@pytest.mark.parametrize("name", NAMES)
def test_every_code_shrinks_the_error_of_what_it_leaves_out(name: str) -> None:
    """‖C(x) - x‖² ≤ (1 - δ) ‖x‖² with δ > 0: what the convergence of error feedback rests on."""
    x = torch.randn(8, 50, generator=torch.Generator().manual_seed(2))
    error = there_and_back(codec(name), x) - x
    assert float(error.square().sum()) <= 0.999 * float(x.square().sum())


def _parts(made: Codec, n: int, **changes: torch.Tensor) -> Tensors:
    return {**made.encode(torch.arange(1.0, n + 1), 0), **changes}


@pytest.mark.parametrize(
    ("made", "changes", "said"),
    [
        (codec("int8"), {"scale": torch.tensor(-1.0)}, "a scale is not"),
        (codec("int8"), {"scale": torch.tensor(math.nan)}, "a scale is not"),
        (codec("int8"), {"scale": torch.tensor(math.inf)}, "a scale is not"),
        (codec("int8"), {"codes": torch.tensor([0, -128, 0, 1], dtype=torch.int8)}, "outside -127"),
        (codec("topk", share=0.5), {"index": torch.tensor([1, 4], dtype=torch.int16)}, "outside 0 … 3"),
        (codec("topk", share=0.5), {"index": torch.tensor([-1, 2], dtype=torch.int16)}, "outside 0 … 3"),
        (codec("topk", share=0.5), {"index": torch.tensor([2, 2], dtype=torch.int16)}, "increasing order"),
        (codec("topk", share=0.5), {"index": torch.tensor([3, 1], dtype=torch.int16)}, "increasing order"),
        (codec("blocktopk", share=0.5), {"index": torch.tensor([[1, 4]], dtype=torch.uint8)}, "outside 0 … 3"),
        (codec("blocktopk", share=0.5), {"index": torch.tensor([[2, 2]], dtype=torch.uint8)}, "increasing order"),
        (codec("blocktopk", share=0.5), {"scale": torch.tensor(math.nan)}, "a scale is not"),
        (codec("blocktopk", share=0.5), {"codes": torch.tensor([[0, -128]], dtype=torch.int8)}, "outside -127"),
    ],
)
def test_what_no_site_writes_is_refused(made: Codec, changes: Tensors, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made.decode(_parts(made, 4, **changes), Spec((4,), "float32"))


def test_a_value_behind_the_end_of_the_last_block_is_refused() -> None:
    made, spec = codec("blocktopk", share=1 / 256), Spec((257,), "float32")
    parts = made.encode(torch.ones(257), 0)
    with pytest.raises(ValueError, match="behind the last of 257"):
        made.decode({**parts, "index": torch.tensor([[0], [1]], dtype=torch.uint8)}, spec)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(NAMES), data=st.data(), shape=st.sampled_from([(), (7,), (3, 5), (2, 3, 2, 2)]))
def test_any_bytes_are_read_or_refused(name: str, data: st.DataObject, shape: tuple[int, ...]) -> None:
    """Declared shapes with random content: a tensor of the right shape, or ValueError, and nothing else."""
    made, spec = codec(name), Spec(shape, "float32")
    parts = {}
    for part, declared in made.parts(spec).items():
        content = bytearray(data.draw(st.binary(min_size=declared.nbytes, max_size=declared.nbytes)))
        dtype = getattr(torch, declared.dtype)
        parts[part] = torch.frombuffer(content, dtype=dtype).reshape(declared.shape)
    with suppress(ValueError):
        assert Spec.of(made.decode(parts, spec)) == spec


def test_keys_are_checked() -> None:
    with pytest.raises(ValidationError, match="no code 'int4', choose one of bf16, blocktopk, fp16, fp32, int8, topk"):
        UploadConfig(code="int4")
    with pytest.raises(ValidationError, match="'share' is no key of the code 'int8'"):
        UploadConfig(code="int8", share=0.5)
    with pytest.raises(ValidationError, match="'rounding' is no key of the code 'bf16'"):
        UploadConfig(code="bf16", rounding="stochastic")
    assert UploadConfig(code="topk", share=0.5).share == 0.5
