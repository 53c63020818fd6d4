"""Studies with labels of several grains: what trains, what is tested, what is counted where."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save_file

from morphfed.core.errors import DataError
from morphfed.data.ontology import load_ontology
from morphfed.experiment.coarse import coarse_block, coarse_notes
from morphfed.experiment.plan import plan_study, render_plan
from morphfed.experiment.prepare import load_prepared
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import DataConfig, Study, load_study
from morphfed.models.backbone import ModelConfig, build
from morphfed.training.dataset import pool

CLASSES = ("neutrophil", "eosinophil", "lymphocyte")
PARENT = "data.coarse=parent"
SITES = ("alder", "birch", "cedar")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Path:
    """Three laboratories; birch and cedar call every second granulocyte only that, and birch one cell a leukocyte."""
    from morphfed.data.synthetic import PRESETS, write_films

    folder = tmp_path_factory.mktemp("coarse")
    write_films(folder / "films", [PRESETS[n] for n in SITES], dict.fromkeys(CLASSES, 12), seed=0, patients=5)
    for site in ("birch", "cedar"):
        table = folder / "films" / site / "labels.csv"
        frame = pd.read_csv(table)
        mature = frame.index[frame["label"].isin(("neutrophil", "eosinophil"))]
        frame.loc[mature[::2], "label"] = "granulocyte"
        if site == "birch":
            frame.loc[frame.index[-1], "label"] = "leukocyte"
        frame.to_csv(table, index=False)
    file = folder / "study.toml"
    file.write_text(tiny_text.replace('["neutrophil", "lymphocyte"]', json.dumps(list(CLASSES))))
    return file


@pytest.fixture(scope="module")
def done(study: Path) -> tuple[dict[str, Any], Path]:
    switches = [
        PARENT,
        "federation.rounds=2",
        "arms={fedavg={},fedrep={},moon={},centralised={}}",
        "train.loss={kind='logit_adjusted',prior='federation',label_smoothing=0.05}",
        "evaluation.resamples=100",
    ]
    finished = run_study(study, Options(study.parent / "runs", overrides=switches))
    assert not finished.failed
    return json.loads(finished.results.read_text()), finished.run


def _rows(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "prepared.parquet")


def _plain(study: Path, *overrides: str, name: str) -> Path:
    short = ["federation.rounds=1", "evaluation.images=false"]
    finished = run_study(study, Options(study.parent / name, overrides=[*short, *overrides]))
    assert not finished.failed
    return finished.run


def test_the_exact_images_are_split_as_without_the_others(done: tuple[dict[str, Any], Path], study: Path) -> None:
    plain = _rows(_plain(study, name="plain")).set_index("id")
    coarse = _rows(done[1]).set_index("id")
    exact = coarse[coarse["label"] < len(CLASSES)]
    pd.testing.assert_frame_equal(exact, plain)
    assert set(coarse.loc[coarse["label"] == len(CLASSES), "split"]) == {"train"}
    assert set(coarse["label"]) == {0, 1, 2, 3}


def test_a_patient_lies_on_one_side_and_every_image_is_accounted_for(done: tuple[dict[str, Any], Path]) -> None:
    results, run = done
    rows = _rows(run)
    for site in SITES:
        here = rows[rows["site"] == site]
        assert here.groupby("cluster")["split"].nunique().max() == 1
        block = results["data"]["sites"][site]
        exact = sum(sum(parts.values()) for parts in block["classes"].values())
        used = sum(entry["n"] for entry in block["coarse"])
        assert block["n"] == exact + used == len(here)
        assert block["n"] + sum(entry["n"] for entry in block["left_out"]) == 36
    why = {site: {e["why"]: e["n"] for e in results["data"]["sites"][site]["left_out"]} for site in SITES}
    used = results["data"]["sites"]["birch"]["coarse"][0]
    assert used["label"] == "granulocyte"
    assert used["classes"] == ["neutrophil", "eosinophil"]
    assert used["others"] == ["basophil", "immature_granulocyte"]
    assert 0 < used["n"] < 12
    assert why["alder"] == {}
    assert why["birch"] == {
        "coarser label; the rest of its patient, slide or copies is in validation or test": 12 - used["n"],
        "'leukocyte' may be any of the classes: it tells nothing": 1,
    }
    assert why["cedar"] == {"'granulocyte' is a coarser name of several classes: trained with, never tested with": 12}


def test_counts_that_leave_hold_classes_alone_and_uploads_weigh_all_that_trained(
    done: tuple[dict[str, Any], Path],
) -> None:
    results, run = done
    rows = _rows(run)
    train = rows[(rows["split"] == "train") & (rows["site"] != "cedar")]
    exact = Counter(train.loc[train["label"] < 3, "label"])
    arm = next(a for a in results["arms"] if a["model"] == "fedavg")
    assert arm["class_counts"] == [exact[c] for c in range(3)]
    assert arm["images_seen"] == 2 * len(train)
    lines = [json.loads(t) for t in (run / "units/fedavg/all/seed-0/ledger.jsonl").read_text().splitlines()]
    weights = {line["site"]: line["weight"] for line in lines if "weight" in line}
    assert weights == {s: float((train["site"] == s).sum()) for s in ("alder", "birch")}
    assert {line["statistic"] for line in lines if "statistic" in line} == {"class_counts"}


def test_only_exact_labels_are_tested(done: tuple[dict[str, Any], Path]) -> None:
    results, run = done
    rows = _rows(run).set_index("id")
    for arm in results["arms"]:
        for site, block in arm["sites"].items():
            tested = rows[(rows["site"] == site) & (rows["split"] == "test")]
            assert (tested["label"] < 3).all()
            assert block["n"] == len(tested)
        for line in arm["history"]:
            losses = [site["loss"] for site in line["sites"].values() if "loss" in site]
            assert losses
            assert np.isfinite(losses).all()


def test_the_report_names_them(done: tuple[dict[str, Any], Path]) -> None:
    page = (done[1] / "report.html").read_text()
    assert 'id="table-coarse"' in page
    assert "basophil and immature granulocyte" in page
    assert "carried a coarser label" in page


def test_the_plan_counts_them(study: Path, done: tuple[dict[str, Any], Path]) -> None:
    plan = plan_study(study, [PARENT, "data.split.copies_together=false"], measure=False)
    entry = plan["sites"]["birch"]["coarse"][0]
    assert entry["n"] == done[0]["data"]["sites"]["birch"]["coarse"][0]["n"]
    rows = _rows(done[1])
    assert plan["sites"]["birch"]["train"] == int(((rows["site"] == "birch") & (rows["split"] == "train")).sum())
    assert f"{entry['n']} of train are granulocyte: one of neutrophil, eosinophil" in render_plan(plan)
    assert plan_study(study, measure=False)["sites"]["birch"]["coarse"] == []


def test_a_class_that_a_site_has_under_a_coarser_label_alone_is_pointed_out() -> None:
    labels = ["neutrophil", "granulocyte", "granulocyte", "lymphocyte", "eosinophil"]
    rows = pd.DataFrame({"class": labels, "parent": None, "split": ["train"] * 4 + ["test"]}, dtype=object)
    rows.loc[[1, 2], "parent"], rows.loc[[1, 2], "class"] = "granulocyte", None
    block = coarse_block(Study(name="a", classes=CLASSES, sites={"a": {"path": "a"}}), rows)
    assert [(e["label"], e["n"], e["unseen"]) for e in block] == [("granulocyte", 2, ["eosinophil"])]
    assert "a: 2 training images are labelled granulocyte, none eosinophil" in coarse_notes("a", block)[0]
    assert coarse_notes("a", [{**block[0], "unseen": []}]) == []


def test_a_head_trains_on_their_stored_features(study: Path) -> None:
    network = build(ModelConfig(name="resnet10t"), classes=3, image_size=32, seed=5).module
    save_file(network.state_dict(), study.parent / "w.safetensors")
    run = _plain(study, PARENT, "model.tune=head", "model.weights=w.safetensors", name="head")
    rows = _rows(run)
    results = json.loads((run / "results.json").read_text())
    arm = next(a for a in results["arms"] if a["model"] == "fedavg")
    assert arm["images_seen"] == int(((rows["split"] == "train") & (rows["site"] != "cedar")).sum())
    assert any("computed once" in warning for warning in arm["warnings"])


def test_a_left_out_site_is_tested_without_them(study: Path) -> None:
    run = _plain(study, PARENT, "holdout=each", "held_out=[]", "evaluation.unknown=true", name="each")
    whole = json.loads((run / "results.json").read_text())
    assert [e["label"] for s in ("birch", "cedar") for e in whole["data"]["sites"][s]["coarse"]] == ["granulocyte"] * 2
    fold = json.loads((run / "folds/birch/results.json").read_text())
    block = fold["data"]["sites"]["birch"]
    assert block["coarse"] == []
    assert block["n"] == fold["arms"][0]["sites"]["birch"]["n"] == 36 - 12 - 1
    assert next(f["n"] for f in whole["folds"] if f["held_out"] == "birch") == block["n"]
    assert sum(entry["n"] for entry in block["left_out"]) == 13


def test_prepared_images_come_back_with_their_classes(done: tuple[dict[str, Any], Path], study: Path) -> None:
    settings, _ = load_study(study, [PARENT])
    prepared = load_prepared(settings, done[1], study.parent / "runs" / ".cache", build=False)
    sets = [prepared.sets[s]["train"] for s in ("alder", "birch")]
    assert sets[1].parents == ((0, 1),)
    assert sets[0].used_parents == ()
    assert sets[1].used_parents == ((0, 1),)
    joined = pool(sets)
    assert joined.class_counts.sum() + (~joined.exact).sum() == len(joined)
    assert len(joined.only(~joined.exact)) == (sets[1].labels == 3).sum()


def test_a_site_of_coarser_labels_alone_is_refused(study: Path, tmp_path: Path) -> None:
    films = study.parent / "films"
    rows = pd.read_csv(films / "birch" / "labels.csv").head(6)
    manifest = _manifest(rows["path"].tolist(), films / "birch", tmp_path)
    with pytest.raises(DataError, match=r"Site 'birch': none of its images .*6 have a coarser one"):
        plan_study(study, [PARENT, f"sites.birch.path={manifest}"], measure=False)


def _manifest(paths: list[str], root: Path, folder: Path) -> Path:
    from morphfed.data.manifest import COLUMNS

    blank = dict.fromkeys(COLUMNS)
    rows = [
        {**blank, "path": str(root / p), "site": "birch", "source_label": "x", "label": "granulocyte", "source": "t"}
        for p in paths
    ]
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(folder / "birch.csv", index=False)
    return folder / "birch.csv"


def test_names_of_the_ontology() -> None:
    ontology = load_ontology()
    five = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
    assert ontology.parents_of(five) == {"granulocyte": ("neutrophil", "eosinophil", "basophil")}
    assert ontology.uncovered("granulocyte", five) == ("immature_granulocyte",)
    fine = ("neutrophil_banded", "neutrophil_segmented", "basophil", "erythroblast")
    assert ontology.parents_of(fine) == {
        "leukocyte": ("neutrophil_banded", "neutrophil_segmented", "basophil"),
        "granulocyte": ("neutrophil_banded", "neutrophil_segmented", "basophil"),
        "neutrophil": ("neutrophil_banded", "neutrophil_segmented"),
    }
    assert ontology.uncovered("neutrophil", fine) == ()
    assert "eosinophil" in ontology.uncovered("leukocyte", fine)


def test_off_by_default() -> None:
    assert DataConfig().coarse == "leave_out"
