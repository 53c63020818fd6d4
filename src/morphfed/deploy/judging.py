"""The coordinator asks sites for what the report needs: facts of their data, scores of finished models, and how the
models went that they trained alone. What came is kept beside the unit, so that nobody is asked twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from morphfed import __version__
from morphfed.core.files import read_json, write_json
from morphfed.core.progress import Event
from morphfed.core.types import Tensors
from morphfed.deploy.review import network_of
from morphfed.experiment import facts
from morphfed.experiment.released import (
    JUDGED,
    Told,
    declared_history,
    declared_scores,
    objection,
    retell_history,
)
from morphfed.experiment.train_unit import DONE, about, is_done, read_unit
from morphfed.federation.loop import downloads_of
from morphfed.federation.transports.patience import Patience
from morphfed.federation.transports.reading import NotUsableError
from morphfed.federation.transports.remote import Remote
from morphfed.models import weights

if TYPE_CHECKING:
    from morphfed.deploy.agreed import Agreed
    from morphfed.deploy.deployment import Deployment
    from morphfed.experiment.study import Study
    from morphfed.experiment.units import Unit
    from morphfed.federation.transports.parcel import Parcel

FACTS = "facts"
"""Folder of a run in which the sites' facts are kept."""


def largest_answer(study: Study) -> int:
    """Bytes of the rows of a model's scores."""
    return sum(spec.nbytes for spec in declared_scores(study).rows.values())


@dataclass(frozen=True)
class Job:
    """What the sites are asked to train together: a unit between them, or each its own local model.

    Attributes:
        units: one, or one a site.
    """

    units: tuple[Unit, ...]

    @property
    def alone(self) -> bool:
        """Whether each site trains by itself."""
        return not self.units[0].moves

    @property
    def key(self) -> str:
        """Stable name."""
        first = self.units[0]
        return f"{first.arm}/each/seed-{first.seed}" if self.alone else first.key

    def is_done(self, agreed: Agreed, run: Path) -> bool:
        """Whether all of it is trained, and judged by every site that should."""
        return all(is_done(unit, run) and not missing(unit, agreed, run) for unit in self.units)


def jobs_of(agreed: Agreed) -> list[Job]:
    """All jobs, in the study's order."""
    groups = groupby(agreed.all_units, key=lambda unit: (unit.arm, unit.seed, "" if unit.moves else "alone"))
    return [Job(tuple(units)) for _, units in groups]


def judges(unit: Unit, agreed: Agreed) -> list[str]:
    """Sites that tell scores of a unit, in the study's order."""
    if not agreed.releases:
        return []
    arm = agreed.arms[unit.arm]
    held_out = agreed.held_out if unit.moves and arm.algorithm.newcomer(arm.config) else []
    return [site for site in agreed.everyone if site in (*unit.trained_on, *held_out)]


def missing(unit: Unit, agreed: Agreed, run: Path) -> list[str]:
    """Those that have not told them, or nothing of their data."""
    folder = unit.folder(run) / JUDGED
    here = [site for site in judges(unit, agreed) if not (folder / f"{site}.json").is_file()]
    return here + [s for s in judges(unit, agreed) if s not in here and not (run / FACTS / f"{s}.json").is_file()]


@dataclass(frozen=True)
class Finished:
    """A unit whose rounds are over.

    Attributes:
        unit: which.
        network: digest of its initial network.
        downloads: training site → the finished model as it is sent there.
        model: the same for a site that took no part.
        use: the round that it is of.
        settled: its temperature and threshold, as in ``unit.json``.
    """

    unit: Unit
    network: str
    downloads: Mapping[str, Tensors]
    model: Tensors
    use: int
    settled: Mapping[str, Any]

    def download(self, site: str) -> Tensors:
        """What a site gets."""
        return self.downloads.get(site, self.model)


class Judging:
    """Questions outside the rounds.

    Args:
        on: the federation.
        rounds: contact with the training sites that a unit's rounds had: it knows which model they have already.
    """

    def __init__(self, on: Deployment, rounds: Remote | None = None) -> None:
        self._on, self._link, self._agreed, self._run = on, on.link, on.agreed, on.run
        self._rounds = rounds
        self._others: Remote | None = None

    def ask_facts(self, units: Mapping[str, Unit]) -> dict[str, str]:
        """Have sites tell what data they have, where they have not yet; who is not connected is asked another time.

        Args:
            units: site → a unit that it knows.

        Returns:
            The last hash of the ledger of each that answered.
        """
        here = self._link.presence()
        unknown = [site for site in units if not (self._run / FACTS / f"{site}.json").is_file()]
        asked = [site for site in unknown if site in here and here[site].connected]
        if not asked:
            return {}
        each = {site: {"unit": units[site].key} for site in asked}
        study, declared = self._agreed.study, facts.declared(self._agreed.study)

        def read(site: str, answer: Parcel) -> dict[str, Any]:
            told = answer.head.get("told")
            if not isinstance(told, dict) or answer.tensors or (why := declared.objection(told, {})):
                raise NotUsableError(f"it tells {why or 'something else than numbers'}, which is not declared")
            try:
                facts.retell(told, study, role="train")
            except (KeyError, TypeError, ValueError, StopIteration) as cause:
                raise NotUsableError(f"what it tells of its data does not fit together: {cause!r}") from cause
            return told

        remote = self._remote(units[asked[0]], asked)
        nothing, what = dict.fromkeys(asked), "facts of the data"
        for site, told in remote.ask("facts", {}, nothing, read, what=what, each=each).items():
            write_json(self._run / FACTS / f"{site}.json", told)
        return remote.ledgers

    def ask_scores(self, finished: Finished) -> dict[str, str]:
        """Have the sites judge a finished unit that have not yet; returns the ends of their ledgers."""
        unit, study = finished.unit, self._agreed.study
        folder, declared = unit.folder(self._run) / JUDGED, declared_scores(study)
        asked = [site for site in judges(unit, self._agreed) if not (folder / f"{site}.json").is_file()]

        def read(site: str, answer: Parcel) -> Told:
            return _told(answer, lambda told: objection(declared, told, study))

        head = {"use": finished.use, "network": finished.network, "settled": dict(finished.settled)}
        ledgers: dict[str, str] = {}
        for remote in self._contacts(unit):
            downloads = {site: finished.download(site) for site in asked if site in remote.sites}
            for site, told in remote.ask("judge", head, downloads, read, what=f"{unit.key}, scores").items():
                told.save(folder, site)
            ledgers |= remote.ledgers
        return ledgers | self.ask_facts(dict.fromkeys(judges(unit, self._agreed), unit))

    def _contacts(self, unit: Unit) -> list[Remote]:
        """With all sites that judge: those of the rounds, and one with the others, kept for the unit."""
        known = [] if self._rounds is None else [self._rounds]
        if self._others is None:
            others = [s for s in self._agreed.everyone if self._rounds is None or s not in self._rounds.sites]
            self._others = self._remote(unit, others)
        return [*known, self._others]

    def ask_alone(self, job: Job) -> dict[str, str]:
        """Have sites train their local models, each its own and all at once; returns the ends of their ledgers."""
        study, arm = self._agreed.study, self._agreed.arms[job.units[0].arm]
        units = {
            u.trained_on[0]: u for u in job.units if not is_done(u, self._run) or missing(u, self._agreed, self._run)
        }
        history, scores = declared_history(study, arm.federation.rounds), declared_scores(study)

        def read(site: str, answer: Parcel) -> tuple[dict[str, Any], Told]:
            told, numbers = _told(answer, lambda t: objection(scores, t, study)), answer.head.get("history")
            if not isinstance(numbers, dict) or (why := history.objection(numbers, {})):
                raise NotUsableError(f"it tells {why or 'no history'}, which is not declared")
            try:
                return retell_history(numbers, site), told
            except (KeyError, TypeError, ValueError) as cause:
                raise NotUsableError(f"its history does not fit together: {cause!r}") from cause

        remote = self._remote(job.units[0], list(units), rounds=arm.federation.rounds)
        each = {site: {"unit": unit.key} for site, unit in units.items()}
        remote.gather("", self._on.settings.gather, each=each)
        self.ask_facts(units)
        what = f"{job.key}: each site trains its own model"
        self._on.report(Event("coordinator", text=what, level="info"))
        found = remote.ask("alone", {}, dict.fromkeys(units), read, what=what, each=each)
        for site, (entry, told) in found.items():
            unit = units[site]
            told.save(unit.folder(self._run) / JUDGED, site)
            self._write_alone(unit, entry, remote.ledgers.get(site, ""))
        return remote.ledgers

    def _write_alone(self, unit: Unit, told: Mapping[str, Any], ledger: str) -> None:
        """``unit.json`` of a local model, which itself stays where it is."""
        entry = {
            **about(unit, self._agreed.study, self._agreed.arms[unit.arm]),
            "bytes_up": 0,
            "bytes_down": 0,
            "rejected": [],
            **told,
            "over": "network",
            "ledgers": {unit.trained_on[0]: ledger},
            "warnings": [],
        }
        write_json(unit.folder(self._run) / DONE, entry)

    def finish(self, finished: Finished, sites: Sequence[str], *, over: bool) -> dict[str, str]:
        """Give the finished model to sites outside the rounds; returns the ends of their ledgers."""
        remote = self._contacts(finished.unit)[-1]
        remote.finish({site: finished.download(site) for site in sites}, use=finished.use, over=over)
        return remote.ledgers

    def finish_alone(self, job: Job, *, over: bool) -> None:
        """Tell the sites that their local models are done; the held-out ones too, if that was the last unit."""
        remote = self._remote(job.units[0], [unit.trained_on[0] for unit in job.units])
        each = {unit.trained_on[0]: {"unit": unit.key} for unit in job.units}
        head, sites = {"use": 0, "over": over}, dict.fromkeys(each)
        remote.ask("finish", head, sites, lambda site, answer: None, what="the end", each=each)
        if over and self._agreed.held_out:
            last = self._agreed.units[-1]
            others = self._remote(last, self._agreed.held_out)
            nothing = dict.fromkeys(self._agreed.held_out)
            others.ask("leave", head, nothing, lambda site, answer: None, what="the end")

    def _remote(self, unit: Unit, sites: Sequence[str], *, rounds: int = 1) -> Remote:
        """Contact with some sites, none of which must be there."""
        return Remote(
            sites,
            self._link,
            {"study": self._agreed.hash, "unit": unit.key, "version": __version__},
            quorum=0.0,
            limit=largest_answer(self._agreed.study),
            spool=self._run / "spool" / "told",
            patience=Patience(self._on.settings.deadline * rounds, self._on.settings.absent),
            report=self._on.report,
            task=unit.key,
            observe=None if self._on.recorder is None else self._on.recorder.observer(),
        )


def _told(answer: Parcel, objection: Callable[[Told], str]) -> Told:
    tree = answer.head.get("told")
    if not isinstance(tree, dict):
        raise NotUsableError("it tells no scores")
    told = Told(tree, dict(answer.tensors))
    if why := objection(told):
        raise NotUsableError(why)
    return told


def train_alone(on: Deployment, job: Job, *, last: bool = True) -> dict[str, str]:
    """Local models of one seed: each site trains its own; nothing of them travels but numbers.

    Args:
        on: the federation.
        job: what is trained.
        last: whether the sites may leave when it is done.
    """
    judging = Judging(on)
    ledgers = judging.ask_alone(job)
    judging.finish_alone(job, over=last)
    return ledgers


def judge_again(on: Deployment, unit: Unit, *, last: bool = True) -> dict[str, str]:
    """Ask sites for scores of a unit that was finished while they were away; arguments as :func:`train_alone`."""
    agreed, run = on.agreed, on.run
    network, arm, folder = network_of(unit, agreed, torch.device("cpu")), agreed.arms[unit.arm], unit.folder(run)
    entry, chosen = read_unit(unit, run), agreed.study.evaluation.use
    whole = weights.load(folder / f"{chosen}.safetensors")
    model = {name: whole[name] for name in network.workspace.travels}
    parts = {site: folder / "sites" / site / f"{chosen}.safetensors" for site in unit.trained_on}
    own = {site: weights.load(path) for site, path in parts.items() if path.is_file()}
    settled: dict[str, Any] = {key: entry[key] for key in ("calibration", "rejection") if key in entry}
    use = int(entry["best_round"]) if chosen == "best" else arm.federation.rounds
    downloads = dict.fromkeys(agreed.sites, model) | downloads_of(model, own)
    finished = Finished(unit, network.digest(), downloads, model, use, settled)
    judging = Judging(on)
    ledgers = judging.ask_scores(finished)
    here = on.link.presence()
    connected = [site for site in agreed.everyone if site in here and here[site].connected]
    return ledgers | judging.finish(finished, connected, over=last)


def told_facts(agreed: Agreed, run: Path) -> dict[str, dict[str, Any]]:
    """Site → its ``data.sites`` block, of every site that told one, in the study's order."""
    found = {}
    for site in agreed.everyone:
        path = run / FACTS / f"{site}.json"
        if path.is_file():
            role = "held_out" if site in agreed.held_out else "train"
            found[site] = facts.retell(read_json(path), agreed.study, role=role)
    return found
