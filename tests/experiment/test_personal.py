"""Studies with personal models: what is saved, who is judged, and what a held-out site gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from morphfed.experiment.runner import Options, run_study
from morphfed.models import weights
from morphfed.training.dataset import ImageSet
from morphfed.training.trainer import Trainer


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


def test_sites_with_a_download_of_their_own_are_judged_with_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "layer1.0.conv1.weight"
    used: dict[str, torch.Tensor] = {}

    def spying(method: str) -> None:
        predict = getattr(Trainer, method)

        def spied(self: Trainer, model: torch.nn.Module, data: ImageSet, **keys: Any) -> Any:
            used.update(dict.fromkeys(data.ids.tolist(), model.state_dict()[name].clone()))
            return predict(self, model, data, **keys)

        monkeypatch.setattr(Trainer, method, spied)

    spying("predict")  # validation images
    spying("predict_logs")  # test images
    overrides = ["arms={prr={init_share=0}, pfa={}}", "federation.rounds=2", "evaluation.use=last", "seeds=[0]"]
    overrides += ["evaluation.calibrate=temperature"]  # the last to look at validation images
    done = run_study(tiny, Options(tiny.parent / "runs", overrides=overrides))
    assert not done.failed
    results = json.loads(done.results.read_text())
    everywhere = {"alder", "birch", "cedar"}
    assert {arm["model"]: set(arm["sites"]) for arm in results["arms"]} == {"pfa": everywhere, "prr": everywhere}

    unit = done.run / "units" / "pfa" / "all" / "seed-0"
    shared = weights.load(unit / "last.safetensors")
    own = {site: weights.load(unit / "sites" / site / "last.safetensors") for site in ("alder", "birch")}
    sent = [own[site][f"download/{name}"] for site in own]
    assert not torch.equal(*sent)
    torch.testing.assert_close((sent[0] + sent[1]) / 2, shared[name])  # a linear rule keeps the mean
    assert not any("/" in key for key in shared)
    assert not any(key.startswith("algorithm/") for key in own["alder"])
    images = pd.read_parquet(done.run / "prepared.parquet")
    judged = images[images["split"].isin(["test", "validation"])]
    assert set(judged["site"]) == everywhere
    expected = {"alder": sent[0], "birch": sent[1], "cedar": shared[name]}
    for site, image in zip(judged["site"], judged["id"], strict=True):
        assert torch.equal(used[image], expected[site]), f"{site}: {image}"
