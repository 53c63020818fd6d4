"""Run a study: prepare the data, train every unit, evaluate, write results.json and report.html.

The same command resumes: units that are done are left alone, a unit that was cut off goes on at its last round.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from morphfed.core.errors import ConfigError, MorphfedError, StorageError
from morphfed.core.files import read_json, sha256_text, storage_error, write_bytes, write_json
from morphfed.core.memory import keep_freed_memory
from morphfed.core.progress import Event, Reporter, silent
from morphfed.experiment.assemble import data_root
from morphfed.experiment.compiling import decide
from morphfed.experiment.devices import devices_of, exact, fitting, need_of, sharing
from morphfed.experiment.folds import refuse_folds
from morphfed.experiment.pool import Job, run_jobs
from morphfed.experiment.prepare import Prepared, prepare
from morphfed.experiment.resolve import Resolved, changes, resolve
from morphfed.experiment.study import load_study
from morphfed.experiment.tasks import study_task
from morphfed.experiment.train_unit import is_done
from morphfed.experiment.units import Unit, units_of

CONFIG = "config.json"
RESULTS = "results.json"
REPORT = "report.html"


@dataclass(frozen=True)
class Options:
    """Where a run goes.

    Attributes:
        runs: folder of all runs; the image cache lives in it too.
        run: this run's folder; None = ``runs/NAME``.
        overrides: ``key=value`` on top of the study file.
    """

    runs: Path = Path("runs")
    run: Path | None = None
    overrides: Sequence[str] = ()

    @property
    def cache(self) -> Path:
        """The image store that all runs share."""
        return Path(os.environ.get("MORPHFED_CACHE") or self.runs / ".cache")


@dataclass(frozen=True)
class Finished:
    """What a run left.

    Attributes:
        run: its folder.
        results: the path of results.json.
        report: the path of report.html.
        failed: units that could not be trained → why.
    """

    run: Path
    results: Path
    report: Path
    failed: dict[str, str] = field(default_factory=dict)


def run_study(study_file: Path, options: Options, *, report: Reporter = silent) -> Finished:
    """Run or resume a study.

    Raises:
        MorphfedError: anything that a user can mend; what was finished before stays.
    """
    started = time.perf_counter()
    keep_freed_memory()
    study, arms = load_study(study_file, options.overrides)
    run = options.run or options.runs / study.name
    with _locked(run):
        resolved = _settle(study_file, resolve(study, arms, study_file.parent), run)
        prepared = prepare(resolved.study, run, options.cache, study_file.parent, report=report)
        for note in prepared.notes:
            report(Event("data", text=note, level="info"))
        resolved = resolved.fitted(prepared)
        refuse_folds(prepared, resolved.study)
        _check_data(resolved, run, report)
        units = units_of(resolved.study, resolved.arms)
        resolved = _settle_compiling(resolved, units, prepared, run, report)
        _compute_features(units, resolved, prepared, run, report)
        failed = _train(units, resolved, run, options.cache, study_file.parent, report)
        _refuse_nothing(units, failed)
        _add_seconds(run, time.perf_counter() - started)
        results, page = write_results(resolved, units, prepared, run, failed, report=report)
    return Finished(run, results, page, failed)


def write_results(
    resolved: Resolved,
    units: Sequence[Unit],
    prepared: Prepared,
    run: Path,
    failed: Mapping[str, str],
    *,
    report: Reporter = silent,
) -> tuple[Path, Path]:
    """Evaluate all finished units and write results.json and report.html, those of every fold first."""
    from morphfed.experiment.fold_results import build_folds
    from morphfed.experiment.results import build_results
    from morphfed.reporting import write_report

    if resolved.study.holdout == "each":
        results = build_folds(resolved, units, prepared, run, failed, write=_write_fold, report=report)
    else:
        results, _ = build_results(resolved, units, prepared, run, failed, report=report)
    write_json(run / RESULTS, results)
    report(Event("report", 0, 1, "writing the report"))
    page = write_report(run / RESULTS, run / REPORT)
    report(Event("report", 1, 1, "writing the report"))
    return run / RESULTS, page


def _write_fold(folder: Path, results: Mapping[str, Any]) -> None:
    from morphfed.reporting import write_report

    write_json(folder / RESULTS, results)
    write_report(folder / RESULTS, folder / REPORT)


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Only one process may work in a run folder."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run / ".lock")
        lock.acquire(timeout=2)
    except Timeout as cause:
        raise StorageError(
            f"Another morphfed process works in {run}.", fix="wait for it, or name another folder with --run."
        ) from cause
    except OSError as cause:
        raise storage_error(run, cause) from cause
    try:
        yield
    finally:
        lock.release()


def _settle(study_file: Path, resolved: Resolved, run: Path) -> Resolved:
    """Write the resolved study on the first call; on later ones check that it is the same study.

    Choices that were measured (precision) are taken from the first call, so a resumed run computes the same.
    """
    path = run / CONFIG
    if not path.is_file():
        final = resolved.measured()
        write_bytes(run / "study.toml", study_file.read_bytes())
        write_json(path, {"asked": resolved.asked(), "resolved": final.as_dict(), "seconds": 0.0})
        return final
    saved = read_json(path)
    changed = changes(saved["asked"], resolved.asked())
    if changed:
        raise ConfigError(
            f"{run} holds a run with other settings: {'; '.join(changed[:4])}{'; …' if len(changed) > 4 else ''}.",
            fix="name another folder with --run DIR, or restore the settings to resume that run.",
        )
    final = resolved.with_measured(saved["resolved"]).measured()
    # Arms and seeds may have been added; what an earlier call trained under other arms is remembered too.
    arms = {**saved["resolved"]["arms"], **final.as_dict()["arms"]}
    asked_arms = {**saved["asked"]["arms"], **resolved.asked()["arms"]}
    saved["asked"] = {**resolved.asked(), "arms": asked_arms}
    saved["resolved"] = {**final.as_dict(), "arms": arms}
    write_json(path, saved)
    return final


def _settle_compiling(
    resolved: Resolved, units: Sequence[Unit], prepared: Prepared, run: Path, report: Reporter
) -> Resolved:
    """Decide what is compiled, once for each arm: it changes the last bits, so a resumed run keeps to it."""
    saved = read_json(run / CONFIG)
    known: dict[str, bool] = saved.get("compiling", {})
    counts = {site: len(parts["train"]) for site, parts in prepared.sets.items()}
    final = decide(resolved, units, counts, known, report=report)
    found = {**known, **{name: name in final.compiled for name in final.arms}}
    arms = saved["resolved"]["arms"]
    settled = {**saved, "resolved": {**final.as_dict(), "arms": arms}, "compiling": found}
    if settled != saved:
        write_json(run / CONFIG, settled)
    return final


def fingerprint(resolved: Resolved, unit: Unit) -> str:
    """Identifies what a unit's checkpoints belong to."""
    import json

    return sha256_text(json.dumps([resolved.of_arm(unit.arm), unit.key], sort_keys=True))


def _check_data(resolved: Resolved, run: Path, report: Reporter) -> None:
    if not resolved.study.data.check or (run / "check.json").is_file():
        return
    from morphfed.data.manifest import Manifest

    manifest = Manifest.read(run / "manifest.parquet")
    found = study_task(resolved.study).check_data(manifest, resolved.study, report=report)
    root = data_root(resolved.study, resolved.folder)
    write_json(run / "check.json", _without_root(found.to_json(), [root, root.resolve(), run, run.resolve()]))
    for finding in found.findings:
        if finding.level != "info":
            where = f"{finding.site}: " if finding.site else ""
            report(Event("check", text=f"data check: {where}{finding.message}", level="warning"))


def _without_root(value: Any, roots: Sequence[Path]) -> Any:
    """Plain values with the machine's own folders taken out of every text: results may be shown to others."""
    if isinstance(value, dict):
        return {key: _without_root(item, roots) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_root(item, roots) for item in value]
    if isinstance(value, str):
        for root in roots:
            value = value.replace(f"{root}/", "")
    return value


def _compute_features(
    units: Sequence[Unit], resolved: Resolved, prepared: Prepared, run: Path, report: Reporter
) -> None:
    """Features of frozen backbones, before processes share them."""
    from morphfed.experiment.features import precompute

    names = {unit.arm for unit in units if not is_done(unit, run)}
    precompute((resolved.arms[name] for name in sorted(names)), resolved, prepared, report=report)


def _train(
    units: Sequence[Unit], resolved: Resolved, run: Path, cache: Path, study_folder: Path, report: Reporter
) -> dict[str, str]:
    todo = [unit for unit in units if not is_done(unit, run)]
    if len(todo) < len(units):
        report(
            Event(
                "resume",
                text=f"{len(units) - len(todo)} of {len(units)} units were already done",
                level="info",
            )
        )
    jobs = [Job(unit, resolved, run, cache, study_folder, fingerprint(resolved, unit)) for unit in todo]
    processes = _fitting(resolved, min(resolved.jobs, max(1, len(jobs))), report)
    failed = run_jobs(jobs, processes=processes, threads=resolved.threads, report=report)
    for name, why in failed.items():
        report(Event(name, text=f"{name}: {why}", level="warning"))
    return failed


def _fitting(resolved: Resolved, processes: int, report: Reporter) -> int:
    """Fewer processes where several would share a GPU whose memory is too small for them; that is said."""
    devices = devices_of(resolved.study.compute.device)
    if devices == ("cpu",) or sharing(devices, processes) == 1:
        return processes
    from morphfed.training.resident import free_bytes

    need, free = need_of(resolved), min(free_bytes(exact(device)) for device in devices)
    each = fitting(sharing(devices, processes), need=need, free=free)
    if each * len(devices) >= processes:
        return processes
    text = (
        f"compute.jobs: {each * len(devices)} units at once in place of {processes}: each needs {need / 1e9:.1f} GB of "
        f"a GPU beside its images, {free / 1e9:.1f} GB are free"
    )
    report(Event("memory", text=text, level="warning"))
    return each * len(devices)


def _refuse_nothing(units: Sequence[Unit], failed: Mapping[str, str]) -> None:
    if len(failed) == len(units):
        first = next(iter(failed.values()))
        raise MorphfedError(f"No unit could be trained. The first said: {first}", fix="mend that and run again.")


def _add_seconds(run: Path, seconds: float) -> None:
    saved: dict[str, Any] = read_json(run / CONFIG)
    saved["seconds"] = float(saved.get("seconds", 0.0)) + seconds
    saved.setdefault("created", datetime.now(UTC).isoformat(timespec="seconds"))
    write_json(run / CONFIG, saved)
