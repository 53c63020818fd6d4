"""What a site says of the model that it has just trained, before communication puts another in its place.

The numbers go with the upload under names of their own, so that the gate can declare them and the round loop can tell
them from the numbers of the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

PREFIX = "before_"
"""A validation metric's name with this before it is that of the just-trained model."""


def names(validation: frozenset[str]) -> frozenset[str]:
    """What an upload's numbers are called that are ``validation`` metrics of the just-trained model."""
    return frozenset(PREFIX + name for name in validation)


def to_send(found: Mapping[str, float]) -> dict[str, float]:
    """Validation metrics as numbers of an upload.

    One that is not finite stays at the site: the upload would be rejected for it, and judging must not decide what is
    averaged.
    """
    return {PREFIX + name: value for name, value in found.items() if math.isfinite(value)}


def received(numbers: Mapping[str, float]) -> dict[str, float]:
    """The validation metrics among an upload's numbers; empty: the site sent none."""
    return {name.removeprefix(PREFIX): value for name, value in numbers.items() if name.startswith(PREFIX)}
