"""The command line: one file a command, imported only when that command runs, so that ``--help`` is instant.

Results go to stdout, progress to stderr. Exit codes: 0 done, 1 something failed, 2 wrong usage or study file, 3 data,
4 model, 5 training, 6 federation, 7 storage, 8 a missing extra, 9 privacy, 130 interrupted.
"""

from __future__ import annotations

import sys

import cyclopts

from morphfed import __version__

app = cyclopts.App(
    name="morphfed",
    version=f"morphfed {__version__}",
    help_format="plaintext",
    help="Federated learning for blood-cell morphology and medical imaging, with an honest comparison.",
    help_epilogue="Start with `morphfed demo`. Add --debug to any command for a traceback. "
    "[Documentation: the docs/ folder of the project.]",
)
app.command(
    "morphfed.cli.doctor:run",
    name="doctor",
    help="Check this machine: Python, torch, disk, extras; or its link to a federation.",
)
app.command("morphfed.cli.demo:run", name="demo", help="Train a small federation on synthetic films (minutes).")
app.command("morphfed.cli.data:app", name="data", help="Draft manifests and check images before training.")
app.command("morphfed.cli.slides:app", name="slides", help="Whole slides to tiles, tiles to bags of features.")
app.command("morphfed.cli.models:app", name="models", help="Convert published weights and saved models.")
app.command("morphfed.cli.plan:run", name="plan", help="Show what a study would do; trains nothing.")
app.command("morphfed.cli.run:run", name="run", help="Run or resume a study; ends with a report.")
app.command("morphfed.cli.report:run", name="report", help="Write the report of a run again.")
app.command("morphfed.cli.coordinator:app", name="coordinator", help="Run a federation over a network.")
app.command(
    "morphfed.cli.federation:app", name="federation", help="Set up, watch and look after a federation over a network."
)
app.command("morphfed.cli.site:app", name="site", help="Take part in a federation over a network.")
app.command("morphfed.cli.catalogue:list_", name="list", help="List algorithms, models, heads, sources or classes.")
app.command("morphfed.cli.catalogue:show", name="show", help="Explain one algorithm, model, head, source or class.")


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and leave with its exit code."""
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: list[str]) -> int:
    """Run a command line and return its exit code; a user's mistake never shows a traceback."""
    from morphfed.core.errors import MorphfedError

    debug = "--debug" in arguments
    tokens = [a for a in arguments if a != "--debug"]
    try:
        result = app(tokens, exit_on_error=False, result_action="return_value")
    except cyclopts.CycloptsError:
        return 2  # cyclopts has printed what is wrong, with the nearest known name
    except MorphfedError as cause:
        if debug:
            raise
        sys.stderr.write(f"error {cause.code}: {cause.message}\n  fix: {cause.fix}\n")
        return cause.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted. Finished rounds are saved; the same command goes on from there.\n")
        return 130
    except BrokenPipeError:  # `morphfed list models | head`
        sys.stderr.close()
        return 0
    return result if isinstance(result, int) else 0
