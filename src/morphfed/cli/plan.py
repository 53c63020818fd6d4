"""``morphfed plan``: what a study would do, without doing it."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path


def run(study: Path, /, *overrides: str, json: bool = False, quick: bool = False) -> int:
    """Show the resolved study: sites, images, parameters, bytes a round, estimated time. Trains nothing.

    Args:
        study: the study file (.toml).
        overrides: settings on top of the file, such as train.lr=0.001.
        json: print everything as JSON, with the whole resolved configuration.
        quick: do not measure the speed of training on this machine.
    """
    from morphfed.cli.display import Display
    from morphfed.experiment.plan import plan_study, render_plan

    with Display(quiet=json) as display:
        plan = plan_study(study, overrides, measure=not quick, report=display)
    if json:
        sys.stdout.write(jsonlib.dumps(plan, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(render_plan(plan) + f"\nnext: morphfed run {study}\n")
    return 0
