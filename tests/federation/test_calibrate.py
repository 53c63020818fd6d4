"""A temperature fitted over the sites is the one of their pooled images; only sums leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from morphfed.core.errors import FederationError, PrivacyError
from morphfed.federation.calibrate import fit_temperature
from morphfed.tasks.temperature import POINTS

Make = Callable[..., Any]


def _pooled(made: Any, model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of all sites' validation images, one after another."""
    labels, found = [], []
    for site in made.sites:
        site.load_model(model)
        for data in site._validation.values():
            labels.append(data.labels)
            found.append(site._trainer.predict(made.model, data).astype(np.float64))
    return np.concatenate(labels), np.concatenate(found)


@pytest.mark.parametrize("norm", ["batch", "local"])
def test_the_optimum_is_scipy_s_on_the_pooled_images(federation: Make, norm: str) -> None:
    made = federation(None, rounds=6, norm=norm, calibrate=True)
    for site, wrong in zip(made.sites, (1, 3, 2), strict=True):  # else nothing limits how sure the model may be
        for name, data in site._validation.items():
            labels = np.where(np.arange(len(data)) < wrong, 1 - data.labels, data.labels)
            site._validation[name] = replace(data, labels=labels)
    model = made.loop.run().last
    fitted = fit_temperature(made.transport, dict.fromkeys(made.transport.sites, model), rounds=1)
    labels, p = _pooled(made, model)
    rows = np.arange(len(labels))

    def loss(t: float) -> float:
        q = p ** (1 / t)
        return float(-np.log(q[rows, labels] / q.sum(axis=1)).mean())

    best = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-10})
    assert 0.11 < best.x < 9.5
    assert abs(best.x - 1) > 0.01
    assert fitted.temperature == pytest.approx(best.x, rel=1e-4)
    assert fitted.loss_after == pytest.approx(best.fun, rel=1e-6)
    assert fitted.note == ""
    assert fitted.loss_before == pytest.approx(loss(1.0), rel=1e-6)
    assert fitted.images == 30


def test_what_leaves_is_declared_counted_and_in_the_ledger(federation: Make, tmp_path: Path) -> None:
    made = federation(tmp_path, rounds=1, calibrate=True)
    model = made.loop.run().last
    fitted = fit_temperature(made.transport, dict.fromkeys(made.transport.sites, model), rounds=1)
    sent = []
    for site in made.sites:
        lines = [json.loads(line) for line in (tmp_path / f"{site.name}.jsonl").read_text().splitlines()]
        sent += [line for line in lines if line.get("statistic") == "temperature"]
    assert {line["round"] for line in sent} == {1}
    assert all(len(line["values"]) == POINTS + 1 and line["values"][-1] == 10 for line in sent)
    assert sum(line["bytes"] for line in sent) == fitted.bytes_up
    assert fitted.bytes_down == 3 * 8


def test_without_a_declaration_nothing_leaves(federation: Make) -> None:
    made = federation(None, rounds=1)
    model = made.loop.run().last
    with pytest.raises(PrivacyError, match="'temperature'"):
        fit_temperature(made.transport, dict.fromkeys(made.transport.sites, model), rounds=1)


class _Sites:
    """Sites that answer with given losses."""

    def __init__(self, answers: dict[str, np.ndarray]) -> None:
        self.answers, self.sites = answers, tuple(answers)

    def validation_sums(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        return self.answers


def test_left_at_one_and_said_so() -> None:
    empty = fit_temperature(_Sites({"quito": np.zeros(POINTS + 1)}), {"quito": {}}, rounds=1)  # type: ignore[arg-type]
    assert (empty.temperature, empty.images, empty.note) == (1.0, 0, "no training site has validation images")
    falling = np.append(np.arange(POINTS, 0, -1.0), 12)
    outside = fit_temperature(_Sites({"quito": falling}), {"quito": {}}, rounds=1)  # type: ignore[arg-type]
    assert outside.temperature == 1.0
    assert "0.1 to 10" in outside.note


@pytest.mark.parametrize("bad", [np.ones(3), np.full(POINTS + 1, np.nan), -np.ones(POINTS + 1)])
def test_a_row_that_cannot_be_is_refused_by_the_site_s_name(bad: np.ndarray) -> None:
    with pytest.raises(FederationError, match="'quito'"):
        fit_temperature(_Sites({"lagos": np.ones(POINTS + 1), "quito": bad}), {}, rounds=1)  # type: ignore[arg-type]
