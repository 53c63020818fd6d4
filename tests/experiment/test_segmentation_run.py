"""Studies of masks from folders to a report, and what is said of folders that are not in order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from morphfed.algorithms.base import ALGORITHMS
from morphfed.core.errors import ConfigError, DataError
from morphfed.core.files import read_json
from morphfed.evaluation.cases import read_cases
from morphfed.experiment.plan import plan_study
from morphfed.experiment.runner import Finished, Options, run_study
from morphfed.experiment.study import load_study

STUDY = """\
name = "masks"
task = "segmentation"
structures = ["nucleus", "cytoplasm"]
seeds = [0]

[data]
root = "."
image_size = 32
field_um = 0
check = true
split = { train = 0.5, validation = 0.2, test = 0.3, copies_together = false }

[sites]
east = { path = "east" }
west = { path = "west" }

[model]
name = "unet/resnet10t"
decoder = [16, 16, 8]

[train]
lr = 5e-3
batch_size = 4
precision = "fp32"

[federation]
rounds = 2

[arms.fedavg]

[evaluation]
resamples = 100

[compute]
device = "cpu"
jobs = 1
threads = 1
"""


def draw(folder: Path, n: int, *, seed: int, background: int, size: int = 40) -> None:
    """Cells: a disc of cytoplasm with a darker nucleus, on a ground that differs between laboratories."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((size, size))
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(n):
        y, x = rng.integers(14, 26, 2)
        distance = np.hypot(rows - y, columns - x)
        mask = np.where(distance < 6, 1, np.where(distance < 11, 2, 0)).astype(np.uint8)
        colours = np.array([[background] * 3, [90, 40, 130], [190, 140, 200]])
        pixels = (colours[mask] + rng.normal(0, 8, (size, size, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"cell_{i:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"cell_{i:02d}.png")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    draw(folder / "east", 20, seed=1, background=235)
    draw(folder / "west", 14, seed=2, background=215)
    return folder


@pytest.fixture
def study(drawn: Path, tmp_path: Path) -> Path:
    shutil.copytree(drawn, tmp_path / "data")
    path = tmp_path / "data" / "study.toml"
    path.write_text(STUDY)
    return path


def run(study: Path, *overrides: str, folder: str = "run") -> Finished:
    root = study.parents[1]
    return run_study(study, Options(root / "runs", root / "runs" / folder, overrides))


def test_from_folders_to_a_report(study: Path) -> None:
    arms = "arms={local={}, centralised={}, fedavg={}}"
    finished = run(study, arms, "federation.rounds=6", "sites.east.um_per_px=0.1")
    assert not finished.failed
    results = read_json(finished.results)
    assert results["study"]["task"] == "segmentation"
    assert results["study"]["primary_metric"] == "dice"
    assert results["data"]["sites"]["east"]["parts"] == {"train": 10, "validation": 4, "test": 6}
    assert results["data"]["sites"]["east"]["structures"]["nucleus"] == {"train": 10, "validation": 4, "test": 6}
    units = {u["model"]: u for u in results["arms"]}
    assert set(units) == {"local/east", "local/west", "centralised", "fedavg"}
    for unit in units.values():
        for site, block in unit["sites"].items():
            path = finished.run / "units" / unit["arm"] / (unit["model"].partition("/")[2] or "all") / "seed-0"
            cases = read_cases(path / "cases.parquet")[site]
            assert block["metrics"]["dice"]["value"] == pytest.approx(np.nanmean(cases.values("dice"), axis=0).mean())
            masks = np.load(path / "masks.npz")[site]
            assert masks.shape == (len(cases), 32, 32)
            assert [(masks == k).sum() for k in (1, 2)] == cases.predicted_px.sum(axis=0).tolist()
            known = block["metrics"]["hd95_um"]["value"], block["metrics"]["hd95_px"]["value"]
            if site == "east" and known[1] is not None:  # 40 px of 0.1 µm became 32
                assert known[0] == pytest.approx(known[1] * 0.1 * 40 / 32)
            if site == "west":
                assert known[0] is None
    assert units["fedavg"]["sites"]["east"]["structures"]["nucleus"]["dice"]["value"] > 0.7
    assert {o["kind"] for o in units["fedavg"]["sites"]["east"]["overlays"]} == {"worst", "median", "best"}
    ledger = [json.loads(line) for line in (finished.run / "units/fedavg/all/seed-0/ledger.jsonl").open()]
    validation = next(line for line in ledger if line["purpose"].startswith("validation"))
    assert set(validation["metrics"]) == {"east/dice", "east/iou"}
    page = finished.report.read_text()
    for said in ("Structure by structure", "networks that outline nucleus and cytoplasm", "White: the true outlines",
                 "nucleus blue and cytoplasm orange", "one minus soft Dice"):  # fmt: skip
        assert said in page, said
    assert "cell class" not in page
    assert "onfusion" not in page


def test_the_same_bytes_again_and_after_a_stop(study: Path) -> None:
    whole = run(study, folder="a").run / "units/fedavg/all/seed-0"
    first = run(study, "federation.rounds=2", folder="b").run / "units/fedavg/all/seed-0"
    for name in ("last.safetensors", "cases.parquet"):
        assert (whole / name).read_bytes() == (first / name).read_bytes(), name
    before = (whole / "last.safetensors").read_bytes()
    (whole / "unit.json").unlink()
    (whole / "last.safetensors").unlink()
    run(study, folder="a")
    assert (whole / "last.safetensors").read_bytes() == before


def defined() -> list[str]:
    return [name for name, a in ALGORITHMS.items() if "segmentation" in a.tasks and a.kind == "federated"]


def test_every_algorithm_that_is_defined_for_masks_runs(study: Path) -> None:
    names = defined()
    assert {"fedavg", "fedprox", "fedmedian", "fedbn", "ditto", "scaffold", "fedadam", "qfedavg"} <= set(names)
    # Rules against outliers want more sites than two.
    few = {"krum", "multikrum", "fedtrimmed"}
    keys = {"qfedavg": "lipschitz=100.0"}
    arms = ", ".join(f"{name}={{{keys.get(name, '')}}}" for name in names if name not in few)
    finished = run(study, f"arms={{{arms}}}", "federation.rounds=1")
    assert not finished.failed
    for unit in read_json(finished.results)["arms"]:
        assert set(unit["sites"]) == {"east", "west"}, unit["model"]


def test_what_needs_a_classifier_says_so(study: Path) -> None:
    with pytest.raises(ConfigError, match=r"arms\.moon: 'moon' is defined for a classifier's features"):
        load_study(study, ["arms={moon={}}"])
    with pytest.raises(ConfigError, match=r"arms\.det: .*metric = 'macro_f1' is a score of classes"):
        load_study(study, ["arms={det={metric='macro_f1'}}"])


def test_a_deputy_is_judged_by_its_masks(study: Path) -> None:
    _, arms = load_study(study, ["arms={det={}, prr-2021={}, other={algorithm='det', metric='iou'}}"])
    assert {name: arm.config.model_dump()["metric"] for name, arm in arms.items()} == {
        "det": "dice",
        "prr-2021": "dice",
        "other": "iou",
    }
    finished = run(study, "arms={det={}}", "federation.rounds=1", "train.local_epochs=3")
    assert not finished.failed


def test_prototypes_of_pixels_where_a_site_lacks_a_structure(study: Path) -> None:
    for path in (study.parent / "west" / "masks").iterdir():
        values = np.asarray(Image.open(path)).copy()
        Image.fromarray(np.where(values == 1, 2, values).astype(np.uint8)).save(path)
    finished = run(study, "arms={prr={init_share=0.0}}", "federation.rounds=2", "train.local_epochs=2")
    assert not finished.failed
    folder = finished.run / "units/prr/all/seed-0"
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").open()]
    counts = {line["site"]: line["values"] for line in ledger if line.get("statistic") == "class_counts"}
    assert sum(counts["east"]) == 10 * 32 * 32
    assert counts["west"][1] == 0 < counts["west"][2]
    for name, seen in (("east", [1, 1, 1]), ("west", [1, 0, 1])):
        kept = load_file(folder / "sites" / name / "last.safetensors")
        assert kept["algorithm/prototypes/seen"].tolist() == seen
        assert kept["algorithm/prototypes/mean"].shape == (3, 8)
        assert all(tensor.isfinite().all() for tensor in kept.values())
    assert "its number of training pixels of each class" in finished.report.read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.name=resnet10t"], "is a classifier; a study of masks"),
        (["classes=['neutrophil', 'lymphocyte']"], "has structures, no classes"),
        (["structures=[]"], "at least one structure"),
        (["structures=['nucleus', 'nucleus']"], "each name once"),
        (["evaluation.unknown=true"], "evaluation.unknown is about classes"),
        (["evaluation.calibrate=temperature"], "evaluation.calibrate is about classes"),
        (["model.tune=head", "model.weights=a.safetensors"], "model.tune = 'head' is of classifiers"),
        (["federation.select=macro_f1"], "federation.select = 'macro_f1' is of classes"),
        (["train.loss.kind=focal"], "train.loss is of classes"),
        (["data.coarse=parent"], "data.coarse is about classes"),
        (["train.mask_loss={dice=0, cross_entropy=0}"], "at least one weight"),
        (["sites.east.mask_values={nucleus=255}"], "no value for 'cytoplasm'"),
    ],
)
def test_settings_that_mean_nothing(study: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(study, overrides)


def test_classes_want_classifiers(tiny: Path) -> None:
    for overrides, said in (
        (["model.name=unet/resnet10t"], "needs a classifier"),
        (["structures=['a']"], "has classes, no structures"),
        (["federation.select=dice"], "is of masks"),
        (["train.mask_loss.dice=0.5"], "train.mask_loss is of masks"),
        (["sites.alder.mask_values={a=1}"], "mask_values is of masks"),
        (["arms={det={metric='dice'}}"], "metric = 'dice' is a score of masks"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_study(tiny, overrides)


def test_masks_that_cannot_be_used_are_counted_and_named(study: Path) -> None:
    masks = study.parent / "east" / "masks"
    (masks / "cell_00.png").unlink()
    Image.fromarray(np.zeros((30, 40), dtype=np.uint8)).save(masks / "cell_01.png")
    odd = np.asarray(Image.open(masks / "cell_02.png")).copy()
    odd[:10] = 77
    Image.fromarray(odd).save(masks / "cell_02.png")
    (masks / "cell_03.png").write_bytes(b"no picture")
    stray = np.asarray(Image.open(masks / "cell_04.png")).copy()
    stray[0, :3] = 9
    Image.fromarray(stray).save(masks / "cell_04.png")
    finished = run(study, "federation.rounds=1")
    data = read_json(finished.results)["data"]
    assert data["sites"]["east"]["n"] == 16
    why = {entry["why"]: entry["n"] for entry in data["sites"]["east"]["left_out"]}
    assert why == {
        "it has no mask": 1,
        "mask of another size": 1,
        "mask with unknown values": 1,
        "mask cannot be read": 1,
    }
    notes = " | ".join(data["notes"])
    assert "cell_01.png: 40×30 pixels, its image 40×40" in notes
    assert "cell_02.png: 77 in 400 pixels" in notes
    assert "cell_03.png" in notes
    assert "taken as the nearest known (cell_04.png: 9 in 3 pixels)" in notes
    assert "mask of another size" in finished.report.read_text()


def test_a_site_whose_masks_are_all_of_no_use(study: Path) -> None:
    with pytest.raises(DataError, match=r"Site 'west': no image has a mask that can be used \(14 × mask with unknown"):
        run(study, "sites.west.mask_values={nucleus=255, cytoplasm=128}")
    shutil.rmtree(study.parent / "west" / "masks")
    with pytest.raises(DataError, match="Site 'west'"):
        run(study, "sites.west.source=folders", folder="other")


def test_a_structure_that_one_site_or_every_site_lacks(study: Path) -> None:
    def erase(site: str) -> None:
        for path in (study.parent / site / "masks").iterdir():
            values = np.asarray(Image.open(path)).copy()
            Image.fromarray(np.where(values == 1, 2, values).astype(np.uint8)).save(path)

    erase("west")
    assert "west: none of its 14 masks shows nucleus" in plan_study(study, measure=False)["notes"]
    finished = run(study, "federation.rounds=1")
    page = finished.report.read_text()
    assert "No test image shows nucleus at west" in page
    west = read_json(finished.results)["arms"][0]["sites"]["west"]
    assert west["structures"]["nucleus"]["n"] == 0
    erase("east")
    with pytest.raises(ConfigError, match="No training mask shows nucleus"):
        run(study, folder="other")


def test_every_site_held_out_in_turn(study: Path) -> None:
    finished = run(study, "holdout=each", "arms={local={}, fedavg={}}", "federation.rounds=1")
    results = read_json(finished.results)
    assert results["cross_site"]["metric"] == "dice"
    assert {f["held_out"] for f in results["folds"]} == {"east", "west"}
    fold = read_json(finished.run / "folds" / "west" / "results.json")
    assert fold["data"]["sites"]["west"]["parts"] == {"train": 0, "validation": 0, "test": 14}
    assert {c["metric"] for c in results["comparisons"]} >= {"dice", "iou", "dice/nucleus"}
    assert "Dice" in finished.report.read_text()


def test_what_communication_and_views_do_to_masks(study: Path) -> None:
    asked = ("evaluation.retrogress=true", "evaluation.views=8", "federation.upload=int8", "model.norm=local")
    finished = run(study, *asked)
    assert not finished.failed
    results = read_json(finished.results)
    unit = results["arms"][0]
    east = unit["history"][-1]["sites"]["east"]
    assert set(east["before"]) == set(east["validation"]) == {"dice", "iou"}
    drops = {(d["scope"], d["metric"]): d for d in results["retrogress"]}
    assert set(drops) == {(s, m) for s in ("east", "west", "mean_training") for m in ("dice", "iou")}
    changes = [h["sites"]["east"]["before"]["dice"] - h["sites"]["east"]["validation"]["dice"] for h in unit["history"]]
    assert drops["east", "dice"]["mean"] == pytest.approx(np.mean(changes))
    folder = finished.run / "units/fedavg/all/seed-0"
    with_it, without = (read_cases(folder / name)["east"] for name in ("cases.parquet", "one-view.parquet"))
    gain = next(o for o in results["options"] if (o["scope"], o["metric"]) == ("east", "dice"))
    means = [float(np.nanmean(cases.values("dice"), axis=0).mean()) for cases in (with_it, without)]
    assert (gain["with"], gain["without"]) == pytest.approx(means)
    page = finished.report.read_text()
    for said in ("What communication does to each site", "What each option changed", "turned and mirrored copies"):
        assert said in page, said


def test_the_prostate_of_six_sites(tmp_path: Path) -> None:
    """The example on made-up slices that are laid out as the real ones."""
    folder = tmp_path / "data"
    for i, name in enumerate(("BIDMC", "HK", "I2CVB", "ISBI", "ISBI_1.5", "UCL")):
        site = folder / name
        draw(site, 10, seed=i, background=200)
        rows = []
        for n, path in enumerate(sorted((site / "masks").iterdir())):
            Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
            rows.append(f"images/{path.name},prostate,masks/{path.name},Case{n // 2:02d},625.0")
        (site / "saml_prostate.csv").write_text("\n".join(["path,label,mask,patient,um_per_px", *rows]) + "\n")
    example = Path(__file__).resolve().parents[2] / "examples" / "prostate.toml"
    small = ["model.weights=none", "model.name=unet/resnet10t", "model.decoder=[8, 8, 4]", "data.image_size=32"]
    plan = plan_study(example, [f"data.root={folder}", *small], measure=False)
    assert {name: site["role"] for name, site in plan["sites"].items()}["ucl"] == "held_out"
    assert plan["sites"]["ucl"]["test"] == 10
    assert all(sum(site[part] for part in ("train", "validation", "test")) == 10 for site in plan["sites"].values())
    assert plan["sites"]["bidmc"]["train"] % 2 == 0  # whole cases


def test_plan_counts_without_training(study: Path) -> None:
    plan = plan_study(study, measure=False)
    assert plan["sites"]["east"]["train"] == 10
    assert plan["units"][0]["steps"] == 2 * (3 + 2)


@pytest.mark.shared
def test_stray_values_in_real_masks_are_named(shared_data: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    site = '{ path = "segmentation_WBC/Dataset 2", source = "segmentation_wbc" }'
    text = STUDY.replace('root = "."', f'root = "{shared_data / "cells"}"')
    study.write_text(text.replace('east = { path = "east" }', f"east = {site}").replace('west = { path = "west" }', ""))
    plan = plan_study(study, measure=False)
    assert plan["sites"]["east"]["left_out"] == 0
    assert any("5 × mask with a few pixels of unknown values" in n and "034.png" in n for n in plan["notes"])
