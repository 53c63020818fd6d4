"""Studies with personal models: what is saved, who is judged, and what a held-out site gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from morphfed.experiment.runner import Options, run_study
from morphfed.models import weights


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_method_without_a_model_for_newcomers_is_judged_at_home_only(tiny: Path) -> None:
    overrides = ["arms={fedper={}, ditto={}, fedbn={}}", "federation.rounds=1"]
    done = run_study(tiny, Options(tiny.parent / "runs", overrides=overrides))
    assert not done.failed
    results = json.loads(done.results.read_text())
    sites = {arm["model"]: set(arm["sites"]) for arm in results["arms"]}
    assert sites == {
        "fedper": {"alder", "birch"},
        "ditto": {"alder", "birch", "cedar"},
        "fedbn": {"alder", "birch", "cedar"},
    }
    warnings = {arm["model"]: " ".join(arm["warnings"]) for arm in results["arms"]}
    assert "defines no model for a site that took no part" in warnings["fedper"]
    assert "re-estimated on the newcomer's own unlabelled images" in warnings["fedbn"]
    scopes = {row["scope"] for row in results["summary"] if row["model"] == "fedper"}
    assert scopes.isdisjoint({"cedar", "mean_held_out"})
    assert {"alder", "birch", "mean_training"} <= scopes
    unit = done.run / "units" / "ditto" / "all" / "seed-0"
    own = [weights.load(unit / "sites" / site / "last.safetensors") for site in ("alder", "birch")]
    assert not torch.equal(own[0]["algorithm/conv1.0.weight"], own[1]["algorithm/conv1.0.weight"])
    assert not any(name.startswith("algorithm/") for name in weights.load(unit / "last.safetensors"))
    assert "cedar" in done.report.read_text()
