"""results.json of a study that holds out every site in turn: one a fold, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from morphfed.core.files import read_json
from morphfed.core.progress import Reporter, silent
from morphfed.evaluation.compare import compare_pairs, summarise
from morphfed.evaluation.folds import FoldScores, fold_matrix, fold_pairs
from morphfed.experiment.environment import describe
from morphfed.experiment.folds import fold_study, hold_out
from morphfed.experiment.results import SCHEMA, build_results, describe_data, describe_study, retrogress_block
from morphfed.experiment.tasks import study_task
from morphfed.experiment.train_unit import is_done, read_unit
from morphfed.experiment.units import fold_folder, units_of_fold

if TYPE_CHECKING:
    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.resolve import Resolved
    from morphfed.experiment.units import Unit


def build_folds(
    resolved: Resolved,
    units: Sequence[Unit],
    prepared: Prepared,
    run: Path,
    failed: Mapping[str, str],
    *,
    write: Callable[[Path, Mapping[str, Any]], None],
    report: Reporter = silent,
) -> dict[str, Any]:
    """Judge every fold and write it, then join them.

    Args:
        units: of all folds.
        failed: units that could not be trained → why.
        write: called with each fold's folder and the content of its results.json.
    """
    study = resolved.study
    scores = FoldScores(list(study.sites))
    folds: list[dict[str, Any]] = []
    recalls: list[dict[str, Any]] = []
    looked: list[dict[str, Any]] = []
    for site in study.sites:
        mine = units_of_fold(units, study, site)
        done = [unit for unit in mine if is_done(unit, run)]
        if done:
            results, found = _fold(resolved, site, mine, prepared, run, failed, report)
            write(fold_folder(run, site), results)
            scores.take(site, found)
            recalls += _recalls(site, results)
            looked += _looked(site, results)
        folds.append(_entry(run, site, mine, done, prepared, [s for s in study.sites if s != site]))
    joined = _joined(resolved, units, prepared, run, failed, scores, folds)
    return {**joined, "recall": recalls, **_of_one_model(looked)}


def _fold(
    resolved: Resolved,
    site: str,
    units: Sequence[Unit],
    prepared: Prepared,
    run: Path,
    failed: Mapping[str, str],
    report: Reporter,
) -> tuple[dict[str, Any], Any]:
    study = fold_study(resolved.study, site)
    why = {unit.name: failed[unit.key] for unit in units if unit.key in failed}
    fold = replace(resolved, study=study)
    results, scores = build_results(fold, units, hold_out(prepared, study), run, why, report=report)
    # The folds are trained together, so no time is that of one fold.
    results["study"] |= {"fold_of": resolved.study.name, "seconds": None}
    return results, scores


def _recalls(site: str, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Recall of each class at a held-out site, mean over seeds, of every model that more than one site made."""
    entries: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for unit in results["arms"]:
        # A method may have no model for a site that took no part: it is not judged there.
        if unit["algorithm"] != "local" and site in unit["sites"]:
            for name, block in unit["sites"][site].get("per_class", {}).items():
                entries.setdefault((unit["model"], name), []).append(block)
    return [
        {
            "model": model,
            "held_out": site,
            "class": name,
            "n": blocks[0]["n"],
            "recall": fmean(b["recall"] for b in blocks) if blocks[0]["n"] else None,
        }
        for (model, name), blocks in entries.items()
    ]


def _looked(site: str, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the models that were trained without a site looked at in its bags."""
    return [
        {"model": unit["model"], "algorithm": unit["algorithm"], "seed": unit["seed"], "held_out": site, "bags": bags}
        for unit in results["arms"]
        if unit["algorithm"] != "local" and (bags := unit["sites"].get(site, {}).get("attention"))
    ]


def _of_one_model(looked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``attention`` of the first federated model, else of the first; pictures of every model are in the folds' reports.

    Without anything to show there is no such block.
    """
    first = next((e for e in looked if e["algorithm"] != "centralised"), looked[0] if looked else None)
    if first is None:
        return {}
    return {"attention": [dict(e) for e in looked if (e["model"], e["seed"]) == (first["model"], first["seed"])]}


def _entry(
    run: Path, site: str, units: Sequence[Unit], done: Sequence[Unit], prepared: Prepared, others: list[str]
) -> dict[str, Any]:
    folder = fold_folder(run, site).relative_to(run)
    return {
        "held_out": site,
        "training_sites": others,
        "n": sum(int(part.exact.sum()) for part in prepared.sets[site].values()),
        "n_train": sum(len(prepared.sets[other]["train"]) for other in others),
        "units": len(units),
        "done": len(done),
        "results": (folder / "results.json").as_posix() if done else None,
        "report": (folder / "report.html").as_posix() if done else None,
    }


def _joined(
    resolved: Resolved,
    units: Sequence[Unit],
    prepared: Prepared,
    run: Path,
    failed: Mapping[str, str],
    scores: FoldScores,
    folds: list[dict[str, Any]],
) -> dict[str, Any]:
    study, primary = resolved.study, study_task(resolved.study).primary
    entries = [_unit(unit, run) for unit in units if is_done(unit, run)]
    kinds = {str(e["model"]): str(e["algorithm"]) for e in entries if e["algorithm"] != "local"}
    centralised = [model for model, algorithm in kinds.items() if algorithm == "centralised"]
    federated = [model for model in kinds if model not in centralised]
    data = describe_data(prepared, resolved, run)
    for block in data["sites"].values():
        block["role"] = "each"
    sites = list(study.sites)
    described = describe_study(resolved, read_json(run / "config.json"))
    return {
        "schema": SCHEMA,
        "study": {**described, "holdout": "each", "training_sites": sites, "held_out": sites},
        "folds": folds,
        "data": data,
        "arms": entries,
        "failed": [{"unit": name, "reason": why} for name, why in failed.items()],
        "summary": summarise(scores),
        "best_local": [
            {"arm": arm, "held_out": site, "model": best}
            for arm in scores.local_arms
            for site in sites
            if (best := scores.best_local(arm, site, primary))
        ],
        "cross_site": fold_matrix(scores, primary),
        "comparisons": compare_pairs(scores, fold_pairs(scores, centralised, federated)),
        **retrogress_block((read_unit(unit, run) for unit in units if is_done(unit, run)), sites, prepared),
        "environment": {**describe(), "threads": resolved.threads, "jobs": resolved.jobs},
        "config": resolved.as_dict(),
    }


def _unit(unit: Unit, run: Path) -> dict[str, Any]:
    """What a unit cost; its scores are in its folds."""
    entry = read_unit(unit, run)
    del entry["history"]
    return {**entry, "held_out": None if unit.shared else unit.fold}
