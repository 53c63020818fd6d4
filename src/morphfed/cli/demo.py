"""``morphfed demo``: from nothing to a report in minutes."""

from __future__ import annotations

from pathlib import Path


def run(*overrides: str, runs: Path = Path("runs")) -> int:
    """Draw synthetic films of four laboratories, train every arm on them, and write a report.

    Args:
        overrides: settings on top of the demo's study, such as federation.rounds=3.
        runs: folder of all runs; the demo goes to RUNS/demo.
    """
    from morphfed.cli.display import Display
    from morphfed.cli.run import say
    from morphfed.experiment.demo import write_demo
    from morphfed.experiment.runner import Options, run_study

    with Display() as display:
        study = write_demo(runs / "demo-data", report=display)
        finished = run_study(study, Options(runs, runs / "demo", overrides), report=display)
    say(finished, next_step=f"copy {study}, name your own folders in it, and `morphfed run` that file.")
    return 1 if finished.failed else 0
