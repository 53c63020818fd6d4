"""A study of survival from bags to report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morphfed.core.errors import ConfigError, DataError
from morphfed.data.bags.files import write_bag
from morphfed.evaluation.survival import read_outcomes
from morphfed.experiment.plan import plan_study
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import load_study

SITES = {"alder": 60, "birch": 48, "cedar": 36}
STUDY = """\
name = "slides"
task = "survival"
seeds = [0]
held_out = ["cedar"]

[sites]
alder = { path = "alder" }
birch = { path = "birch" }
cedar = { path = "cedar" }

[data]
root = "bags"
time_edges = [6, 12, 24]
split = { train = 0.5, validation = 0.2, test = 0.3 }

[model]
options = { hidden = [8], attention = 6 }

[train]
lr = 1e-2
batch_size = 4
local_epochs = 4

[federation]
rounds = 4

[arms.local]
[arms.centralised]
[arms.fedavg]

[evaluation]
resamples = 100

[compute]
device = "cpu"
jobs = 1
threads = 1
"""


def write_site(folder: Path, n: int, seed: int) -> None:
    """Two slides a patient; the share of instances that lie elsewhere makes the time short, some are lost earlier."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    lines = ["case_id,slide_id,survival_months,censorship"]
    for patient in range(n // 2):
        bad = draw.random()
        time, lost = draw.exponential(40 * np.exp(-3.5 * bad)), draw.uniform(2, 30)
        for slide in range(2):
            bag = draw.normal(size=(20, 5)).astype(np.float32)
            bag[: round(20 * bad)] += 3
            name = f"{folder.name}-{patient:02}{'ab'[slide]}"
            write_bag(folder / f"{name}.h5", bag, encoder="resnet18")
            lines.append(f"p{patient:02},{name},{min(time, lost):.2f},{int(lost < time)}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")


def results_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survival") / "bags"
    for seed, (name, n) in enumerate(SITES.items()):
        write_site(folder / name, n, seed)
    return folder


@pytest.fixture
def study(bags: Path, tmp_path: Path) -> Path:
    shutil.copytree(bags, tmp_path / "bags")
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


@pytest.fixture(scope="module")
def ran(bags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with rows that cannot be used among the others."""
    folder = tmp_path_factory.mktemp("ran")
    shutil.copytree(bags, folder / "bags")
    spoil(folder / "bags" / "alder")
    (folder / "study.toml").write_text(STUDY)
    return run_study(folder / "study.toml", Options(runs=folder / "runs")).run


def spoil(folder: Path) -> None:
    rows = {
        "no-time": "x1,{},,0",
        "no-fate": "x2,{},12,",
        "negative": "x3,{},-3,0",
        "endless": "x4,{},inf,1",
        "two-fates": "x5,{0},12,0\nx5,{0},12,1",
        "one-of-two": "x6,{},12,0",
        "other-of-two": "x6,{},13,0",
    }
    draw = np.random.default_rng(9)
    with (folder / "slides.csv").open("a") as file:
        for name, row in rows.items():
            write_bag(folder / f"{name}.h5", draw.normal(size=(4, 5)), encoder="resnet18")
            file.write(row.format(name) + "\n")


def test_attention_is_told_with_fate_and_curve(ran: Path) -> None:
    unit = next(u for u in results_of(ran)["arms"] if u["model"] == "fedavg")
    outcomes = read_outcomes(ran / "units/fedavg/all/seed-0/outcomes.parquet")
    fates = set()
    for site, block in unit["sites"].items():
        of = outcomes[site]
        for e in block["attention"]:
            row = of.ids.tolist().index(e["id"])
            fate = "censored" if of.censored[row] else "event"
            fates.add(fate)
            assert e["truth"] == f"{fate} at {of.months[row]:.1f} months"
            assert e["predicted"] == f"{100 * of.survival[row, 2]:.0f} % beyond 24 months"
            assert sum(top["weight"] for top in e["top"]) <= 1 + 1e-6
    assert fates == {"event", "censored"}
    text = re.sub(r"<[^>]+>", " ", (ran / "report.html").read_text())
    assert "Where the model looked" in text
    assert "taken for" not in text


def test_every_arm_is_judged_by_patient(ran: Path) -> None:
    results = results_of(ran)
    assert results["failed"] == []
    assert results["study"]["primary_metric"] == "c_index"
    for unit in results["arms"]:
        assert set(unit["sites"]) == set(SITES)
        assert unit["sites"]["cedar"]["n"] == SITES["cedar"] // 2  # patients: each has two slides
        assert unit["sites"]["cedar"]["cluster_unit"] == "patient"
    for name in ("centralised", "fedavg"):
        block = next(u for u in results["arms"] if u["model"] == name)["sites"]["cedar"]
        index = block["metrics"]["c_index"]
        assert index["value"] > 0.65  # there is something to learn, and it is
        assert index["low"] < index["value"] < index["high"]
        low, high = block["risk_groups"]["groups"]
        assert low["curve"][0] == high["curve"][0] == [0.0, 1.0]
    scopes = {(s["scope"], s["metric"]) for s in results["summary"]}
    assert {("mean_training", "c_index"), ("worst_training", "c_index"), ("cedar", "c_index")} <= scopes
    assert {("fedavg", "centralised", "c_index")} <= {(c["a"], c["b"], c["metric"]) for c in results["comparisons"]}


def test_what_is_left_out_is_counted_and_named(ran: Path) -> None:
    alder = results_of(ran)["data"]["sites"]["alder"]
    assert {entry["why"]: entry["n"] for entry in alder["left_out"]} == {
        "no survival_months": 1,
        "no censorship": 1,
        "survival_months is -3": 1,
        "survival_months is inf": 1,
        "its rows differ in survival_months or censorship": 1,
        "its patient's slides differ in survival_months or censorship": 2,
    }
    assert alder["n"] == SITES["alder"]
    assert sum(alder["time"]["events"]) == sum(alder["classes"]["event"].values())
    assert any("negative.h5" in note for note in results_of(ran)["data"]["notes"])


def test_the_bins_are_those_of_the_edges(ran: Path) -> None:
    import pandas as pd

    rows = pd.read_parquet(ran / "prepared.parquet")
    table = pd.read_csv(ran.parent.parent / "bags/birch/slides.csv").set_index("slide_id")
    for path, months, label in zip(rows["path"], rows["months"], rows["label"], strict=True):
        if (slide := Path(path).stem) in table.index:
            said = table.loc[slide]
            assert months == said["survival_months"]
            assert label == 4 * said["censorship"] + sum(months >= edge for edge in (6, 12, 24))
    parts = rows.groupby(["site", "cluster"])["split"].nunique()
    assert (parts == 1).all()


def test_no_time_leaves_a_site(ran: Path) -> None:
    lines = [json.loads(x) for x in (ran / "units/fedavg/all/seed-0/ledger.jsonl").read_text().splitlines()]
    assert {line["purpose"].split(":")[0] for line in lines} == {"fedavg", "validation"}
    assert {n.split("/")[-1] for line in lines for n in line["metrics"]} == {"images", "loss", "steps", "c_index"}
    fedavg = next(u for u in results_of(ran)["arms"] if u["model"] == "fedavg")
    assert {line["bytes"] for line in lines if line["tensors"]} == {4 * fedavg["parameters"] + 4 * 8}


def test_the_saved_model_says_what_was_judged(ran: Path) -> None:
    import torch

    from morphfed.data.bags.store import read_at
    from morphfed.models.saved import restore

    backbone, card = restore(ran / "units/fedavg/all/seed-0/best.safetensors")
    assert card["classes"] == ["0–6 months", "6–12 months", "12–24 months", "from 24 months"]
    outcomes = read_outcomes(ran / "units/fedavg/all/seed-0/outcomes.parquet")["cedar"]
    bag = read_at(ran.parent.parent / "bags/cedar" / outcomes.ids[0].split("/")[-1])
    with torch.no_grad():
        hazards = torch.sigmoid(backbone.module(torch.from_numpy(bag)).logits).double()
    np.testing.assert_allclose(torch.cumprod(1 - hazards, 0).numpy(), outcomes.survival[0], atol=1e-5)


def test_the_report_shows_risk_groups(ran: Path) -> None:
    page = (ran / "report.html").read_text()
    text = re.sub(r"<style.*?</style>|data:image[^\"]*|<[^>]+>", " ", page, flags=re.DOTALL)
    assert "Risk groups" in text
    assert "Kaplan–Meier curves of FedAvg" in text
    assert "cut at 6, 12, 24 months; censored bags weighed 0.85" in text
    assert "c-index" in text
    assert re.findall(r".{30}\bimages?\b.{30}", text) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.time_edges=[]", "data.time_edges is empty"),
        ("data.time_edges=[12, 6]", "finite, above 0 and rising"),
        ("data.time_edges=[0, 6]", "finite, above 0 and rising"),
        ("classes=['a', 'b']", "task = 'survival' has data.time_edges, no classes"),
        ("model.name='mil/clam_sb'", "also learns from each bag's class"),
        ("evaluation.calibrate='temperature'", "evaluation.calibrate is about classes"),
        ("evaluation.views=8", "evaluation.views turns pictures"),
        ("data.labels={a='b'}", "data.labels and sites.NAME.labels is about classes"),
        ("train.loss.kind='focal'", "train.loss is of classes"),
        ("train.mask_loss.dice=0.5", "train.mask_loss is of masks"),
        ("federation.select='macro_f1'", "choose c_index"),
        ("arms={moon={}}", "'moon' is defined for"),
        ("arms={prr={}}", "prr"),
    ],
)
def test_what_means_nothing_is_refused(override: str, message: str, study: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(study, [override])


def edit(folder: Path, old: str, new: str) -> None:
    table = folder / "slides.csv"
    table.write_text(re.sub(old, new, table.read_text(), flags=re.MULTILINE))


def test_an_unknown_censorship_names_its_row(study: Path, tmp_path: Path) -> None:
    edit(tmp_path / "bags/birch", r",[01]$", ",2")
    with pytest.raises(DataError, match=r"birch/slides\.csv, row 2: censorship is 2; 1 \(alive"):
        plan_study(study, measure=False)


def test_a_table_without_times_is_named(study: Path, tmp_path: Path) -> None:
    edit(tmp_path / "bags/birch", r"survival_months", "label")
    with pytest.raises(DataError, match=r"Site 'birch': no bag can be used \(48 × no survival_months\)"):
        plan_study(study, measure=False)


def test_few_events_are_said(study: Path, tmp_path: Path) -> None:
    edit(tmp_path / "bags/birch", r",0$", ",1")
    plan = plan_study(study, ["data.time_edges=[6, 12, 500]"], measure=False)
    assert any(note.startswith("birch: all training bags are censored") for note in plan["notes"])
    assert any(re.match(r"no training bag has its event in .*from 500 months:", note) for note in plan["notes"])
    few = plan_study(study, [f"data.time_edges={list(range(1, 60))}"], measure=False)
    assert any(re.match(r"alder: \d+ training bags with an event for 60 bins", note) for note in few["notes"])


def test_no_event_at_all_is_refused_and_a_site_without_one_trains(study: Path, tmp_path: Path) -> None:
    edit(tmp_path / "bags/birch", r",0$", ",1")
    how = ["arms={fedavg={}}", "federation.rounds=1"]
    results = results_of(run_study(study, Options(runs=tmp_path / "one", overrides=how)).run)
    birch = results["arms"][0]["sites"]["birch"]
    assert birch["metrics"]["c_index"]["value"] is None
    assert "there is no c-index" in birch["notes"][0]
    edit(tmp_path / "bags/alder", r",0$", ",1")
    with pytest.raises(ConfigError, match="All training bags without cedar are censored"):
        run_study(study, Options(runs=tmp_path / "two", overrides=how))


def test_algorithms_that_ask_for_losses_or_make_weights_train(study: Path, tmp_path: Path) -> None:
    """q-FedAvg asks each site for its mean loss, Ditto keeps two models, the hyper-network makes the weights."""
    how = ["arms={qfedavg={lipschitz=100}, ditto={}, hypernetwork={}}", "federation.rounds=1", "train.local_epochs=1"]
    results = results_of(run_study(study, Options(runs=tmp_path / "runs", overrides=how)).run)
    assert results["failed"] == []
    assert {u["model"] for u in results["arms"]} == {"qfedavg", "ditto", "hypernetwork"}
    for unit in results["arms"]:
        assert unit["sites"]["alder"]["metrics"]["c_index"]["value"] is not None
