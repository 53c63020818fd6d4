"""Scores that leave a site in place of predictions: what is declared, what is told, and what a coordinator reads of it.

The site judges its own test part with the code of a study on one machine; :mod:`morphfed.evaluation.released` says what
of that may leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from morphfed.core.files import read_json, write_json
from morphfed.core.types import Spec, Tensors
from morphfed.evaluation.scores import UnitPredictions
from morphfed.evaluation.vectored import Vectored
from morphfed.experiment.tasks import study_task, telling_task
from morphfed.experiment.tasks.base import Judgement
from morphfed.models import weights
from morphfed.privacy.egress import Findings

if TYPE_CHECKING:
    from morphfed.evaluation.predictions import ClusterUnit, Judged
    from morphfed.evaluation.site import Role
    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.study import Study
    from morphfed.experiment.units import Unit

SCORES = "scores"
HISTORY = "history"
JUDGED = "judged"
"""Folder of a unit in which the coordinator keeps what the sites told of it."""

_FOUND, _WITH, _WITHOUT = "found", "with", "without"


def releases(study: Study) -> bool:
    """Whether sites tell the scores of their test parts."""
    return study.evaluation.release == "scores"


def declared_scores(study: Study) -> Findings:
    """What a site may tell of one model on its test part: numbers of its block, and a vector a metric and version."""
    task, evaluation = telling_task(study), study.evaluation
    asked = {"views": evaluation.views != 1, "calibrate": evaluation.calibrate != "none"}
    asked["adapt"] = evaluation.adapt != "none"
    versions = [_FOUND]
    versions += [_version(name, how) for name in task.options if asked[name] for how in (_WITH, _WITHOUT)]
    vector = Spec((1 + evaluation.resamples,), "float64")
    rows = {_row(version, metric): vector for version in versions for metric in task.every_metric(study)}
    return Findings(task.places(study), rows, "the report: scores of one model on this site's test images")


def declared_history(study: Study, rounds: int) -> Findings:
    """What a site may tell of a model that it trained alone: its loss and validation means round by round."""
    places: dict[tuple[str, ...], int] = {(key,): 1 for key in _COUNTERS}
    places |= {("rounds", "#", key): rounds for key in ("round", "seconds", "loss", "steps")}
    places |= {("rounds", "#", "validation", name): rounds for name in study_task(study).task.validation}
    places |= {("calibration", key): 1 for key in ("temperature", "images", "loss_before", "loss_after")}
    places |= {("rejection", key): 1 for key in ("threshold", "accepted", "images")}
    return Findings(places, {}, "the report: how a model went that was trained here alone and stays here")


_COUNTERS = ("best_round", "steps", "images_seen", "seconds", "parameters")


@dataclass(frozen=True)
class Told:
    """Numbers and vectors of one model at one site.

    Attributes:
        tree: numbers of the block; {}: the site has no test images, or the method no model for it.
        rows: vectors by version and metric.
    """

    tree: dict[str, Any]
    rows: Tensors

    def save(self, folder: Path, site: str) -> None:
        """Keep it; the JSON file is written last."""
        if self.rows:
            weights.save(folder / f"{site}.safetensors", self.rows)
        write_json(folder / f"{site}.json", self.tree)

    @classmethod
    def load(cls, folder: Path, site: str) -> Told | None:
        """Inverse of :meth:`save`; None: the site has not told anything yet."""
        path = folder / f"{site}.json"
        if not path.is_file():
            return None
        tree = read_json(path)
        return cls(tree, weights.load(folder / f"{site}.safetensors") if tree else {})


# ── at the site ─────────────────────────────────────────────────────────────────────────────────────────────────
def tell_scores(
    unit: Unit, site: str, role: Role, told: Mapping[str, Any], prepared: Prepared, study: Study, run: Path
) -> Told:
    """Judge what the unit predicted here.

    Args:
        unit, site, role: which model, where.
        told: of the unit's entry what judging needs: algorithm, calibration, rejection.
        prepared, study: with this site alone.
        run: folder in which the unit's predictions lie.
    """
    task = telling_task(study)
    # Pictures of mistakes would only be thrown away.
    plain = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"images": False})})
    entry = dict(told)
    said = task.judge(unit, entry, {site: role}, prepared, plain, run)
    rows: Tensors = {}
    for version, judged in _versions(said).items():
        if site not in judged:
            continue
        here = UnitPredictions(
            unit.arm,
            unit.model,
            str(entry["algorithm"]),
            unit.seed,
            unit.trained_on,
            {site: judged[site]},
            {site: role},
        )
        metrics = task.every_metric(study)
        scores = task.scores([here], metrics=metrics, resamples=study.evaluation.resamples)
        for metric in metrics:
            vector = scores.vector(unit.model, site, metric, unit.seed)
            assert vector is not None
            rows[_row(version, metric)] = torch.from_numpy(vector.copy())  # two metrics may share one
    return Told(task.tell(entry["sites"][site]), rows)


def tell_history(entry: Mapping[str, Any], site: str) -> dict[str, Any]:
    """The numbers of ``unit.json`` of a model that was trained at one site alone."""
    rounds = []
    for line in entry["history"]:
        here = line["sites"][site]
        told = {"round": line["round"], "seconds": line["seconds"], "loss": here["loss"], "steps": here["steps"]}
        rounds.append({**told, "validation": here.get("validation", {})})
    found = {key: entry[key] for key in _COUNTERS}
    return {**found, "rounds": rounds, **{key: entry[key] for key in ("calibration", "rejection") if key in entry}}


# ── at the coordinator ──────────────────────────────────────────────────────────────────────────────────────────
def retell_history(told: Mapping[str, Any], site: str) -> dict[str, Any]:
    """What ``unit.json`` says of the numbers of :func:`tell_history`.

    Raises:
        KeyError, TypeError, ValueError: a number is missing, or is none.
    """
    history = []
    for line in told["rounds"]:
        here = {"loss": line["loss"], "steps": line["steps"]}
        here |= {"validation": line["validation"]} if line["validation"] else {}
        history.append({"round": int(line["round"]), "seconds": line["seconds"], "sites": {site: here}})
    found = {key: told[key] for key in _COUNTERS}
    return {**found, "history": history, **{key: told[key] for key in ("calibration", "rejection") if key in told}}


def judge_told(
    unit: Unit, entry: dict[str, Any], blocks: Mapping[str, Mapping[str, Any]], study: Study, run: Path
) -> Judgement:
    """Put ``sites`` into a unit's entry from what the sites told, and return the vectors.

    Args:
        unit, entry: of ``unit.json``.
        blocks: site → its ``data.sites`` block, for every site that told one, in the study's order.
        study: of the federation.
        run: its folder.
    """
    entry["sites"] = {}
    found: dict[str, dict[str, Judged]] = {}
    for site, block in blocks.items():
        told = Told.load(unit.folder(run) / JUDGED, site)
        if told is None or not told.tree:
            continue
        unit_of: ClusterUnit = block["cluster_unit"]
        shown = telling_task(study).retell(told.tree, study, role=block["role"], cluster_unit=unit_of)
        entry["sites"][site] = shown
        for version, vectors in _by_version(told.rows).items():
            found.setdefault(version, {})[site] = Vectored(
                shown["n"],
                shown["clusters"],
                unit_of,
                vectors,
                classes=study.classes,
                present=tuple(shown.get("classes_present", ())),
                structures=study.structures,
            )
    pairs = {
        name: tuple(found.get(_version(name, how), {}) for how in (_WITH, _WITHOUT))
        for name in study_task(study).options
    }
    versions = {name: pair for name, pair in pairs.items() if all(pair)}
    return Judgement(found.get(_FOUND, {}), cast("Any", versions))


def objection(findings: Findings, told: Told, study: Study) -> str:
    """Why what a site told cannot be used; empty: it can."""
    if why := findings.objection(told.tree, told.rows):
        return f"it tells {why}, which is not declared"
    if not told.tree:
        return ""
    try:
        telling_task(study).retell(told.tree, study, role="train", cluster_unit="image")
    except (KeyError, TypeError, ValueError) as cause:
        return f"its scores do not fit together: {cause}"
    missing = {_row(_FOUND, metric) for metric in telling_task(study).every_metric(study)} - set(told.rows)
    return f"its scores lack {min(missing)}" if missing else ""


def _versions(said: Judgement) -> dict[str, Mapping[str, Judged]]:
    found = {_FOUND: said.found}
    for name, (treated, untreated) in said.versions.items():
        found |= {_version(name, _WITH): treated, _version(name, _WITHOUT): untreated}
    return found


def _by_version(rows: Tensors) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in rows.items():
        version, _, metric = name.partition("|")
        found.setdefault(version, {})[metric] = tensor.numpy()
    return found


def _version(option: str, how: str) -> str:
    return f"{option} {how}"


def _row(version: str, metric: str) -> str:
    return f"{version}|{metric}"
