"""Studies that train a part of a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from morphfed.core.errors import ConfigError
from morphfed.core.files import sha256_file
from morphfed.evaluation.predictions import read_predictions
from morphfed.experiment.plan import plan_study, render_plan
from morphfed.experiment.prepare import load_prepared
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import load_study
from morphfed.models.backbone import ModelConfig, build
from morphfed.models.layout import Layout
from morphfed.models.saved import restore
from morphfed.training.config import TrainConfig
from morphfed.training.features import FeatureStore
from morphfed.training.trainer import Trainer

HEAD = {"fc.weight", "fc.bias"}
SHORT = ["federation.rounds=2", "model.weights=w.safetensors", "evaluation.images=false"]


@pytest.fixture
def study(tiny: Path) -> Path:
    """The tiny study, with weights for its network."""
    network = build(ModelConfig(name="resnet10t"), classes=7, image_size=32, seed=5).module
    with torch.no_grad():  # as trained networks have them: residual branches count, statistics are no defaults
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.fill_(0.8)
                layer.running_mean.normal_(std=0.1)
    save_file(network.state_dict(), tiny.parent / "w.safetensors")
    return tiny


def _run(study: Path, *overrides: str, name: str = "runs") -> Path:
    done = run_study(study, Options(study.parent / name, overrides=[*SHORT, *overrides]))
    assert not done.failed
    return done.run


def _sent(unit: Path) -> set[int]:
    """Tensors in each upload, as the ledger has them."""
    lines = [json.loads(text) for text in (unit / "ledger.jsonl").read_text().splitlines()]
    return {line["tensors"] for line in lines} - {0}  # 0: validation means


def _computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    original = FeatureStore.ensure

    def counting(self: FeatureStore, *args: object, **keys: object) -> int:
        counts.append(original(self, *args, **keys))  # type: ignore[arg-type]
        return counts[-1]

    monkeypatch.setattr(FeatureStore, "ensure", counting)
    return counts


def test_head_on_stored_features(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = _computed(monkeypatch)
    arms = "arms={fedavg={}, centralised={}}"
    run = _run(study, "model.tune=head", arms, "seeds=[0,1]", "compute.jobs=1")
    loaded, _ = load_study(study, [*SHORT, "model.tune=head", arms])
    prepared = load_prepared(loaded, run, run.parent / ".cache", build=False)
    train = sum(len(parts["train"]) for parts in prepared.sets.values())
    others = sum(len(parts[s]) for parts in prepared.sets.values() for s in ("validation", "test"))
    assert sum(counts) == 8 * train + others  # four units, two arms, two seeds: once

    unit = run / "units/fedavg/all/seed-0"
    assert _sent(unit) == {len(HEAD)}

    # The file is the whole network, and through it the images give what the features gave.
    whole, card = restore(unit / "best.safetensors")
    assert card["architecture"]["tune"] == "head"
    given = build(ModelConfig(name="resnet10t"), classes=7, image_size=32, seed=5).module.state_dict()
    assert set(whole.module.state_dict()) == set(given)
    trainer = Trainer(TrainConfig(precision="fp32"), mean=whole.mean, std=whole.std, device=torch.device("cpu"), seed=0)
    found = read_predictions(unit / "predictions.parquet")
    for site, predicted in found.items():
        images = trainer.predict(whole.module, prepared.sets[site]["test"])
        np.testing.assert_allclose(predicted.probabilities, images, atol=2e-6)
    entry = json.loads((unit / "unit.json").read_text())
    assert any("8 views" in w and "no other augmentation" in w for w in entry["warnings"])
    assert entry["parameters"] == sum(p.numel() for p in whole.module.parameters())

    counts.clear()
    again = _run(study, "model.tune=head", arms, "seeds=[0]", name="others")
    # Another run folder with a cache of its own computes anew, and gives the same bytes.
    assert sum(counts) > 0
    assert sha256_file(again / "units/fedavg/all/seed-0/best.safetensors") == sha256_file(unit / "best.safetensors")


def test_killed_and_resumed_gives_the_same_bytes(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from morphfed.federation.loop import RoundLoop

    whole = _run(study, "model.tune=head", name="whole")
    original = RoundLoop.run

    def killed(self: RoundLoop, *args: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(RoundLoop, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        _run(study, "model.tune=head", name="broken")
    monkeypatch.setattr(RoundLoop, "run", original)
    counts = _computed(monkeypatch)
    broken = _run(study, "model.tune=head", name="broken")
    assert sum(counts) == 0
    at = "units/fedavg/all/seed-0/last.safetensors"
    assert sha256_file(whole / at) == sha256_file(broken / at)


@pytest.mark.parametrize("tune", ["lora", "last-1"])
def test_only_what_is_tuned_is_sent_and_changes(tune: str, study: Path) -> None:
    run = _run(study, f"model.tune={tune}", "model.lora_rank=2")
    unit = run / "units/fedavg/all/seed-0"
    whole, _ = restore(unit / "last.safetensors")
    order = set(Layout.of(whole.module, whole.head).order)
    part = "lora_" if tune == "lora" else "layer4.0."
    assert order > HEAD
    assert all(part in name for name in order - HEAD)
    assert _sent(unit) == {len(order)}
    given = load_file(study.parent / "w.safetensors")
    after = {k.replace(".base_layer", ""): v for k, v in whole.module.state_dict().items()}
    assert set(given) <= set(after)
    moved = {k for k in given if given[k].is_floating_point() and not torch.equal(after[k], given[k])}
    assert moved == (order if tune == "last-1" else HEAD)


def test_in_processes_and_in_eight_test_views(study: Path) -> None:
    run = _run(study, "model.tune=head", "arms={fedavg={}, centralised={}}", "evaluation.views=8", "compute.jobs=2")
    loaded, _ = load_study(study, [*SHORT, "model.tune=head"])
    prepared = load_prepared(loaded, run, run.parent / ".cache", build=False)
    whole, _ = restore(run / "units/fedavg/all/seed-0/best.safetensors")
    trainer = Trainer(TrainConfig(precision="fp32"), mean=whole.mean, std=whole.std, device=torch.device("cpu"), seed=0)
    found = read_predictions(run / "units/fedavg/all/seed-0/predictions.parquet")
    for site, predicted in found.items():
        images = trainer.predict(whole.module, prepared.sets[site]["test"], views=8)
        np.testing.assert_allclose(predicted.probabilities, images, atol=2e-6)


def test_without_the_cache_the_head_is_trained_on_augmented_images(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = _computed(monkeypatch)
    run = _run(study, "model.tune=head", "train.feature_cache=false")
    assert counts == []
    entry = json.loads((run / "units/fedavg/all/seed-0/unit.json").read_text())
    assert not any("features" in w for w in entry["warnings"])


def test_plan_counts_what_travels_in_each_mode(study: Path) -> None:
    arms = (
        "arms={full={algorithm='fedavg'}, head={algorithm='fedavg', model={tune='head'}}, "
        "last={algorithm='fedavg', model={tune='last-1'}}}"
    )
    plan = plan_study(study, [*SHORT, arms], measure=False)
    sizes = {u["arm"]: u["megabytes_per_round"] for u in plan["units"]}
    state = build(ModelConfig(name="resnet10t"), classes=2, image_size=32, seed=0).module.state_dict()
    floats = {k: t.numel() for k, t in state.items() if t.is_floating_point()}
    both_ways_two_sites = 4 * 2 * 2 / 1e6
    assert sizes["full"] == pytest.approx(both_ways_two_sites * sum(floats.values()))
    assert sizes["head"] == pytest.approx(both_ways_two_sites * (512 * 2 + 2))
    last = sum(n for k, n in floats.items() if k.startswith(("layer4.", "fc.")))
    assert sizes["last"] == pytest.approx(both_ways_two_sites * last)
    text = render_plan(plan)
    assert "0.001 of 4.92 M parameters (head)" in text
    assert "8 views" in text
    assert plan["features"][0]["views"] == 8


def test_nonsense_is_refused_before_any_work(study: Path) -> None:
    with pytest.raises(ConfigError, match=r"arms\.fedavg: model\.tune = 'head' freezes a network that was never"):
        run_study(study, Options(study.parent / "runs", overrides=["model.tune=head"]))
    assert not (study.parent / "runs").exists()
