"""results.json and report.html of a federation over a network, from what the sites told."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphfed.core.files import read_json, write_json
from morphfed.core.progress import Event, Reporter, silent
from morphfed.deploy.judging import jobs_of, judges, told_facts
from morphfed.experiment.environment import cores
from morphfed.experiment.released import JUDGED, judge_told
from morphfed.experiment.resolve import Resolved
from morphfed.experiment.results import compose
from morphfed.experiment.runner import CONFIG, REPORT, RESULTS
from morphfed.experiment.train_unit import is_done, read_unit

if TYPE_CHECKING:
    from morphfed.deploy.agreed import Agreed
    from morphfed.evaluation.site import Role
    from morphfed.experiment.study import Study
    from morphfed.experiment.units import Unit


@contextmanager
def timed(run: Path) -> Iterator[None]:
    """Keep when a run was made, and add the seconds within to those of earlier starts."""
    path, started = run / CONFIG, time.perf_counter()
    saved: dict[str, Any] = read_json(path) if path.is_file() else {"seconds": 0.0}
    saved.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
    try:
        yield
    finally:
        write_json(path, {**saved, "seconds": saved["seconds"] + time.perf_counter() - started})


def write_report_of(agreed: Agreed, run: Path, *, report: Reporter = silent) -> Path | None:
    """Write results.json and report.html into a federation's run folder.

    Args:
        agreed: what was trained.
        run: the folder.
        report: progress.

    Returns:
        The page; None: no site has told any score yet.
    """
    from morphfed.reporting import write_report

    results = results_of(agreed, run)
    if results is None:
        report(Event("report", text="no site has told its scores, so there is no report", level="warning"))
        return None
    write_json(run / RESULTS, results)
    page = write_report(run / RESULTS, run / REPORT)
    for gap in results["network"]["missing"]:
        text = f"the report lacks {gap['unit']} at {gap['site']}: {gap['why']}; the same command asks it again"
        report(Event("report", text=text, level="warning"))
    report(Event("report", text=f"report: {page}", level="info"))
    return page


def results_of(agreed: Agreed, run: Path) -> dict[str, Any] | None:
    """The content of results.json; None where no site has told a score."""
    blocks = told_facts(agreed, run)
    roles: dict[str, Role] = {site: block["role"] for site, block in blocks.items()}
    units = [unit for job in jobs_of(agreed) for unit in job.units]
    judged, failed = [], {}
    for unit in units:
        if not is_done(unit, run):
            failed[unit.name] = "its site has not trained it" if not unit.moves else "it is not trained"
            continue
        entry = read_unit(unit, run)
        said = judge_told(unit, entry, blocks, agreed.study, run)
        if said.found:
            judged.append((unit, entry, said))
        else:
            failed[unit.name] = "no site has told its scores"
    if not judged:
        return None
    study = _written(agreed, blocks)
    resolved = Resolved(study, agreed.arms, 1, study.compute.threads or cores(), agreed.folder)
    data = {"sites": blocks, "notes": [], "check": {"status": "at the sites", "findings": []}}
    validation = {site: _validation(block) for site, block in blocks.items()}
    found, _ = compose(resolved, judged, roles, data, failed, read_json(run / CONFIG), validation)
    return {**found, "network": {"left_out": left_out(agreed), "missing": _missing(units, agreed, blocks, run)}}


def _written(agreed: Agreed, blocks: Mapping[str, Any]) -> Study:
    """The study with those arms and sites of which something is known."""
    study = agreed.study
    arms = {name: study.arms[name] for name in agreed.arms}
    sites = {name: config for name, config in study.sites.items() if name in blocks}
    held_out = tuple(site for site in study.held_out if site in blocks)
    return study.model_copy(update={"arms": arms, "sites": sites, "held_out": held_out})


def _validation(block: Mapping[str, Any]) -> int:
    if "parts" in block:
        return int(block["parts"]["validation"])
    return sum(int(parts["validation"]) for parts in block["classes"].values())


def left_out(agreed: Agreed) -> list[str]:
    """What a report of this study has on one machine and not over a network, in sentences."""
    gone = [name for name in agreed.study.arms if name not in agreed.arms]
    said = [f"{', '.join(gone)}: pooled images, which do not leave their sites."] if gone else []
    if any(not unit.moves for unit in agreed.all_units):
        said.append("Local models away from home: they stay at their sites, so none is judged at another.")
    if agreed.study.task == "mil":
        said += ["What was attended to, and single mistakes: bags, their names and predictions stay at the sites."]
    else:
        said += ["Pictures of cells and single mistakes: images, their names and predictions stay at the sites."]
    said += [
        "The names of labels that are no class of the study: a site tells how many images it leaves out, not why.",
        "Findings of the data check and notes of preparing the data: each site reads its own.",
    ]
    return said


def _missing(units: Sequence[Unit], agreed: Agreed, blocks: Mapping[str, Any], run: Path) -> list[dict[str, str]]:
    found = []
    for unit in units:
        for site in judges(unit, agreed):
            if not (unit.folder(run) / JUDGED / f"{site}.json").is_file():
                why = "it did not answer" if is_done(unit, run) else "not trained"
            elif site not in blocks:
                why = "it told nothing of its data"
            else:
                continue
            found.append({"unit": unit.name, "site": site, "why": why})
    return found
