"""examples/morphfed-h1.toml and -h2.toml: their classes, their counts, and a plan on a tree with the real names."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from morphfed.cli.plan import run as plan_command
from morphfed.data.ontology import load_ontology
from morphfed.experiment.plan import plan_study
from morphfed.experiment.study import Study, load_study

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OVERRIDES = ["model.weights=none", "compute.device=cpu"]

# Images of each label, as published.
COUNTS = {
    "pbc": {
        **{"BA": 1218, "EO": 3117, "ERB": 1551, "IG": 151, "MMY": 1015, "MY": 1137, "PMY": 592, "LY": 1214, "MO": 1420},
        **{"BNE": 1633, "SNE": 1646, "NEUTROPHIL": 50, "PLATELET": 2348},
    },
    "lmu": {
        **{"NGS": 8484, "LYT": 3937, "MYO": 3268, "MON": 1789, "EOS": 424, "NGB": 109, "BAS": 79, "EBO": 78},
        **{"PMO": 70, "MYB": 42, "MOB": 26, "PMB": 18, "KSC": 15, "MMZ": 15, "LYA": 11},
    },
    "mll23": {
        **{"myeloblast": 8606, "neutrophil_segmented": 7170, "lymphocyte": 5532, "hairy_cell": 3265, "monocyte": 2510},
        **{"eosinophil": 2448, "normoblast": 2071, "promyelocyte_atypical": 2033, "lymphocyte_large_granular": 1849},
        **{"plasma_cell": 1658, "smudge_cell": 988, "myelocyte": 747, "promyelocyte": 745, "neutrophil_band": 687},
        **{"basophil": 616, "metamyelocyte": 483, "lymphocyte_neoplastic": 180, "lymphocyte_reactive": 33},
    },
    "jhu": {
        **{"Lymphocyte": 3435, "Blast, no lineage spec": 3310, "Smudge cells": 2931, "Segmented neutrophils": 2092},
        **{"Monocyte": 1319, "Promyelocyte": 688, "Erythroblast": 521, "Lymphocyte, variant": 471, "Myelocyte": 181},
        **{"Band neutrophils": 171, "Eosinophils": 108, "Metamyelocyte": 78, "Promonocyte": 71},
        **{"Giant thrombocyte": 66, "Plasma cells": 58, "Basophil": 53, "Arifact": 25, "Unidentified": 24},
        **{"Thrombocyte aggregation": 22, "Young Unidentified": 7, "Prolymphocyte": 1},
    },
}
PUBLISHED_TOTALS = {"pbc": 17_092, "lmu": 18_365, "mll23": 41_621, "jhu": 15_632}


def selected(study: Study, site: str) -> dict[str, dict[str, int]]:
    """Class → the source's labels that belong to it → published images."""
    config, ontology = study.sites[site], load_ontology()
    assert config.source is not None
    found: dict[str, dict[str, int]] = {}
    for label, n in COUNTS[config.source].items():
        node = ontology.map(label, config.source)
        target = ontology.to_class(node, study.classes) if node else None
        if target and label not in config.options.get("leave_out_labels", []):
            found.setdefault(target, {})[label] = n
    return found


def total(found: dict[str, dict[str, int]]) -> int:
    return sum(n for labels in found.values() for n in labels.values())


def test_the_published_counts_add_up() -> None:
    assert {name: sum(labels.values()) for name, labels in COUNTS.items()} == PUBLISHED_TOTALS


@pytest.mark.parametrize("name", ["morphfed-h1", "morphfed-h2"])
def test_eleven_classes_one_label_each_and_the_held_out_set_of_the_paper(name: str) -> None:
    study, arms = load_study(EXAMPLES / f"{name}.toml")
    assert len(study.classes) == 11
    for site in study.training_sites:
        found = selected(study, site)
        assert set(found) == set(study.classes)
        assert all(len(labels) == 1 for labels in found.values()), f"{site}: a class joins several labels"
    barcelona = selected(study, "barcelona")
    assert (len(barcelona), total(barcelona)) == (9, 12_992)
    assert list(arms) == ["local", "centralised", "fedavg", "fedmedian", "fedprox", "fedadam"]
    assert (study.model.name, study.federation.rounds, study.train.loss.kind) == ("resnet34", 5, "focal")
    assert study.data.field_um == 25.0


def test_the_counts_that_the_studies_state() -> None:
    h1, _ = load_study(EXAMPLES / "morphfed-h1.toml")
    h2, _ = load_study(EXAMPLES / "morphfed-h2.toml")
    assert [total(selected(h1, s)) for s in h1.training_sites] == [18_228, 11_906]
    assert [total(selected(h2, s)) for s in h2.training_sites] == [18_295, 31_615]
    for study, file in ((h1, "morphfed-h1.toml"), (h2, "morphfed-h2.toml")):
        text = (EXAMPLES / file).read_text(encoding="utf-8")
        assert all(f"{total(selected(study, site)):,} " in text for site in study.sites)


def paint(file: Path, size: tuple[int, int], shade: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256, shade // 256, 99)).save(file)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sets with their own names and sizes: four images a label, two of Barcelona's basophils on other film."""
    root = tmp_path_factory.mktemp("cells")
    shade = 0
    for source, labels in COUNTS.items():
        for number, label in enumerate(labels):
            for i in range(4):
                shade += 1
                if source == "pbc":
                    folder = {"BA": "basophil", "EO": "eosinophil", "ERB": "erythroblast", "LY": "lymphocyte"}
                    folder |= {"MO": "monocyte", "PLATELET": "platelet", "BNE": "neutrophil", "SNE": "neutrophil"}
                    folder |= {"NEUTROPHIL": "neutrophil"}
                    place = f"PBC_dataset_normal_DIB/{folder.get(label, 'ig')}/{label}_{i}.jpg"
                    paint(root / place, (366, 369) if label == "BA" and i < 2 else (360, 363), shade)
                elif source == "lmu":
                    paint(root / f"AML-Cytomorphology_LMU/{label}/{label}_{i:04d}.tiff", (400, 400), shade)
                elif source == "mll23":
                    paint(root / f"MLL23/{label}/{label}/{label}_{i:04d}.TIF", (288, 288), shade)
                else:
                    place = f"DeepAPL/Data/All/Patient_{i:02d}/Signed slides/{label}/X_{number}{i}.jpg"
                    paint(root / place, (360, 363), shade)
    return root


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("morphfed-h1", {"munich": 44, "baltimore": 44, "barcelona": 36}),
        ("morphfed-h2", {"lmu": 44, "mll": 44, "barcelona": 36}),
    ],
)
def test_plan_on_a_tree_with_the_real_names(name: str, sizes: dict[str, int], cells: Path) -> None:
    plan = plan_study(EXAMPLES / f"{name}.toml", [*OVERRIDES, f"data.root={cells}", "arms={fedavg={}}"], measure=False)
    counted = {site: sum(row[part] for part in ("train", "validation", "test")) for site, row in plan["sites"].items()}
    assert counted == sizes
    assert plan["sites"]["barcelona"]["train"] == 0
    notes = "\n".join(plan["notes"])
    assert "um_per_px 0.0725 from the source" in notes
    assert "barcelona: um_per_px 0.1000 from the source" in notes
    if name == "morphfed-h1":
        assert "baltimore: patient ids for 80 of 80 images (4 patients)" in notes
        assert "munich: 4 files skipped: label 'MOB' left out as asked for" in notes
    else:
        assert "mll: um_per_px 0.0868 from the source" in notes
        assert "barcelona: 4 files skipped: label 'ERB' left out as asked for" in notes


def test_the_variant_without_the_other_acquisition(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*OVERRIDES, f"data.root={cells}", "sites.barcelona.options.leave_out_px=366x369"]
    assert plan_command(EXAMPLES / "morphfed-h2.toml", *overrides, quick=True) == 0
    said = capsys.readouterr().out
    assert "barcelona: 2 files skipped: 366×369 pixels, left out as asked for" in said
    assert "barcelona: 4 files skipped: label 'ERB' left out as asked for" in said
    assert [line.split() for line in said.splitlines() if line.strip().startswith("barcelona  held_out")] == [
        ["barcelona", "held_out", "train", "0", "validation", "0", "test", "34", "left", "out", "12"]
    ]
