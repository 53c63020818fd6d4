"""Read what a site answered: nothing in it is trusted."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.types import Upload
from morphfed.federation.transports.parcel import Parcel, ParcelError, unpack
from morphfed.federation.transports.standing import Fault

if TYPE_CHECKING:
    from numpy.typing import NDArray


class NotUsableError(Exception):
    """An answer that cannot be used; says why, to follow the site's name."""

    def __init__(self, why: str, *, fault: Fault = "unusable") -> None:
        super().__init__(why)
        self.fault = fault


def read_upload(answer: Parcel) -> Upload:
    """An upload as it was sent; whether its tensors are the declared ones is checked by the loop."""
    weight, metrics = answer.head.get("weight"), answer.head.get("metrics")
    if not isinstance(weight, int | float) or not are_numbers({"": metrics}):
        raise NotUsableError("its weight or its metrics are not numbers")
    assert isinstance(metrics, dict)
    numbers = {str(k): float(v) for k, v in metrics.items()}
    return Upload(str(answer.head["site"]), int(answer.head["round"]), answer.tensors, float(weight), numbers)


def read_claims(answer: Parcel) -> dict[str, int]:
    """Whole numbers in the clear of a secure sum."""
    numbers = answer.head.get("numbers")
    if not isinstance(numbers, dict) or not all(isinstance(v, int) for v in numbers.values()):
        raise NotUsableError("its 'numbers' are no whole numbers")
    return {str(k): int(v) for k, v in numbers.items()}


def read_row(key: str) -> Callable[[str, Parcel], NDArray[np.float64]]:
    """Reads a row of numbers."""

    def read(site: str, answer: Parcel) -> NDArray[np.float64]:
        values = answer.head.get(key)
        if not isinstance(values, list) or not all(is_number(v) for v in values):
            raise NotUsableError(f"its '{key}' is no row of numbers")
        return np.array(values, dtype=np.float64)

    return read


def is_number(value: Any) -> bool:
    """A finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def are_numbers(found: Any) -> bool:
    """Whether it is a table of tables of numbers."""
    return isinstance(found, dict) and all(
        isinstance(m, dict) and all(isinstance(v, int | float) for v in m.values()) for m in found.values()
    )


def kind_of(content: bytes) -> str:
    """Of a parcel without tensors; empty where it is longer than one can be."""
    if len(content) > 1 << 16:
        return ""
    try:
        return unpack(content, limit=0).kind
    except ParcelError:
        return ""


def clock_time(when: float) -> str:
    """Hours and minutes."""
    return f"{datetime.fromtimestamp(when):%H:%M}"


def span(seconds: float) -> str:
    """Seconds, or minutes, in words."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
