"""What a site tells of a model's scores where its predictions stay: the numbers of its block.

The block of ``results.json`` (:mod:`morphfed.evaluation.site`, :mod:`morphfed.evaluation.cases`) without its words and
single images is a tree of numbers. What it may hold is declared here, place by place, for the egress gate; the words
are put back at the coordinator. Vectors over resamples go with it (:mod:`morphfed.evaluation.vectored`): from them come
means over seeds and sites, and differences between models, inside each resample, as if the predictions were there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from morphfed.evaluation import cases, site
from morphfed.evaluation.calibration import RISK_POINTS
from morphfed.evaluation.metrics import CALIBRATION_BINS, METRICS
from morphfed.evaluation.predictions import ClusterUnit

Places = dict[tuple[str, ...], int]
"""Where a number may stand → how many there may be; ``#`` is any place of a list."""

_LIMITS = ("value", "low", "high")

# ── classes ─────────────────────────────────────────────────────────────────────────────────────────────────────
_OF_CLASSES = ("n", "clusters", "metrics", "masked", "per_class", "confusion", "calibration", "risk_coverage")
_OPTIONAL = ("uncalibrated", "adapted", "unknown")


def places_of_classes(classes: Sequence[str], kinds: Sequence[str]) -> Places:
    """Where numbers of a block stand in a study of classes.

    Args:
        classes: of the study.
        kinds: cell types that are surely of none of the classes; only with ``evaluation.unknown``.
    """
    found: Places = {("n",): 1, ("clusters",): 1, ("masked",): 1}
    for table in ("metrics", "masked/metrics", "adapted/metrics"):
        found |= _intervals(tuple(table.split("/")), METRICS)
    found |= _intervals(("uncalibrated",), ("ece",)) | _intervals(("adapted",), ("difference",))
    for name in classes:
        numbers = ("n", "recall", "low", "high", "precision", "f1", "auroc")
        found |= {("per_class", name, number): 1 for number in numbers}
    found[("confusion", "#", "#")] = len(classes) ** 2
    found |= {("calibration", "#", number): CALIBRATION_BINS for number in ("confidence", "accuracy", "n")}
    for curve in (("risk_coverage",), ("unknown", "risk_coverage")):
        found |= {(*curve, "#", number): RISK_POINTS for number in ("coverage", "risk")}
    found |= _intervals(("unknown",), ("auroc",))
    found |= {("unknown", number): 1 for number in ("n", "known_accepted", "unknown_rejected")}
    return found | {("unknown", "kinds", kind, number): 1 for kind in kinds for number in ("n", "rejected")}


def tell_classes(block: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a block, without words and single images."""
    told = {key: block[key] for key in (*_OF_CLASSES, *_OPTIONAL) if key in block}
    if adapted := told.get("adapted"):
        difference = {key: adapted["difference"][key] for key in _LIMITS}
        told["adapted"] = {"metrics": adapted["metrics"], "difference": difference}
    return told


def retell_classes(
    told: Mapping[str, Any],
    classes: Sequence[str],
    *,
    role: site.Role,
    cluster_unit: ClusterUnit,
    how: str,
    metric: str,
) -> dict[str, Any]:
    """The block again, its words put back; it lists no mistakes.

    Args:
        told: of :func:`tell_classes`, of the declared places only.
        classes: of the study.
        role, cluster_unit: of the site.
        how: what was adapted, as the study names it.
        metric: of the difference that adaptation makes.

    Raises:
        KeyError, TypeError, ValueError: a number is missing, or does not fit the others.
    """
    matrix = np.array(told["confusion"], dtype=np.float64)
    if matrix.shape != (len(classes), len(classes)) or int(matrix.sum()) != told["n"]:
        raise ValueError("its confusion table does not fit its number of images")
    shown = matrix.sum(axis=1) > 0
    block: dict[str, Any] = {
        "role": role,
        "n": told["n"],
        "clusters": told["clusters"],
        "cluster_unit": cluster_unit,
        "classes_present": [name for name, there in zip(classes, shown, strict=True) if there],
        "metrics": _ordered(told["metrics"], METRICS),
        "masked": None,
        "per_class": {name: dict(told["per_class"][name]) for name in classes},
        "confusion": told["confusion"],
        "calibration": told["calibration"],
        "risk_coverage": told["risk_coverage"],
        "errors": [],
        "notes": site.notes_of_classes(classes, matrix, int(told["clusters"]), cluster_unit),
    }
    if told["masked"] is not None:
        block["masked"] = {"metrics": _ordered(told["masked"]["metrics"], METRICS)}
    block |= {key: told[key] for key in ("uncalibrated", "unknown") if key in told}
    if adapted := told.get("adapted"):
        metrics, difference = _ordered(adapted["metrics"], METRICS), {"metric": metric, **adapted["difference"]}
        block["adapted"] = {"how": how, "metrics": metrics, "difference": difference}
    return block


# ── masks ───────────────────────────────────────────────────────────────────────────────────────────────────────
def places_of_masks(structures: Sequence[str]) -> Places:
    """Where numbers of a block stand in a study of masks."""
    found: Places = {("n",): 1, ("clusters",): 1} | _intervals(("metrics",), cases.METRICS)
    for name in structures:
        found |= _intervals(("structures", name), cases.METRICS)
        found |= {("structures", name, number): 1 for number in ("n", "missed", "false")}
    return found


def tell_masks(block: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a block, without words and pictures."""
    return {key: block[key] for key in ("n", "clusters", "metrics", "structures")}


def retell_masks(
    told: Mapping[str, Any], structures: Sequence[str], *, role: site.Role, cluster_unit: ClusterUnit
) -> dict[str, Any]:
    """The block again, its words put back; it has no pictures.

    Raises:
        KeyError, TypeError, ValueError: a number is missing, or is none.
    """
    shown = {
        name: {
            **_ordered(told["structures"][name], cases.METRICS),
            **{key: int(told["structures"][name][key]) for key in ("n", "missed", "false")},
        }
        for name in structures
    }
    return {
        "role": role,
        "n": told["n"],
        "clusters": told["clusters"],
        "cluster_unit": cluster_unit,
        "metrics": _ordered(told["metrics"], cases.METRICS),
        "structures": shown,
        "notes": cases.notes_of_cases(int(told["n"]), shown, int(told["clusters"]), cluster_unit),
    }


def _intervals(above: tuple[str, ...], names: Sequence[str]) -> Places:
    return {(*above, name, limit): 1 for name in names for limit in _LIMITS}


def _ordered(table: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {name: {limit: table[name][limit] for limit in _LIMITS} for name in names}
