"""``morphfed report``: the page again, from results.json."""

from __future__ import annotations

import sys
from pathlib import Path


def run(run: Path, /, *, out: Path | None = None) -> int:
    """Write a run's report again, with those of its folds where it has any.

    Args:
        run: the run's folder, that of a federation over a network, or a results.json.
        out: where the page goes; default report.html beside results.json.
    """
    from morphfed.core.errors import StorageError
    from morphfed.core.files import read_json
    from morphfed.reporting import write_report

    results = run / "results.json" if run.is_dir() else run
    if run.is_dir() and not results.is_file() and (run / "federation.toml").is_file():
        results = run / "run" / "results.json"  # the folder of a federation over a network
    if not results.is_file():
        raise StorageError(
            f"{results} does not exist: the run is not finished, or this is no run folder.",
            fix="finish it with the command that began it: morphfed run STUDY.toml, or morphfed coordinator start FED "
            "of a study that has evaluation.release = 'scores'.",
        )
    page = write_report(results, out or results.with_name("report.html"))
    if out is None:
        for fold in read_json(results).get("folds") or ():
            if fold["results"]:
                write_report(results.parent / fold["results"], results.parent / fold["report"])
    sys.stdout.write(f"report: {page}\nnext: open it in a browser.\n")
    return 0
