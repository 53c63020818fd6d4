"""results.json: every finished unit judged at every site, summarised, compared (docs/reference/results.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphfed.core.files import read_json
from morphfed.core.progress import Event, Reporter, silent
from morphfed.evaluation.compare import (
    Scores,
    UnitPredictions,
    compare_pairs,
    cross_site_matrix,
    default_pairs,
    summarise,
)
from morphfed.evaluation.options import gains
from morphfed.evaluation.retrogress import summarise_retrogress
from morphfed.evaluation.site import Role
from morphfed.experiment.environment import describe
from morphfed.experiment.tasks import StudyTask, study_task
from morphfed.experiment.tasks.base import Judgement
from morphfed.experiment.train_unit import is_done, read_unit

if TYPE_CHECKING:
    from morphfed.evaluation.predictions import Judged
    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.resolve import Resolved
    from morphfed.experiment.units import Unit

SCHEMA = 1
_Pair = tuple[UnitPredictions, UnitPredictions]
"""One unit with an option of the judging and without it."""


def build_results(
    resolved: Resolved,
    units: Sequence[Unit],
    prepared: Prepared,
    run: Path,
    failed: Mapping[str, str],
    *,
    report: Reporter = silent,
) -> tuple[dict[str, Any], Scores]:
    """Judge all finished units.

    Args:
        failed: units that could not be trained → why; they are listed, and their arms have fewer seeds.

    Returns:
        The content of results.json, and the scores that its summary and comparisons were read from.
    """
    roles: dict[str, Role] = {site: block["role"] for site, block in prepared.info.items()}
    done = [unit for unit in units if is_done(unit, run)]
    task = study_task(resolved.study)
    judged = []
    for number, unit in enumerate(done):
        report(Event("evaluate", number, len(done), f"judging {unit.key}"))
        entry = read_unit(unit, run)
        judged.append((unit, entry, task.judge(unit, entry, roles, prepared, resolved.study, run)))
    report(Event("evaluate", len(done), len(done), "comparing arms"))
    validation = {site: len(parts["validation"]) for site, parts in prepared.sets.items()}
    data = describe_data(prepared, resolved, run)
    return compose(resolved, judged, roles, data, failed, read_json(run / "config.json"), validation)


def compose(
    resolved: Resolved,
    judged: Sequence[tuple[Unit, dict[str, Any], Judgement]],
    roles: Mapping[str, Role],
    data: Mapping[str, Any],
    failed: Mapping[str, str],
    saved: Mapping[str, Any],
    validation: Mapping[str, int],
) -> tuple[dict[str, Any], Scores]:
    """The content of results.json, from units that are judged.

    Args:
        judged: each unit, its entry with ``sites``, and what was judged.
        roles: site → its role, in the study's order.
        data: the ``data`` block.
        failed: as :func:`build_results`.
        saved: when the run was made, and its seconds.
        validation: validation images by site.
    """
    study, task = resolved.study, study_task(resolved.study)
    entries = [entry for _, entry, _ in judged]
    predicted = []
    versions: dict[str, list[_Pair]] = {name: [] for name in task.options}
    for unit, entry, said in judged:
        predicted.append(_predicted(unit, entry, said.found, roles))
        for name, (treated, plain) in said.versions.items():
            versions[name].append((_predicted(unit, entry, treated, roles), _predicted(unit, entry, plain, roles)))
    scores = task.scores(predicted, resamples=study.evaluation.resamples)
    results = {
        "schema": SCHEMA,
        "study": describe_study(resolved, saved),
        "data": data,
        "arms": entries,
        "failed": [{"unit": name, "reason": why} for name, why in failed.items()],
        "summary": summarise(scores),
        "cross_site": cross_site_matrix(scores, metric=task.primary),
        "comparisons": compare_pairs(scores, default_pairs(predicted)),
        "options": _gains(task, versions, study.evaluation.resamples),
        **_retrogress(entries, study.training_sites, validation),
        "environment": {**describe(), "threads": resolved.threads, "jobs": resolved.jobs},
        "config": resolved.as_dict(),
    }
    return results, scores


def _predicted(
    unit: Unit, entry: Mapping[str, Any], found: Mapping[str, Judged], roles: Mapping[str, Role]
) -> UnitPredictions:
    return UnitPredictions(unit.arm, unit.model, entry["algorithm"], unit.seed, unit.trained_on, found, roles)


def _gains(task: StudyTask, versions: Mapping[str, Sequence[_Pair]], resamples: int) -> list[dict[str, Any]]:
    found = []
    for name, pairs in versions.items():
        treated, plain = [with_it for with_it, _ in pairs], [without for _, without in pairs]
        found += gains(name, treated, plain, task.options[name], make=task.scores, resamples=resamples)
    return found


def retrogress_block(
    entries: Iterable[Mapping[str, Any]], sites: Sequence[str], prepared: Prepared
) -> dict[str, list[dict[str, Any]]]:
    """The ``retrogress`` block; {} where no site judged the models that it had trained.

    Args:
        entries: units with their history.
        sites: training sites.
    """
    return _retrogress(entries, sites, {site: len(prepared.sets[site]["validation"]) for site in sites})


def _retrogress(
    entries: Iterable[Mapping[str, Any]], sites: Sequence[str], validation: Mapping[str, int]
) -> dict[str, list[dict[str, Any]]]:
    found = summarise_retrogress(entries, sites, validation)
    return {"retrogress": found} if found else {}


def describe_study(resolved: Resolved, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The ``study`` block.

    Args:
        saved: the run's config.json.
    """
    study = resolved.study
    return {
        "name": study.name,
        "title": study.title or study.name,
        "task": study.task,
        **study_task(study).describe(study),
        "seeds": list(study.seeds),
        "training_sites": study.training_sites,
        "held_out": list(study.held_out),
        "arms": list(study.arms),
        "created": saved["created"],
        "seconds": saved["seconds"],
        "primary_metric": study_task(study).primary,
    }


def describe_data(prepared: Prepared, resolved: Resolved, run: Path) -> dict[str, Any]:
    """The ``data`` block."""
    return {"sites": _sites(prepared, resolved), "notes": prepared.notes, "check": _check(run)}


def _sites(prepared: Prepared, resolved: Resolved) -> dict[str, Any]:
    study, task = resolved.study, study_task(resolved.study)
    blocks = {}
    for site, block in prepared.info.items():
        parts = [part for part in prepared.sets[site].values() if len(part)]
        blocks[site] = {**block, "colour": task.colour(parts)}
        blocks[site]["samples"] = task.samples(site, parts, study) if study.evaluation.images else []
    return blocks


def _check(run: Path) -> dict[str, Any]:
    path = run / "check.json"
    if not path.is_file():
        return {"status": "not run", "findings": []}
    found: dict[str, Any] = read_json(path)
    return found
