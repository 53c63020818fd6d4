"""THE round loop: cohort → downloads → uploads → aggregate → evaluate → checkpoint. It exists once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from morphfed.algorithms.base import CoordinatorHalf, Outlook, SummingHalf
from morphfed.core.config import Config
from morphfed.core.errors import FederationError, UploadRejectedError
from morphfed.core.progress import Event, Reporter, silent
from morphfed.core.types import Failure, Spec, Tensors, Upload, nbytes
from morphfed.federation import retrogress
from morphfed.federation.checkpoint import CheckpointStore
from morphfed.federation.coding.base import UploadConfig
from morphfed.federation.coding.wire import Coding, Download
from morphfed.federation.secure.rows import TOGETHER
from morphfed.federation.secure.total import SecureSums
from morphfed.federation.statistics import summed_counts
from morphfed.federation.validate import check_upload, opened
from morphfed.privacy.egress import NUMBER_BYTES, upload_bytes
from morphfed.privacy.noise import NoiseConfig
from morphfed.privacy.secure.config import SecureConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from morphfed.federation.transports.base import Metrics, Transport
    from morphfed.privacy.noise import Noise

OWN = "download/"
"""Prefix, in an outcome's sites, of travelling values that a site has in place of the global model's."""


def downloads_of(model: Tensors, sites: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """The travelling tensors that each site uses of an outcome: the global model's, or its own where it has any."""
    return {
        site: model | {name.removeprefix(OWN): t for name, t in state.items() if name.startswith(OWN)}
        for site, state in sites.items()
    }


class FederationConfig(Config):
    """How the rounds run."""

    rounds: int = Field(5, ge=1, description="rounds of training")
    quorum: float = Field(0.5, gt=0, le=1, description="share of the sites whose uploads a round needs")
    select: Literal["balanced_accuracy", "macro_f1", "dice", "iou", "c_index"] = Field(
        "balanced_accuracy",
        description="validation metric that chooses the round, mean over the training sites; of masks dice (their "
        "default) or iou, of survival c_index",
    )
    upload: UploadConfig = Field(
        default_factory=UploadConfig, description="how uploads are written; a code's name alone will do"
    )
    download: Download = Field("fp32", description="bf16: the sites get the trained weights rounded, in half the bytes")
    noise: NoiseConfig = Field(
        default_factory=NoiseConfig, description="noise that each site adds to its upload; a kind's name alone will do"
    )

    secure: SecureConfig = Field(
        default_factory=SecureConfig,
        description="whether the coordinator sees sums over the sites only; true, false or a table",
    )

    @field_validator("secure", mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {"on": value}
        return {"on": True, **value} if isinstance(value, dict) else value

    @field_validator("upload", "noise", mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: ValidationInfo) -> Any:
        return {"code" if info.field_name == "upload" else "kind": value} if isinstance(value, str) else value


_TRAINING = ("optimizer/", "residual/")
"""Private state of a site that its model does not need."""


@dataclass
class Progress:
    """What a run has come to: everything that a checkpoint carries besides tensors."""

    round: int = 0
    best_round: int = 0
    best_score: float = -math.inf
    steps: int = 0
    images_seen: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    class_counts: list[int] | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished federation.

    Attributes:
        last: travelling tensors of the last round's global model.
        best: the same of the round with the best validation.
        last_sites, best_sites: what each site needs beside that model: its private state, and under ``download/`` the
            values that its own download had in place of the global model's.
        progress: history and counters.
    """

    last: Tensors
    best: Tensors
    last_sites: dict[str, Tensors]
    best_sites: dict[str, Tensors]
    progress: Progress


class RoundLoop:
    """Runs a federation from wherever its checkpoint left it.

    Args:
        config: rounds, quorum, selection.
        coordinator: the algorithm's coordinator half.
        transport: reaches the sites.
        store: checkpoints; None keeps none (benchmarks).
        coding: how uploads and downloads are written; None: as they are, and an upload holds what its download does.
        share_counts: whether the sites send their class counts before round 1 and use the sum.
        moves: whether models really cross a site's border (not in the local and centralised arms); only then bytes
            are counted.
        noise: what the sites add to their uploads, for the account of ε; None: nothing.
        secure: has the sites' uploads summed under masks; None: they come one by one.
        seed: of the study, for what the coordinator draws.
        report: progress.
        task: key of the progress bar.
        observe: is shown what the run has come to, when it begins and after every round; must not change it.
    """

    def __init__(
        self,
        config: FederationConfig,
        *,
        coordinator: CoordinatorHalf,
        transport: Transport,
        store: CheckpointStore | None,
        coding: Coding | None = None,
        share_counts: bool = False,
        moves: bool = True,
        noise: Noise | None = None,
        secure: SecureSums | None = None,
        seed: int = 0,
        report: Reporter = silent,
        task: str = "rounds",
        observe: Callable[[Progress], None] | None = None,
    ) -> None:
        self._config, self._coordinator, self._transport = config, coordinator, transport
        self._store, self._moves, self._report, self._task = store, moves, report, task
        self._observe = observe
        self._coding, self._share_counts, self._noise, self._secure = coding, share_counts, noise, secure
        if secure is not None and not isinstance(coordinator, SummingHalf):
            raise TypeError(f"{type(coordinator).__name__} needs single uploads: it takes no sums")
        self._progress = Progress()
        self._best: Tensors = {}
        self._best_memory: Tensors = {}
        self._best_sites: dict[str, Tensors] = {}
        coordinator.plan(Outlook(config.rounds, tuple(transport.sites), seed))

    def run(self) -> Outcome:
        """Run all rounds that are not done yet.

        Raises:
            FederationError: too few valid uploads in a round; earlier rounds stay saved.
            StorageError: a checkpoint could not be written; earlier ones stay valid.
        """
        self._begin()
        self._show()
        while self._progress.round < self._config.rounds:
            self._round(self._progress.round + 1)
        last, last_sites = self._coordinator.model(), self._site_parts()
        if self._progress.best_round == 0:  # no validation images anywhere
            self._progress.best_round = self._progress.round
            self._best, self._best_sites = last, last_sites
        return Outcome(last, self._best, last_sites, self._best_sites, self._progress)

    def _begin(self) -> None:
        self._resume()
        if self._share_counts:
            self._exchange_counts()

    def _exchange_counts(self) -> None:
        """Sum the sites' class counts once; a resumed run has them from its checkpoint, and asks nobody again."""
        if self._progress.class_counts is None:
            found = self._transport.class_counts()
            self._progress.class_counts = summed_counts(found).tolist()
            if self._moves:
                moved = NUMBER_BYTES * sum(len(counts) for counts in found.values())
                self._progress.bytes_up += moved
                self._progress.bytes_down += moved  # the sum goes back to every site
        self._transport.use_class_counts(np.array(self._progress.class_counts, dtype=np.int64))

    def _round(self, number: int) -> None:
        started = time.perf_counter()
        cohort = tuple(self._transport.sites)
        self._coordinator.begin_round(number, cohort)
        downloads = {site: self._coordinator.download(site) for site in cohort}
        sent = self._sent(downloads)
        collect = self._collect if self._secure is None else self._collect_sum
        accepted = collect(number, downloads, sent)
        self._coordinator.end_round()
        self._count_down(sent)
        after = self._sent({site: self._coordinator.download(site) for site in cohort})
        validation = self._transport.evaluate(number, after)
        seconds = time.perf_counter() - started
        self._progress.seconds += seconds
        self._note(number, seconds, accepted, validation)
        self._progress.round = number
        improved = self._select(number, validation)
        self._save(number, improved)
        self._show()

    def _show(self) -> None:
        if self._observe is not None:
            self._observe(self._progress)

    def _sent(self, downloads: dict[str, Tensors]) -> dict[str, Tensors]:
        return downloads if self._coding is None else self._coding.send(downloads)

    def _collect(self, number: int, downloads: dict[str, Tensors], sent: dict[str, Tensors]) -> dict[str, Metrics]:
        """Fold the uploads in as they come; return the numbers that came with the accepted ones."""
        accepted: dict[str, Metrics] = {}
        refused: list[str] = []
        waiting = iter(downloads)
        for answer in self._transport.train(number, self._config.rounds, sent):
            site = next(waiting)
            download = downloads[site]
            coding = self._coding or Coding.none({name: Spec.of(tensor) for name, tensor in download.items()})
            try:
                if isinstance(answer, Failure):
                    raise UploadRejectedError(answer.reason, fix="see the site's training settings.")
                check_upload(answer, site=site, round_number=number, specs=coding.specs)
                upload = opened(answer, coding, download)
            except UploadRejectedError as cause:
                refused.append(cause.message)
                self._reject(number, site, cause.message)
                continue
            self._coordinator.fold(upload)
            self._count_up(answer)
            accepted[site] = dict(answer.metrics)
        needed = max(1, math.ceil(self._config.quorum * len(downloads)))
        if len(accepted) < needed:
            raise FederationError(
                f"Round {number}: {len(accepted)} of {len(downloads)} sites gave a valid upload, {needed} are needed. "
                + " ".join(refused),
                fix="mend what is said of those sites, or lower federation.quorum; the rounds before are saved.",
            )
        return accepted

    def _collect_sum(self, number: int, downloads: dict[str, Tensors], sent: dict[str, Tensors]) -> dict[str, Metrics]:
        """Fold in what the sites sent together; no upload is seen by itself, and no number that goes with it."""
        assert self._secure is not None
        needed = max(math.ceil(self._config.quorum * len(downloads)), self._secure.plan.threshold)
        refused: list[str] = []

        def refuse(failure: Failure, counted: bool) -> None:
            refused.append(failure.reason)
            if counted:
                text = f"round {number}: {failure.reason} Its upload is in the sum; the others open it."
                self._report(Event(self._task, text=text, level="warning"))
            else:
                self._reject(number, failure.site, failure.reason)

        def enough(left: int, done: str) -> None:
            if left < needed:
                raise FederationError(
                    f"Round {number}: {left} of {len(downloads)} sites {done}, {needed} are needed. "
                    + " ".join(refused)
                    + " No upload was seen, and no sum was opened.",
                    fix="mend what is said of those sites and run the same command again; the rounds before are saved.",
                )

        total = self._secure.of_round(
            self._transport, number, self._config.rounds, downloads, sent, refused=refuse, enough=enough
        )
        assert isinstance(self._coordinator, SummingHalf)
        self._coordinator.fold_mean(total.mean, total.weight, total.sites)
        self._progress.steps += round(total.numbers["steps"])
        self._progress.images_seen += round(total.numbers["images"])
        if self._moves:
            self._progress.bytes_up += total.up
            self._progress.bytes_down += total.down
        return {**{site: {} for site in total.sites}, TOGETHER: total.numbers}

    def _reject(self, number: int, site: str, reason: str) -> None:
        self._progress.rejected.append({"round": number, "site": site, "reason": reason})
        self._report(Event(self._task, text=f"round {number}: {reason}", level="warning"))

    def _count_up(self, upload: Upload) -> None:
        """Of an upload as it came."""
        self._progress.steps += int(upload.metrics.get("steps", 0))
        self._progress.images_seen += int(upload.metrics.get("images", 0))
        if self._moves:
            self._progress.bytes_up += upload_bytes(upload.tensors, upload.metrics)

    def _count_down(self, sent: dict[str, Tensors]) -> None:
        if self._moves:
            self._progress.bytes_down += sum(nbytes(tensors) for tensors in sent.values())

    def _note(self, number: int, seconds: float, accepted: dict[str, Metrics], validation: dict[str, Metrics]) -> None:
        sites: dict[str, dict[str, Any]] = {
            site: {"loss": m.get("loss"), "steps": int(m.get("steps", 0))} if m else {} for site, m in accepted.items()
        }
        for site, m in accepted.items():
            if before := retrogress.received(m):
                sites[site]["before"] = before
        for site, metrics in validation.items():
            sites.setdefault(site, {})["validation"] = metrics
        entry: dict[str, Any] = {"round": number, "seconds": seconds, "sites": sites}
        if self._noise is not None and (spent := self._noise.spent(number)) is not None:
            entry["epsilon"] = spent
            total = len(self._transport.sites) * self._config.rounds
            text = f"round {number}/{self._config.rounds} · ε {spent:.3g} at δ {self._config.noise.delta:g}"
            self._report(Event(self._task, len(self._transport.sites) * number, total, text))
        self._progress.history.append(entry)

    def _select(self, number: int, validation: dict[str, Metrics]) -> bool:
        """Keep this round's model if its mean validation over the sites is the best so far; ties keep the earlier."""
        scores = [m[self._config.select] for m in validation.values() if self._config.select in m]
        if not scores:
            return False
        score = sum(scores) / len(scores)
        if not score > self._progress.best_score:
            return False
        self._progress.best_score, self._progress.best_round = score, number
        self._transport.keep(number)
        self._best_memory = _copies(self._coordinator.model(), self._best_memory)
        self._best, self._best_sites = self._best_memory, self._site_parts()
        return True

    def _site_parts(self) -> dict[str, Tensors]:
        """Copies of what the sites need to use the global model (not what only training needs)."""
        states = self._transport.site_states()  # empty where private state stays at its site
        sites = {
            site: {k: v for k, v in (states.get(site, {}) | self._own(site)).items() if not k.startswith(_TRAINING)}
            for site in self._transport.sites
        }
        return {site: {k: v.clone() for k, v in state.items()} for site, state in sites.items() if state}

    def _own(self, site: str) -> Tensors:
        return {OWN + name: tensor for name, tensor in self._coordinator.own(site).items()}

    def _save(self, number: int, improved: bool) -> None:
        if self._store is None:
            return
        groups: dict[str, Tensors] = {"coordinator": self._coordinator.state()}
        groups |= {f"site/{site}": state for site, state in self._transport.site_states().items()}
        same: dict[str, int] = {}
        # What is private stays in the site's own folder, also that of the best round.
        best = {"best": self._best, **{f"site-best/{site}": state for site, state in self._best_sites.items()}}
        equal: dict[str, str] = {}
        if improved:
            # Where the coordinator's state is its model, the copy of a moment ago is not written again.
            if self._best and _is(groups["coordinator"], self._coordinator.model()):
                equal["best"] = "coordinator"
                del best["best"]
            groups |= best
        elif self._best:
            same = dict.fromkeys(best, self._progress.best_round)
        self._store.save(number, groups, asdict(self._progress), same=same, equal=equal)

    def _resume(self) -> None:
        saved = self._store.load() if self._store else None
        if self._store:
            for warning in self._store.warnings:
                self._progress.warnings.append(warning)
                self._report(Event(self._task, text=warning, level="warning"))
        if saved is None:
            return
        self._coordinator.load_state(saved.groups["coordinator"])
        states = {g.removeprefix("site/"): t for g, t in saved.groups.items() if g.startswith("site/")}
        self._transport.load_site_states(states)
        meta = {k: v for k, v in saved.meta.items() if k != "warnings"}
        if meta.get("best_score") is None:  # JSON has no -inf
            meta["best_score"] = -math.inf
        self._progress = Progress(**meta, warnings=[*saved.meta["warnings"], *self._progress.warnings])
        self._transport.keep(self._progress.best_round)
        self._best = saved.groups.get("best", {})
        best_sites = {g: t for g, t in saved.groups.items() if g.startswith("site-best/")}
        self._best_sites = {g.removeprefix("site-best/"): t for g, t in best_sites.items()}


def _is(one: Tensors, other: Tensors) -> bool:
    """Whether both hold the very same tensors."""
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _copies(tensors: Tensors, memory: Tensors) -> Tensors:
    """Copies, in ``memory`` where earlier copies of the same tensors lie: new memory costs more than copying."""
    return {name: memory[name].copy_(tensor) if name in memory else tensor.clone() for name, tensor in tensors.items()}
