"""`morphfed coordinator start`: Flower's server, and the round loop over it, unit by unit.

Started again it goes on at the last checkpoint, also after its own death or that of the server.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from morphfed import __version__
from morphfed.core.errors import LinkError, MorphfedError, StorageError
from morphfed.core.files import sha256_text
from morphfed.core.memory import keep_freed_memory
from morphfed.core.progress import Event, Reporter, silent
from morphfed.core.types import Tensors
from morphfed.deploy.deployment import Deployment
from morphfed.deploy.judging import (
    Finished,
    Job,
    Judging,
    jobs_of,
    judge_again,
    largest_answer,
    train_alone,
)
from morphfed.deploy.provision import FederationSettings, read_federation
from morphfed.deploy.recorder import Recorder, end_quietly
from morphfed.deploy.results import timed, write_report_of
from morphfed.deploy.review import network_of
from morphfed.deploy.revocation import Revoked
from morphfed.deploy.status import RUN, STATUS
from morphfed.experiment.network import shares_counts
from morphfed.experiment.tasks import study_task
from morphfed.experiment.train_unit import is_done, save_models, settle, write_unit
from morphfed.federation.checkpoint import CheckpointStore
from morphfed.federation.loop import RoundLoop, downloads_of
from morphfed.federation.transports.patience import Patience
from morphfed.federation.transports.remote import Remote

if TYPE_CHECKING:
    from morphfed.deploy.agreed import Agreed
    from morphfed.experiment.units import Unit
    from morphfed.federation.transports.flower.server import Server, ServerFiles

_ROOM = 4 << 20  # bytes that must be free beside two models
_ATTEMPTS = 5  # times that a server may fail without a round in between


def start(folder: Path, *, report: Reporter = silent) -> list[Path]:
    """Train all units of the federation's study, from wherever they stopped.

    Args:
        folder: as `federation init` wrote it.
        report: progress.

    Returns:
        The folders of the trained units.

    Raises:
        FederationError: a round lost its quorum, or too few sites were ready; what was done stays.
        LinkError: Flower's server does not start, or fails again and again.
        StorageError: another process works in the folder, or the disk is full, or nearly.
    """
    from morphfed.federation.transports.flower.server import Server

    settings, agreed = read_federation(folder)
    run = folder / RUN
    run.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=2)
    except Timeout as cause:
        raise StorageError(f"Another coordinator works in {folder}.", fix="stop it, or wait for it.") from cause
    jobs = jobs_of(agreed)
    recorder = Recorder(folder, settings.name, agreed, run, run / STATUS, revoked=Revoked(folder))

    def tell(event: Event) -> None:
        recorder.event(event)
        report(event)

    try:
        recorder.write()
        with timed(run):
            if not all(job.is_done(agreed, run) for job in jobs):
                with Server(server_files(folder, settings)) as server:
                    _train_all(folder, settings, agreed, server, recorder, tell)
        if agreed.releases:
            write_report_of(agreed, run, report=tell)
        recorder.end("done", 0, None)
    except KeyboardInterrupt as cause:
        end_quietly(recorder, "stopped", 130, cause)
        raise
    except MorphfedError as cause:
        end_quietly(recorder, "failed", cause.exit_code, cause)
        raise
    except BaseException as cause:
        end_quietly(recorder, "failed", 1, cause)
        raise
    finally:
        lock.release()
    return [unit.folder(run) for job in jobs for unit in job.units if is_done(unit, run)]


def server_files(folder: Path, settings: FederationSettings) -> ServerFiles:
    """Where Flower's server finds what it needs."""
    from morphfed.federation.transports.flower.server import ServerFiles

    here = folder.resolve() / "coordinator"
    return ServerFiles(
        here / "ca.crt",
        here / "server.crt",
        here / "server.key",
        here / "superexec.secret",
        folder.resolve() / RUN / "flower",
        settings.inner_port,
    )


def _train_all(
    folder: Path, settings: FederationSettings, agreed: Agreed, server: Server, recorder: Recorder, report: Reporter
) -> None:
    """Every unit that is not done; a server that fails is started again, and the unit goes on at its checkpoint."""
    from morphfed.federation.transports.flower.grid import GridLink
    from morphfed.federation.transports.flower.server import Run

    files, run = server_files(folder, settings), folder / RUN
    keys = {site: (folder / "coordinator" / "sites" / f"{site}.pub").read_bytes() for site in agreed.everyone}
    failures, seen = 0, -1
    tried: set[str] = set()  # a site that is away is asked for its scores once a start
    while todo := [job for job in jobs_of(agreed) if job.key not in tried and not job.is_done(agreed, run)]:
        try:
            if not server.alive:
                server.start()
            with Run(files, keys, alive=lambda: server.alive) as opened:
                assert opened.grid is not None
                on = Deployment(GridLink(opened.grid, opened.nodes), agreed, settings, run, recorder, report)
                for job in todo:
                    _train(job, on, recorder, last=job is todo[-1])
                    tried.add(job.key)
                    recorder.finish(job)
        except LinkError as cause:
            check_room(run, _ROOM)  # a server whose disk is full answers with errors of its own
            at = _progress(todo[0].units[0], run)
            failures = 1 if at != seen else failures + 1
            seen = at
            if failures >= _ATTEMPTS:
                raise
            report(Event("coordinator", text=f"{cause.message} Going on from the last checkpoint.", level="warning"))
            server.stop()
            time.sleep(2.0)


def check_room(folder: Path, wanted: int) -> None:
    """Notice a disk that fills up, before Flower's server meets it: it keeps no message then, and does not say why.

    Raises:
        StorageError: fewer bytes than ``wanted`` are free.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise StorageError(
            f"The disk is nearly full: {free:,} bytes are free in {folder}, a round needs {wanted:,}.",
            fix="free some space and run the same command again; finished rounds are kept.",
        )


def _progress(unit: Unit, run: Path) -> int:
    """Checkpoints of a unit: whether anything was done between two failures."""
    commits = sorted((unit.folder(run) / "checkpoint").glob("round-*.json"))
    return int(commits[-1].stem.removeprefix("round-")) if commits else 0


def _train(job: Job, on: Deployment, recorder: Recorder, *, last: bool) -> None:
    recorder.begin(job)
    if job.alone:
        ledgers = train_alone(on, job, last=last)
    elif is_done(job.units[0], on.run):
        ledgers = judge_again(on, job.units[0], last=last)
    else:
        ledgers = train_over(on, job.units[0], last=last).ledgers
    recorder.told(ledgers)


def train_over(on: Deployment, unit: Unit, *, last: bool = True) -> Remote:
    """One unit over a link: its rounds, its models, what the sites settle of them, ``unit.json``.

    Args:
        on: the federation.
        unit: what is trained.
        last: whether the sites may leave when it is done.
    """
    agreed, settings, run, recorder, report = on.agreed, on.settings, on.run, on.recorder, on.report
    arm, study, folder = agreed.arms[unit.arm], agreed.study, unit.folder(run)
    network = network_of(unit, agreed, torch.device("cpu"))
    room = _ROOM + 2 * sum(t.nbytes for t in network.backbone.module.state_dict().values())

    def tell(event: Event) -> None:
        check_room(run, room)  # every quarter of a minute at least
        report(event)

    remote = Remote(
        agreed.sites,
        on.link,
        {"study": agreed.hash, "unit": unit.key, "version": __version__},
        quorum=arm.federation.quorum,
        limit=max(network.upload_bytes, largest_answer(study)),
        spool=run / "spool",
        patience=Patience(settings.deadline, settings.absent),
        report=tell,
        task=unit.key,
        observe=recorder.observer() if recorder is not None else None,
    )
    remote.gather(network.digest(), settings.gather)
    transport, secure = network.secured(remote, study_task(study).outputs(study), report=report, task=unit.key)
    judging = Judging(on, remote) if agreed.releases else None
    if judging is not None:
        judging.ask_facts(dict.fromkeys(agreed.sites, unit))  # a held-out site does not hold the rounds up
    store = CheckpointStore(folder, sha256_text(f"{agreed.hash} {unit.key}"))
    loop = RoundLoop(
        arm.federation,
        coordinator=network.coordinator(),
        transport=transport,
        store=store,
        coding=network.coding,
        share_counts=shares_counts(arm),
        noise=network.noise,
        secure=secure,
        seed=unit.seed,
        report=report,
        task=unit.key,
        observe=recorder.advanced if recorder is not None else None,
    )
    outcome = loop.run()
    save_models(unit, study, arm, network.backbone, outcome, network.initial, folder)
    best = study.evaluation.use == "best"
    model, sites = (outcome.best, outcome.best_sites) if best else (outcome.last, outcome.last_sites)
    use = outcome.progress.best_round if best else outcome.progress.round
    remote.use_state_of(use)
    settled = settle(unit, study, transport, outcome, model, sites)
    downloads: dict[str, Tensors] = dict.fromkeys(agreed.sites, model) | downloads_of(model, sites)
    ledgers = {}
    if judging is not None:
        finished = Finished(unit, network.digest(), downloads, model, use, settled[0])
        ledgers = judging.ask_scores(finished)
    remote.finish(downloads, use=use, over=last)
    if judging is not None and agreed.held_out:
        ledgers |= judging.finish(finished, agreed.held_out, over=last)
    told: dict[str, Any] = {"over": "network", "ledgers": ledgers | remote.ledgers, **settled[0]}
    if network.noise:
        told["noise"] = network.noise.describe(outcome.progress.round)
    if network.sums:
        told["secure"] = {**network.sums.describe(), "keys": "signed"}
    write_unit(unit, study, arm, outcome, network.backbone.module, network.layout, folder, (told, settled[1]), [])
    store.clear()
    return remote
