"""Distances between outlines, in the unit that fits what was outlined."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from morphfed.reporting.results import Estimate, Results
from morphfed.reporting.sections.structures import _heading, _of_organs


def _results(*found: float | None) -> Results:
    values = iter(found)
    stub: Any = SimpleNamespace(
        structures=("outline",), arms=list(found), estimate=lambda model, scope, metric: Estimate(next(values))
    )
    return cast("Results", stub)


@pytest.mark.parametrize(("found", "organs"), [((2.4, 9.1), False), ((None, 21796.7), True), ((None,), False)])
def test_organs_are_measured_in_millimetres(found: tuple[float | None, ...], organs: bool) -> None:
    assert _of_organs(_results(*found)) is organs


def test_a_distance_in_another_unit() -> None:
    assert Estimate(2500.0, 2000.0, None, 500.0, 3).times(1e-3) == Estimate(2.5, 2.0, None, 0.5, 3)
    assert _heading("hd95_um", 1e-3) == "95 % Hausdorff distance (mm)"
    assert _heading("hd95_um", 1.0) == "95 % Hausdorff distance (µm)"
    assert _heading("dice", 1.0) == "Dice"
