"""``morphfed run``: the whole comparison."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphfed.experiment.runner import Finished


def run(
    study: Path,
    /,
    *overrides: str,
    runs: Path = Path("runs"),
    run: Path | None = None,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Run a study, or go on with one that was cut off: the same command resumes.

    Args:
        study: the study file (.toml).
        overrides: settings on top of the file, such as train.lr=0.001 or seeds=[0].
        runs: folder of all runs and of the image cache.
        run: folder of this run; default RUNS/NAME.
        dry_run: resolve and check everything, print the plan, train nothing.
        json: print the outcome as JSON.
    """
    from morphfed.cli.display import Display
    from morphfed.experiment.runner import Options, run_study

    if dry_run:
        from morphfed.cli.plan import run as plan

        return plan(study, *overrides, json=json, quick=True)
    with Display(quiet=json) as display:
        finished = run_study(study, Options(runs, run, overrides), report=display)
    say(finished, as_json=json)
    return 1 if finished.failed else 0


def say(finished: Finished, *, as_json: bool = False, next_step: str | None = None) -> None:
    """Print what a run found and where it is; every number comes from its results.json."""
    from morphfed.core.files import read_json
    from morphfed.reporting.report import words
    from morphfed.reporting.results import Results

    results: dict[str, Any] = read_json(finished.results)
    if as_json:
        outcome = {
            "run": str(finished.run),
            "results": str(finished.results),
            "report": str(finished.report),
            "failed": finished.failed,
            "summary": results["summary"],
            **({"folds": results["folds"]} if "folds" in results else {}),
        }
        sys.stdout.write(jsonlib.dumps(outcome, indent=2, ensure_ascii=False) + "\n")
        return
    summary = words(Results(results))
    sys.stdout.write(f"{summary.headline}\n")
    for finding in summary.findings:
        sys.stdout.write(f"- {finding.topic}: {finding.text}\n")
    for name, why in finished.failed.items():
        sys.stdout.write(f"failed: {name}: {why}\n")
    sys.stdout.write(f"\nreport:  {finished.report}\nresults: {finished.results}\n")
    if "folds" in results:
        sys.stdout.write(f"folds:   {finished.run / 'folds'}/SITE/report.html\n")
    sys.stdout.write(f"next: {next_step or 'open the report in a browser.'}\n")
