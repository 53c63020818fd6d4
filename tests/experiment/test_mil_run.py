"""A study of bags from files to report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from morphfed.core.errors import ConfigError, DataError
from morphfed.data.bags.files import write_bag
from morphfed.evaluation.predictions import read_predictions
from morphfed.experiment.plan import plan_study, render_plan
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import load_study

SITES = {"alder": 24, "birch": 18, "cedar": 16}
STUDY = """\
name = "slides"
task = "mil"
classes = ["normal", "tumour"]
seeds = [0]
held_out = ["cedar"]

[sites]
alder = { path = "alder" }
birch = { path = "birch", labels = { "benign" = "normal" } }
cedar = { path = "cedar" }

[data]
root = "bags"
labels = { "cancer" = "tumour" }
split = { train = 0.5, validation = 0.2, test = 0.3 }

[model]
name = "mil/clam_sb"
options = { hidden = [8], attention = 6, clustered = 2 }

[train]
lr = 2e-2
batch_size = 4
local_epochs = 4

[federation]
rounds = 3

[arms.local]
[arms.centralised]
[arms.fedavg]
[arms.ditto]

[evaluation]
resamples = 100

[compute]
device = "cpu"
jobs = 1
threads = 1
"""


def write_site(folder: Path, n: int, seed: int, *, negative: str = "normal", positive: str = "cancer") -> None:
    """Two slides a patient; a tumour is a few instances that lie elsewhere."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    lines = ["case_id,slide_id,label"]
    for i in range(n):
        tumour = (i // 2) % 2
        bag = draw.normal(size=(int(draw.integers(6, 20)), 5)).astype(np.float16)
        bag[: 3 * tumour] += 5
        coords = np.stack([np.arange(len(bag)) * 256, np.zeros(len(bag), dtype=np.int64)], axis=1)
        write_bag(folder / f"{folder.name}-{i:02}.h5", bag, coords, encoder="resnet18")
        lines.append(f"{folder.name}-p{i // 2},{folder.name}-{i:02},{positive if tumour else negative}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mil") / "bags"
    for seed, (name, n) in enumerate(SITES.items()):
        write_site(folder / name, n, seed, negative="benign" if name == "birch" else "normal")
    return folder


@pytest.fixture
def study(bags: Path, tmp_path: Path) -> Path:
    shutil.copytree(bags, tmp_path / "bags")
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


@pytest.fixture(scope="module")
def ran(bags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with slides that cannot be used among the others."""
    folder = tmp_path_factory.mktemp("ran")
    shutil.copytree(bags, folder / "bags")
    spoil(folder / "bags" / "alder")
    (folder / "study.toml").write_text(STUDY)
    return run_study(folder / "study.toml", Options(runs=folder / "runs")).run


def spoil(folder: Path) -> None:
    with (folder / "slides.csv").open("a") as file:
        file.write("x,absent,normal\nx,glass,normal\nx,broken,normal\nx,odd,cancer\nx,other,stroma\n")
    draw = np.random.default_rng(9)
    write_bag(folder / "glass.h5", np.zeros((0, 5), dtype=np.float32))
    write_bag(folder / "unlisted.h5", draw.normal(size=(4, 5)), encoder="resnet18")
    write_bag(folder / "other.h5", draw.normal(size=(4, 5)), encoder="resnet18")
    odd = draw.normal(size=(4, 5))
    odd[2, 1] = np.nan
    write_bag(folder / "odd.h5", odd, encoder="resnet18")
    content = (folder / "other.h5").read_bytes()
    (folder / "broken.h5").write_bytes(content[: len(content) // 2])


def results_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def test_every_arm_is_judged_at_every_site(ran: Path) -> None:
    results = results_of(ran)
    assert results["failed"] == []
    assert {u["model"] for u in results["arms"]} == {"local/alder", "local/birch", "centralised", "fedavg", "ditto"}
    for unit in results["arms"]:
        judged = set(SITES) if unit["model"] != "ditto" else set(unit["sites"])
        assert set(unit["sites"]) == judged
        for block in unit["sites"].values():
            assert block["cluster_unit"] == "patient"
            assert block["clusters"] < block["n"]
    fedavg = next(u for u in results["arms"] if u["model"] == "fedavg")
    assert fedavg["sites"]["cedar"]["n"] == SITES["cedar"]  # held out: all of it is test
    for name in ("centralised", "fedavg"):
        unit = next(u for u in results["arms"] if u["model"] == name)
        assert unit["sites"]["cedar"]["metrics"]["auroc"]["value"] > 0.9  # there is something to learn, and it is
    scopes = {(s["scope"], s["metric"]) for s in results["summary"]}
    assert {("mean_training", "auroc"), ("cedar", "balanced_accuracy"), ("cedar", "macro_f1")} <= scopes
    primary = results["study"]["primary_metric"]
    assert primary in {c["metric"] for c in results["comparisons"]}  # else the report could compare no arms


def test_what_is_left_out_is_counted(ran: Path) -> None:
    alder = results_of(ran)["data"]["sites"]["alder"]
    why = {entry["why"]: entry["n"] for entry in alder["left_out"]}
    assert why.pop("the file cannot be read", 0) == 0
    damaged = [reason for reason in why if reason.startswith("cannot be read")]
    assert len(damaged) == 1
    assert why.pop(damaged[0]) == 1
    assert why == {
        "a label without a bag: no bag file": 1,
        "no instance: an empty slide": 1,
        "features that are not finite": 1,
        "a bag without a label: slides.csv does not list its slide": 1,
        "label 'stroma' is not a class of this study": 1,
    }
    assert alder["n"] == SITES["alder"]
    assert alder["bags"]["dim"] == 5
    assert alder["bags"]["encoder"] == "resnet18"
    assert any("odd.h5: 1 instances" in note for note in results_of(ran)["data"]["notes"])
    codes = {f["code"] for f in results_of(ran)["data"]["check"]["findings"]}
    assert "unusable-bag" in codes


def test_a_patient_is_in_one_part(ran: Path) -> None:
    import pandas as pd

    frame = pd.read_parquet(ran / "manifest.parquet")
    parts = frame[frame["split"].notna()].groupby(["site", "patient"])["split"].nunique()
    assert (parts == 1).all()


def test_only_weights_and_declared_numbers_leave(ran: Path) -> None:
    lines = [json.loads(x) for x in (ran / "units/fedavg/all/seed-0/ledger.jsonl").read_text().splitlines()]
    assert {line["purpose"].split(":")[0] for line in lines} == {"fedavg", "validation"}
    numbers = {name.split("/")[-1] for line in lines for name in line["metrics"]}
    assert numbers == {"images", "loss", "steps", "balanced_accuracy", "macro_f1"}
    fedavg = next(u for u in results_of(ran)["arms"] if u["model"] == "fedavg")
    own = 4 * fedavg["parameters"] + 4 * 8  # the head, three numbers and a weight: no features
    assert {line["bytes"] for line in lines if line["tensors"]} == {own}


def test_attention_is_the_saved_heads(ran: Path) -> None:
    import torch

    from morphfed.models.saved import restore

    head = restore(ran / "units/fedavg/all/seed-0/best.safetensors")[0].module
    fedavg = next(u for u in results_of(ran)["arms"] if u["model"] == "fedavg")
    looked = [(site, e) for site, block in fedavg["sites"].items() for e in block["attention"]]
    assert {e["truth"] for _, e in looked} == {"normal", "tumour"}
    for site, e in looked:
        with h5py.File(ran.parent.parent / "bags" / site / e["id"].split("/")[-1]) as file:
            bag = torch.from_numpy(file["features"][...].astype(np.float32))
        weights = torch.softmax(head.attention(head.embedding(bag)), dim=0).detach().numpy()
        order = np.argsort(-weights)
        assert [t["index"] for t in e["top"]] == order[:8].tolist()[: len(e["top"])]
        np.testing.assert_allclose([t["weight"] for t in e["top"]], weights[order[:8]], rtol=1e-4)
        assert e["effective"] == pytest.approx(1 / float((weights**2).sum()), rel=1e-4)
        assert all(t["at"] == [256 * t["index"], 0] for t in e["top"])


def test_sites_held_out_in_turn_are_looked_at_by_the_model_trained_without_them(study: Path, tmp_path: Path) -> None:
    over = ["holdout=each", "held_out=[]", "arms={local={}, centralised={}, fedavg={}}", "federation.rounds=1"]
    run = run_study(study, Options(runs=tmp_path / "runs", overrides=over)).run
    looked = results_of(run)["attention"]
    assert [(e["held_out"], e["model"], e["seed"]) for e in looked] == [(site, "fedavg", 0) for site in SITES]
    for e in looked:
        fold = json.loads((run / "folds" / e["held_out"] / "results.json").read_text())
        unit = next(u for u in fold["arms"] if u["model"] == "fedavg")
        assert e["held_out"] not in unit["trained_on"]
        assert e["bags"] == unit["sites"][e["held_out"]]["attention"]
        assert {Path(bag["id"]).name.partition("-")[0] for bag in e["bags"]} == {e["held_out"]}
    text = re.sub(r"<[^>]+>", " ", (run / "report.html").read_text())
    assert "of each site by the model trained without it" in text


def test_the_report_speaks_of_bags(ran: Path) -> None:
    page = (ran / "report.html").read_text()
    text = re.sub(r"<style.*?</style>|data:image[^\"]*|<[^>]+>", " ", page, flags=re.DOTALL)
    assert "Where the model looked" in text
    assert "test bags" in text
    assert re.findall(r".{30}\bimages?\b.{30}", text) == []
    assert "resnet18" in text


def test_the_saved_model_is_built_again(ran: Path) -> None:
    import torch

    from morphfed.models.saved import restore

    backbone, card = restore(ran / "units/fedavg/all/seed-0/best.safetensors")
    assert card["classes"] == ["normal", "tumour"]
    assert card["architecture"]["dim"] == 5
    predicted = read_predictions(ran / "units/fedavg/all/seed-0/predictions.parquet")["cedar"]
    first = predicted.ids[0].split("/")[-1]
    with h5py.File(next((ran.parent.parent / "bags" / "cedar").glob(first))) as file:
        bag = torch.from_numpy(file["features"][...].astype(np.float32))
    with torch.no_grad():
        p = torch.softmax(backbone.module(bag).logits, dim=0).numpy()
    np.testing.assert_allclose(p, predicted.probabilities[0], atol=1e-5)


def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(study: Path, ran: Path, tmp_path: Path) -> None:
    from morphfed.federation import loop

    how = Options(runs=tmp_path / "runs", overrides=["arms={fedavg={}}"])
    whole = run_study(study, Options(runs=tmp_path / "whole", overrides=how.overrides)).run
    cut = loop.RoundLoop._round
    calls = {"n": 0}

    def once(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 3:
            raise KeyboardInterrupt
        return cut(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.RoundLoop, "_round", once)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, how)
    again = run_study(study, how).run
    for name in ("best.safetensors", "last.safetensors"):
        one, two = (run / "units/fedavg/all/seed-0" / name for run in (whole, again))
        assert one.read_bytes() == two.read_bytes()


def test_the_plan_counts_bags(study: Path) -> None:
    plan = plan_study(study)
    assert plan["sites"]["cedar"]["test"] == SITES["cedar"]
    assert all(u["seconds"] > 0 for u in plan["units"])
    assert "fedavg" in render_plan(plan)
    assert not any("near-duplicates" in note for note in plan["notes"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name='resnet18'", "takes pictures"),
        ("model.name='mil/abmill'", r"Did you mean 'abmil'"),
        ("model.options={hiden=[3]}", r"Did you mean 'hidden'"),
        ("model={name='mil/abmil', tune='head', weights='x.safetensors'}", "model.tune = 'head' is of networks for"),
        ("model.norm='group'", "model.norm"),
        ("evaluation.views=8", "evaluation.views turns pictures"),
        ("evaluation.unknown=true", "evaluation.unknown"),
        ("data.coarse='parent'", "data.coarse"),
        ("train.augment.flips=false", "train.augment is of pictures"),
        ("federation.select='dice'", "is not computed with task = 'mil'"),
        ("arms={moon={}}", "one vector an image"),
        ("arms={prr={}}", "bags take loss = 'task'"),
        ("classes=['normal', 'normal']", "each name once"),
        ("sites.alder.mask_values={x=1}", "is of masks"),
        ("data.time_edges=[12]", "data.time_edges is of survival"),
        ("train.survival_loss.alpha=0.5", "train.survival_loss is of survival"),
        ("model.dim=6", "the bags have 5 numbers"),
    ],
)
def test_what_means_nothing_is_refused(override: str, message: str, study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_study(study, Options(runs=tmp_path / "runs", overrides=[override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name='mil/abmil'", "takes bags of features"),
        ("model.dim=4", "model.dim is of bags"),
        ("train.max_instances=4", "train.max_instances is of bags"),
    ],
)
def test_keys_of_bags_are_refused_for_pictures(override: str, message: str, study: Path) -> None:
    changes = ["task='classification'", "classes=['neutrophil', 'lymphocyte']", "model={name='resnet18'}", override]
    with pytest.raises(ConfigError, match=message):
        load_study(study, changes)


@pytest.mark.parametrize(("dim", "encoder", "what"), [(7, "resnet18", "numbers an instance"), (5, "uni", "encoder")])
def test_bags_of_two_encoders_are_refused(dim: int, encoder: str, what: str, study: Path, tmp_path: Path) -> None:
    write_bag(tmp_path / "bags/birch/birch-03.h5", np.ones((4, dim), dtype=np.float32), encoder=encoder)
    with pytest.raises(DataError, match=rf"differ in {what}: alder .*; birch .*For example birch-03\.h5"):
        run_study(study, Options(runs=tmp_path / "runs"))


def test_a_site_without_a_usable_bag_is_named(study: Path, tmp_path: Path) -> None:
    table = tmp_path / "bags/birch/slides.csv"
    table.write_text(table.read_text().replace("benign", "a").replace("cancer", "b"))
    with pytest.raises(DataError, match=r"Site 'birch': no bag can be used \(10 × label"):
        run_study(study, Options(runs=tmp_path / "runs"))


def test_one_slide_at_two_sites_is_found(study: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "bags/alder/alder-00.h5", tmp_path / "bags/cedar/alder-00.h5")
    with (tmp_path / "bags/cedar/slides.csv").open("a") as file:
        file.write("z,alder-00,normal\n")
    how = Options(runs=tmp_path / "runs", overrides=["arms={fedavg={}}", "federation.rounds=1"])
    results = results_of(run_study(study, how).run)
    findings = {f["code"]: f for f in results["data"]["check"]["findings"]}
    assert findings["duplicate-bag"]["level"] == "error"
    assert "alder" in findings["duplicate-bag"]["message"]
    assert "cedar" in findings["duplicate-bag"]["message"]
    assert findings["slide-at-two-sites"]["examples"] == ["alder-00"]
    assert any("alder and cedar share 1 slide ids" in note for note in results["data"]["notes"])
