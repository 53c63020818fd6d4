"""Bad uploads are rejected by the site's name."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from morphfed.core.errors import UploadRejectedError
from morphfed.core.types import Spec, Upload
from morphfed.federation.validate import check_upload, first_not_finite

SPECS = {"a": Spec((2, 2), "float32"), "b": Spec((), "float32")}
GOOD = {"a": torch.ones(2, 2), "b": torch.tensor(1.0)}


def _check(
    tensors: dict[str, torch.Tensor] = GOOD,
    *,
    weight: float = 1.0,
    site: str = "kampala",
    round: int = 1,
    metrics: dict[str, float] | None = None,
) -> None:
    check_upload(Upload(site, round, tensors, weight, metrics or {}), site="kampala", round_number=1, specs=SPECS)


def test_good() -> None:
    _check()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.ones(2, 2)}, "missing: 1 .b."),
        ({**GOOD, "c": torch.ones(1)}, "not asked for: 1 .c."),
        ({**GOOD, "a": torch.ones(4)}, "'a' has float32 .4,., expected float32 .2, 2."),
        ({**GOOD, "a": torch.ones(2, 2, dtype=torch.float64)}, "'a' has float64"),
        ({**GOOD, "b": torch.tensor(math.nan)}, "'b' holds NaN"),
        ({**GOOD, "a": torch.tensor([[1.0, math.inf], [0, 0]])}, "'a' holds NaN or infinity"),
        ({**GOOD, "a": torch.tensor([[1.0, -math.inf], [0, 0]])}, "'a' holds NaN or infinity"),
    ],
)
def test_bad_tensors(tensors: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(UploadRejectedError, match=f"Site 'kampala'.*{said}"):
        _check(tensors)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_bad_weights(weight: float) -> None:
    with pytest.raises(UploadRejectedError, match="its weight is"):
        _check(weight=weight)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(value: float) -> None:
    with pytest.raises(UploadRejectedError, match=f"its number 'start_loss' is {value}"):
        _check(metrics={"loss": 0.3, "start_loss": value})


def test_wrong_round_or_site() -> None:
    with pytest.raises(UploadRejectedError, match="answers round 2"):
        _check(round=2)
    with pytest.raises(UploadRejectedError, match="'lagos'"):
        _check(site="lagos")


@given(
    where=st.integers(0, 11),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_one_bad_number_anywhere_is_found(where: int, value: float, dtype: torch.dtype) -> None:
    tensors = {
        "x": torch.zeros(5, dtype=dtype),
        "empty": torch.zeros(0),
        "y": torch.full((7,), 1e4, dtype=dtype),
    }
    assert first_not_finite(tensors) is None
    name, at = ("x", where) if where < 5 else ("y", where - 5)
    tensors[name][at] = value
    assert first_not_finite(tensors) == name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_sum_that_overflows_is_no_infinity(dtype: torch.dtype) -> None:
    top = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert not bool(top.sum().isfinite())
    assert first_not_finite({"a": top, "none": torch.zeros(0, dtype=dtype), "counter": torch.arange(3)}) is None
    top[2, 4] = math.nan
    assert first_not_finite({"a": top}) == "a"


def test_infinities_of_either_sign_do_not_cancel_out() -> None:
    assert first_not_finite({"good": torch.ones(2), "bad": torch.tensor([math.inf, 1.0, -math.inf])}) == "bad"
    assert first_not_finite({}) is None
