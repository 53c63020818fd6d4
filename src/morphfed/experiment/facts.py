"""What a site tells of its data before round 1 where its images stay: the numbers of its ``data.sites`` block.

Words that come from a site's own files stay there: its labels, file names and patients. A word of a fixed list (how the
scale came about, which public set's layout it is) is told as the number 1 at its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from morphfed.data.bags.drafting import SOURCE as BAGS
from morphfed.data.manifest import SPLITS
from morphfed.data.ontology import load_ontology
from morphfed.data.sources import SOURCES
from morphfed.experiment.coarse import coarser_labels
from morphfed.privacy.egress import Findings

if TYPE_CHECKING:
    from morphfed.experiment.study import Study

FACTS = "facts"
PURPOSE = "the report: how many images there are of what, and their scale and colour"

_LAYOUTS = (*SOURCES.names(), BAGS)
_SINGLE = ("n", "patients", "lesions", "um_per_px", "nucleus_px", "crop_px")
_WORDS = {
    "cluster_unit": ("patient", "lesion", "image", "bag"),
    "scale_from": ("given", "nucleus", "none"),
}
_OWNERS = ("patient", "lesion", "slide")
_LEAK = ("owners", "seen", "images")
_BAGS = ("instances", "dim")
_JUDGED = ("validation", "test")


def declared(study: Study) -> Findings:
    """What a site may tell of its data."""
    places: dict[tuple[str, ...], int] = {(key,): 1 for key in (*_SINGLE, "left_out", "colour", "image_px")}
    words = {**_WORDS, "source": _LAYOUTS}
    places |= {(key, word): 1 for key, known in words.items() for word in known}
    places |= {("leaks", kind, part, number): 1 for kind in _OWNERS for part in _JUDGED for number in _LEAK}
    places |= {("image_px", "#"): 2, ("colour", "mean", "#"): 3, ("colour", "sd", "#"): 3}
    for table, names in (("classes", study.classes), ("structures", study.structures)):
        places |= {(table, name, part): 1 for name in names for part in SPLITS}
    if study.structures:
        places |= {("parts", part): 1 for part in SPLITS}
    if study.task == "mil":
        places |= {("bags", key): 1 for key in _BAGS} | {("bags", "quartiles", "#"): 5}
    for node, below in coarser_labels(study).items():
        places |= {("coarse", node, "n"): 1} | {("coarse", node, "unseen", name): 1 for name in below}
    if study.evaluation.unknown:
        ontology = load_ontology()
        places |= {("unknown", node): 1 for node in ontology.nodes if ontology.is_outside(node, study.classes)}
    return Findings(places, {}, PURPOSE)


def tell(block: Mapping[str, Any], colour: Mapping[str, Any] | None) -> dict[str, Any]:
    """The numbers of a site's block.

    Args:
        block: of ``Prepared.info``.
        colour: of its pictures.
    """
    told: dict[str, Any] = {key: block[key] for key in (*_SINGLE, "image_px") if key in block}
    told["colour"] = dict(colour) if colour else None
    told["left_out"] = sum(int(entry["n"]) for entry in block["left_out"])
    told |= {key: {block[key]: 1} for key in _WORDS}
    told["source"] = {name: 1 for name in block["source"].split("+") if name in _LAYOUTS}
    told |= {key: block[key] for key in ("classes", "structures", "parts", "unknown") if key in block}
    for leak in block.get("leaks", ()):
        table = told.setdefault("leaks", {}).setdefault(leak["kind"], {})
        table[leak["part"]] = {number: leak[number] for number in _LEAK}
    if "bags" in block:  # the encoder is the study's: another one was refused
        told["bags"] = {key: block["bags"][key] for key in (*_BAGS, "quartiles")}
    if block.get("coarse"):
        told["coarse"] = {
            entry["label"]: {"n": entry["n"], "unseen": dict.fromkeys(entry["unseen"], 1)} for entry in block["coarse"]
        }
    return told


def retell(told: Mapping[str, Any], study: Study, *, role: str) -> dict[str, Any]:
    """The site's ``data.sites`` block, its words put back.

    Args:
        told: of :func:`tell`, of the declared places only.
        study: of the federation.
        role: of the site.

    Raises:
        KeyError, TypeError, ValueError: a number is missing, or is none.
    """
    words = {key: next(iter(told[key])) for key in _WORDS}
    block: dict[str, Any] = {
        "role": role,
        "source": "+".join(sorted(told["source"])) or "manifest",
        "n": int(told["n"]),
        "patients": told["patients"],
        **({"lesions": told["lesions"]} if "lesions" in told else {}),
        "cluster_unit": words["cluster_unit"],
    }
    for table, names in (("classes", study.classes), ("structures", study.structures)):
        if names:
            block[table] = {name: {part: int(told[table][name][part]) for part in SPLITS} for name in names}
    if "parts" in told:
        block["parts"] = {part: int(told["parts"][part]) for part in SPLITS}
    if study.task == "mil":
        block["bags"] = {key: told["bags"][key] for key in ("instances", "quartiles", "dim")}
        block["bags"]["encoder"] = study.data.encoder
    if "leaks" in told:
        block["leaks"] = [
            {"kind": kind, **numbers, "part": part}
            for kind, parts in told["leaks"].items()
            for part, numbers in parts.items()
        ]
    hidden = {"source_label": "(its own labels)", "why": "counted at the site; which labels they carry stays there"}
    block["left_out"] = [{**hidden, "n": int(told["left_out"])}] if told["left_out"] else []
    if study.data.coarse == "parent":
        block["coarse"] = [_coarse(node, told.get("coarse", {}).get(node), study) for node in told.get("coarse", {})]
    if study.evaluation.unknown:
        block["unknown"] = dict(told.get("unknown", {}))
    block |= {"um_per_px": told["um_per_px"], "scale_from": words["scale_from"], "nucleus_px": told["nucleus_px"]}
    return block | {key: told[key] for key in ("crop_px", "image_px", "colour")} | {"samples": []}


def _coarse(node: str, entry: Any, study: Study) -> dict[str, Any]:
    others = load_ontology().uncovered(node, study.classes)
    below = coarser_labels(study)[node]
    unseen = [name for name in below if name in entry["unseen"]]
    return {"label": node, "n": int(entry["n"]), "classes": list(below), "others": list(others), "unseen": unseen}
