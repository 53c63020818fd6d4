"""The tree, the tables of datasets' own names, and the rules for a study's classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphfed.core.errors import ConfigError
from morphfed.data.ontology import fold, load_ontology

ELEVEN = (
    *("basophil", "eosinophil", "erythroblast", "myeloblast", "promyelocyte", "myelocyte", "metamyelocyte"),
    *("neutrophil_banded", "neutrophil_segmented", "monocyte", "lymphocyte_typical"),
)

# Written out from the published descriptions, cell by cell; counts of classes as published.
_WRITTEN = """
lmu: NGS, LYT, MYO, MON, EOS, NGB, BAS, EBO, PMO, MYB, MOB, PMB, KSC, MMZ, LYA
bmc: ABE, ART, BAS, BLA, EBO, EOS, FGC, HAC, KSC, LYI, LYT, MMZ, MON, MYB, NGB, NGS, NIF, OTH, PEB, PLM, PMO
wbcbench: BA, BL, BNE, EO, LY, MMY, MO, MY, PC, PLY, PMY, SNE, VLY
pbc: BA, EO, ERB, LY, MO, PLATELET, IG, MMY, MY, PMY, BNE, SNE, NEUTROPHIL
ku: band_neutrophil, basophil, blast, eosinophil, erythroblast, giant_platelet, lymphocyte, metamyelocyte,
    monocyte, myelocyte, platelet_cluster, reactive_lymphocyte, segmented_neutrophil
bodzas: Basophile, Eosinophile, Lymphoblast, Lymphocyte, Monocyte, Myeloblast, Neutrophile Band,
    Neutrophile Segment, Normoblast
segmentation_wbc: 1, 2, 3, 4, 5
raabin: Basophil, Eosinophil, Lymphocyte, Monocyte, Neutrophil
bccd: basophil, eosinophil, lymphocyte, monocyte, neutrophil, WBC, RBC, Platelets
mll23: myeloblast, neutrophil_segmented, lymphocyte, hairy_cell, monocyte, eosinophil, normoblast,
    promyelocyte_atypical, lymphocyte_large_granular, plasma_cell, smudge_cell, myelocyte, promyelocyte,
    neutrophil_band, basophil, metamyelocyte, lymphocyte_neoplastic, lymphocyte_reactive
"""
PUBLISHED = {
    name: labels.split(", ")
    for name, _, labels in (line.partition(": ") for line in _WRITTEN.replace(",\n    ", ", ").strip().splitlines())
}


@pytest.mark.parametrize("source", PUBLISHED)
def test_every_published_label_maps(source: str) -> None:
    ontology = load_ontology()
    assert [label for label in PUBLISHED[source] if ontology.map(label, source) is None] == []


@pytest.mark.parametrize(
    ("source", "label", "node"),
    [
        ("pbc", "MY", "myelocyte"),
        ("pbc", "MMY", "metamyelocyte"),
        ("pbc", "PMY", "promyelocyte"),
        ("pbc", "NEUTROPHIL", "neutrophil"),
        ("pbc", "IG", "immature_granulocyte"),
        ("lmu", "MMZ", "metamyelocyte"),
        ("lmu", "MOB", "monoblast"),
        ("lmu", "PMB", "promyelocyte_atypical"),
        ("bmc", "HAC", "hairy_cell"),
        ("jhu", "Blast, no lineage spec", "blast"),
        ("jhu", "Arifact", "artefact"),
        ("jhu", "Lymphocyte, variant", "lymphocyte_atypical"),
        ("chula", "SNE\t", "neutrophil_segmented"),
        ("chula", "Monocyte ", "monocyte"),
        ("segmentation_wbc", "1", "neutrophil"),
        ("segmentation_wbc", "5", "basophil"),
        ("bccd_crops", "eosinophil", "eosinophil"),
        ("folders", "Band Neutrophils", "neutrophil_banded"),
        ("somebody_elses_adapter", "NRBC", "erythroblast"),
    ],
)
def test_maps_after_the_published_descriptions(source: str, label: str, node: str) -> None:
    assert load_ontology().map(label, source) == node


def test_what_is_not_known_maps_to_none_and_gets_a_suggestion() -> None:
    ontology = load_ontology()
    assert ontology.map("lymphocite", "folders") is None
    assert ontology.nearest("lymphocite", "folders") == "lymphocyte"
    assert ontology.nearest("xyzzy", "folders") is None
    assert ontology.map("LYT", "pbc") is None  # one source's codes are not another's


def test_contested_choices_have_a_reason() -> None:
    ontology = load_ontology()
    for source, label in (("lmu", "MOB"), ("lmu", "PMB"), ("mll23", "hairy_cell"), ("raabin", "Neutrophil")):
        assert ontology.why(label, source)
    assert ontology.why("BA", "pbc") == ""


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Plasma-Cells", "plasma_cell"),
        ("  EOSINOPHIL ", "eosinophil"),
        ("Band_neutrophils", "band neutrophil"),
    ],
)
def test_fold_ignores_case_separators_and_plural(a: str, b: str) -> None:
    assert fold(a) == fold(b)


def test_a_node_belongs_to_its_nearest_class_above_and_never_below() -> None:
    ontology = load_ontology()
    assert ontology.to_class("neutrophil_banded", ["neutrophil", "basophil"]) == "neutrophil"
    assert ontology.to_class("neutrophil", ["neutrophil_segmented", "basophil"]) is None
    assert ontology.to_class("hairy_cell", ["leukocyte", "platelet"]) == "leukocyte"
    assert ontology.to_class("platelet", ["leukocyte", "erythroblast"]) is None
    assert ontology.ancestors("neutrophil_banded") == ("neutrophil", "granulocyte", "leukocyte")
    assert ontology.children("immature_granulocyte") == ("promyelocyte", "myelocyte", "metamyelocyte")


def test_the_eleven_of_the_challenge_are_a_valid_study() -> None:
    assert load_ontology().resolve_classes(ELEVEN) == ELEVEN


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["lymphocite", "monocyte"], "Did you mean 'lymphocyte'"),
        (["segmented", "monocyte"], "Did you mean 'neutrophil_segmented'"),
        (["neutrophil", "neutrophil_banded"], "every neutrophil_banded is a neutrophil"),
        (["monocyte", "monocyte"], "twice"),
        (["monocyte"], "two or more"),
        ([], "two or more"),
    ],
)
def test_unusable_classes_are_refused(classes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_ontology().resolve_classes(classes)


@pytest.mark.parametrize(
    ("labels", "table"),
    [
        (["BAS", "LYT", "PMB"], "lmu"),
        (["Neutrophil", "Basophil"], "common"),
        (["1", "2", "3"], "common"),
        (PUBLISHED["mll23"], "mll23"),
        (PUBLISHED["ku"], "ku"),
        (PUBLISHED["bmc"], "bmc"),
        (["cats", "dogs"], "common"),
    ],
)
def test_a_folder_is_read_in_the_table_that_knows_its_names(labels: list[str], table: str) -> None:
    assert load_ontology().table_for(labels) == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[nodes]\na = { title = "a", parent = "b" }\n', "parent 'b' of 'a' does not exist"),
        ('[nodes]\na = { title = "a", parent = "b" }\nb = { title = "b", parent = "a" }\n', "above itself"),
        ('[nodes]\na = { title = "a" }\n[sources.x]\ntitle = "x"\nlabels = { q = "c" }\n', "maps to 'c'"),
        (
            '[nodes]\na = { title = "a" }\nb = { title = "b" }\n[sources.x]\ntitle = "x"\n'
            'labels = { "q 1" = "a", q_1 = "b" }\n',
            "both",
        ),
        ('[nodes]\na = { title = "a" }\n[sources.x]\ntitle = "x"\nextends = "y"\n', "extends 'y'"),
        ('[nodes]\na = { titel = "a" }\n', "unknown key"),
    ],
)
def test_a_broken_ontology_names_its_fault(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "o.toml"
    file.write_text(f'version = "9"\n{text}\n[sources.common]\ntitle = "everyday"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_ontology(file)


def test_a_coarser_name_is_no_stranger() -> None:
    o = load_ontology()
    classes = ("neutrophil_banded", "neutrophil_segmented", "lymphocyte")
    assert o.classes_below("neutrophil", classes) == ("neutrophil_banded", "neutrophil_segmented")
    assert not o.is_outside("neutrophil", classes)
    assert not o.is_outside("neutrophil_banded", classes)
    assert o.is_outside("platelet", classes)
    assert o.is_outside("monocyte", classes)
    assert not o.is_outside("leukocyte", classes)
    assert not o.is_outside("unknown", classes)  # nobody could say what it is
