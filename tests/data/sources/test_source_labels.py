"""Every label of every published set is mapped to a cell type, or left unmapped with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphfed.core.errors import ConfigError
from morphfed.data.ontology import COMMON, load_ontology
from morphfed.data.sources import SOURCES

# Written out from the published descriptions, a set a line; labels are separated by "|".
_WRITTEN = """
bccd: WBC|RBC|Platelets|NEUTROPHIL|LYMPHOCYTE|MONOCYTE|EOSINOPHIL|BASOPHIL
bccd_crops: neutrophil|lymphocyte|monocyte|eosinophil|basophil
bloodmnist: basophil|eosinophil|erythroblast|ig|lymphocyte|monocyte|neutrophil|platelet
bmc: ABE|ART|BAS|BLA|EBO|EOS|FGC|HAC|KSC|LYI|LYT|MMZ|MON|MYB|NGB|NGS|NIF|OTH|PEB|PLM|PMO
bodzas: Basophile|Eosinophile|Lymphoblast|Lymphocyte|Monocyte|Myeloblast|Neutrophile Band|Neutrophile Segment|Normoblast
cellavision: LY|MO|BNE|SNE|EO|BA|MMY|MY|PMY|ERB|BL|VLY|PLY|PC|SMU|PLATELET|IG|NEUTROPHIL
chula: SNE|SNE\t|BNE|Lymphocyte|Monocyte|Monocyte |Eosinophil|Eosinophill|Myeloblast|Myeolblast|Basophil|Metamyelocyte
chula: Myelocyte|Promyelocyte|Atypical lymphocyte|Atypical lymphocyte/Lymphocyte|LQI|Atypical
cnmc: all|hem
hehr: control|CBFB_MYH11|NPM1|PML_RARA|RUNX1_RUNX1T1
fed_isic2019: MEL|NV|BCC|AK|BKL|DF|VASC|SCC|UNK
ham10000: akiec|bcc|bkl|df|mel|nv|vasc
int20: 01-NORMO|04-LGL|05-MONO|08-LYMPH-neo|09-BASO|10-EOS|11-STAB|12-LYMPH-reaktiv|13-MYBL|14-LYMPH-typ|15-SEG|16-PLZ
int20: 17-Kernschatten|18-PMYEL|19-MYEL|20-Meta|21-Haarzelle|22-Atyp-PMYEL
isic2017: melanoma|seborrheic_keratosis|nevus
jhu: Lymphocyte|Blast, no lineage spec|Smudge cells|Segmented neutrophils|Monocyte|Promyelocyte|Erythroblast
jhu: Lymphocyte, variant|Myelocyte|Band neutrophils|Eosinophils|Metamyelocyte|Promonocyte|Giant thrombocyte|Plasma cells
jhu: Basophil|Arifact|Unidentified|Thrombocyte aggregation|Young Unidentified|Prolymphocyte|BL|LY|MO|SMU|SNE|VLY|GT
ku: band_neutrophil|basophil|blast|eosinophil|erythroblast|giant_platelet|lymphocyte|metamyelocyte|monocyte|myelocyte
ku: platelet_cluster|reactive_lymphocyte|segmented_neutrophil|Segmented Neutrophil
leukemiaattri: None|Myeloblast|Lymphoblast|Neutrophil|Atypical lymphocyte|Promonocyte|Monoblast|Lymphocyte|Myelocyte
leukemiaattri: Abnormal promyelocyte|Monocyte|Metamyelocyte|Eosinophil|Basophil
lisc: 1|2|3|4|5
lmu: NGS|LYT|MYO|MON|EOS|NGB|BAS|EBO|PMO|MYB|MOB|PMB|KSC|MMZ|LYA
mll23: myeloblast|neutrophil_segmented|lymphocyte|hairy_cell|monocyte|eosinophil|normoblast|promyelocyte_atypical
mll23: lymphocyte_large_granular|plasma_cell|smudge_cell|myelocyte|promyelocyte|neutrophil_band|basophil|metamyelocyte
mll23: lymphocyte_neoplastic|lymphocyte_reactive
pbc: BA|EO|ERB|LY|MO|PLATELET|IG|MMY|MY|PMY|BNE|SNE|NEUTROPHIL
raabin: Basophil|Eosinophil|Lymphocyte|Monocyte|Neutrophil|1|2|3|4|5
saml_prostate: prostate|no_prostate
segmentation_wbc: 1|2|3|4|5
wbcatt: BA|EO|LY|MO|BNE|SNE|NEUTROPHIL
wbcbench: BA|BL|BNE|EO|LY|MMY|MO|MY|PC|PLY|PMY|SNE|VLY
"""
PUBLISHED: dict[str, list[str]] = {}
for _line in _WRITTEN.strip().splitlines():
    _name, _, _labels = _line.partition(": ")
    PUBLISHED.setdefault(_name, []).extend(_labels.split("|"))

UNMAPPED = {
    **{("hehr", label): "" for label in PUBLISHED["hehr"]},
    ("fed_isic2019", "UNK"): "",
    ("leukemiaattri", "None"): "",
    ("saml_prostate", "no_prostate"): "",
    ("saml_prostate", "prostate"): "",
}

# The verified table of the harmonised ontology: node → the label of each set, where it has one.
HARMONISED = {
    "basophil": {"pbc": "BA", "lmu": "BAS", "mll23": "basophil", "jhu": "Basophil", "raabin": "Basophil", "bmc": "BAS"},
    "eosinophil": {"pbc": "EO", "lmu": "EOS", "jhu": "Eosinophils", "bodzas": "Eosinophile", "wbcbench": "EO"},
    "erythroblast": {"pbc": "ERB", "lmu": "EBO", "mll23": "normoblast", "bodzas": "Normoblast", "bmc": "EBO"},
    "blast": {"jhu": "Blast, no lineage spec", "ku": "blast", "bmc": "BLA", "wbcbench": "BL"},
    "myeloblast": {"lmu": "MYO", "mll23": "myeloblast", "bodzas": "Myeloblast"},
    "promyelocyte": {"pbc": "PMY", "lmu": "PMO", "mll23": "promyelocyte", "jhu": "Promyelocyte", "bmc": "PMO"},
    "myelocyte": {"pbc": "MY", "lmu": "MYB", "mll23": "myelocyte", "ku": "myelocyte", "wbcbench": "MY"},
    "metamyelocyte": {"pbc": "MMY", "lmu": "MMZ", "mll23": "metamyelocyte", "ku": "metamyelocyte", "bmc": "MMZ"},
    "neutrophil_banded": {"pbc": "BNE", "lmu": "NGB", "jhu": "Band neutrophils", "bodzas": "Neutrophile Band"},
    "neutrophil_segmented": {"pbc": "SNE", "lmu": "NGS", "ku": "segmented_neutrophil", "bodzas": "Neutrophile Segment"},
    "neutrophil": {
        "pbc": "NEUTROPHIL",
        "raabin": "Neutrophil",
        "bloodmnist": "neutrophil",
        "leukemiaattri": "Neutrophil",
    },
    "immature_granulocyte": {"pbc": "IG", "bloodmnist": "ig"},
    "monocyte": {"pbc": "MO", "lmu": "MON", "mll23": "monocyte", "jhu": "Monocyte", "bodzas": "Monocyte", "bmc": "MON"},
    "lymphocyte_typical": {"pbc": "LY", "lmu": "LYT", "mll23": "lymphocyte", "jhu": "Lymphocyte", "ku": "lymphocyte"},
    "lymphocyte_atypical": {"lmu": "LYA", "jhu": "Lymphocyte, variant", "wbcbench": "VLY"},
    "plasma_cell": {"mll23": "plasma_cell", "jhu": "Plasma cells", "bmc": "PLM", "wbcbench": "PC"},
    "smudge": {"lmu": "KSC", "mll23": "smudge_cell", "jhu": "Smudge cells", "bmc": "KSC"},
}


@pytest.mark.parametrize("source", PUBLISHED)
def test_every_published_label_is_mapped_or_unmapped_with_a_reason(source: str) -> None:
    ontology = load_ontology()
    for label in PUBLISHED[source]:
        node, why_not = ontology.map(label, source), ontology.unmapped(label, source)
        assert (node is None) == ((source, label) in UNMAPPED), (source, label, node)
        assert bool(why_not) == (node is None), f"{source}: '{label}' needs a node or a reason"


def test_every_source_has_a_table_and_every_table_is_written_out_above() -> None:
    generic = {"folders", "table", "image_masks"}  # these read anybody's labels
    tables = load_ontology().tables
    assert set(SOURCES.names()) - generic == set(PUBLISHED)
    assert set(tables) - {COMMON} == set(PUBLISHED)


def test_no_table_maps_a_label_that_nobody_has_published() -> None:
    more = {("jhu", "Artifact")}  # the correct spelling of 'Arifact'
    ontology = load_ontology()
    for source, table in ontology.tables.items():
        own = {*table.labels, *table.unmapped} if source != COMMON else set()
        published = {label.casefold().strip() for label in PUBLISHED.get(source, ())}
        if table.extends in PUBLISHED:
            published |= {label.casefold() for label in PUBLISHED[table.extends]}
        if source == "bccd":
            published |= {label.casefold() for label in PUBLISHED["bccd_crops"]}
        assert {label for label in own if label.casefold() not in published} == {x for s, x in more if s == source}


@pytest.mark.parametrize("node", HARMONISED)
def test_the_harmonised_map(node: str) -> None:
    ontology = load_ontology()
    assert {source: ontology.map(label, source) for source, label in HARMONISED[node].items()} == dict.fromkeys(
        HARMONISED[node], node
    )


def test_everyday_words_are_not_taken_for_cnmc_or_bloodmnist() -> None:
    ontology = load_ontology()
    assert ontology.table_for(["all", "other things"]) == COMMON
    assert ontology.table_for(PUBLISHED["bloodmnist"]) == COMMON
    assert ontology.map("all", COMMON) is None


def test_a_label_is_not_both_mapped_and_unmapped(tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text(
        'version = "9"\n[nodes]\na = { title = "a" }\n[sources.common]\ntitle = "c"\n[sources.x]\ntitle = "x"\n'
        'labels = { Q = "a" }\nunmapped = { q = "why" }\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="'q' is both mapped and unmapped"):
        load_ontology(file)


def test_the_page_about_sources_names_every_one() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/reference/sources.md").read_text(encoding="utf-8")
    assert [name for name in SOURCES.names() if f"| `{name}` |" not in page] == []
