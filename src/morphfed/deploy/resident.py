"""A site's resident worker: keeps network, images and state from question to question, and answers only what its
operator approved."""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from morphfed import __version__
from morphfed.core.errors import ConsentError, DataError, MorphfedError, PrivacyError, StorageError, TrainingError
from morphfed.core.files import sha256_file, sha256_text, write_bytes
from morphfed.core.progress import Event, Reporter, silent
from morphfed.deploy.bundle import SECRETS
from morphfed.deploy.consent import approvals, approved
from morphfed.deploy.identity import SiteIdentity
from morphfed.deploy.telling import Alone, Telling, Working
from morphfed.experiment.environment import cores
from morphfed.experiment.features import on_features
from morphfed.experiment.network import Network, declare, make_site, whole_network
from morphfed.experiment.prepare import Prepared, prepare
from morphfed.experiment.residence import bring
from morphfed.experiment.study import SiteConfig
from morphfed.experiment.tasks import study_task
from morphfed.federation.transports.desk import Desk, QuestionError, RoundStates
from morphfed.federation.transports.parcel import HEAD_BYTES, Parcel, ParcelError, pack, unpack, with_head
from morphfed.federation.transports.remote import ANSWER, ECHOED, REFUSAL
from morphfed.models import weights
from morphfed.training.trainer import Trainer

if TYPE_CHECKING:
    from morphfed.deploy.agreed import Agreed
    from morphfed.experiment.study import Study
    from morphfed.experiment.units import Unit
    from morphfed.federation.site import Site
    from morphfed.privacy.ledger import ChainedLedger

_TOLD = (ConsentError, TrainingError, PrivacyError)
"""Errors whose words name rounds, tensors and settings only; the words of others may name files and stay here."""


@dataclass
class _AtHand:
    """The unit at hand."""

    study: str
    unit: str
    desk: Desk


@dataclass(frozen=True)
class _Last:
    """The last answer, and the number of its last record in the ledger."""

    question: str = ""
    content: bytes = b""
    record: int = 0


def _named(question: Parcel) -> str:
    """Names a question, however often it is asked."""
    told = {key: value for key, value in question.head.items() if key not in ("nonce", "whole", "best")}
    return sha256_text(json.dumps([question.kind, told], sort_keys=True))


class Resident:
    """Answers parcels.

    Args:
        site: this site's name.
        folder: its own: approvals, prepared images, private state, models.
        data: where its images are.
        ledger: its egress ledger.
        report: progress, for this site's eyes.
    """

    def __init__(
        self, site: str, folder: Path, data: SiteConfig, ledger: ChainedLedger, *, report: Reporter = silent
    ) -> None:
        self.site, self._folder, self._data, self._ledger, self._report = site, folder, data, ledger, report
        self._working: _AtHand | None = None
        self._prepared: tuple[str, Prepared] | None = None
        self._last = _Last()
        self.over = False
        """Whether the coordinator has said that the last unit is done."""
        self.failed: StorageError | None = None
        """Why this process cannot go on, once its last answer is sent."""

    @property
    def limit(self) -> int:
        """Bytes of the largest question that an approved study can ask."""
        return max((known.download for known in approvals(self._folder)), default=0) + 2 * HEAD_BYTES

    def answer(self, content: bytes) -> bytes:
        """Answer a question, or refuse it in words; what leaves is in the ledger before this returns."""
        try:
            question = unpack(content, limit=self.limit)
        except ParcelError as cause:
            return self._refuse({}, f"the question cannot be read: {cause}")
        head = question.head
        self._report(
            Event("site", text=f"{question.kind} {head.get('round') or ''} {head.get('unit', '')}", level="info")
        )
        try:
            self._check(head)
            desk = self._desk(str(head.get("study")), str(head.get("unit")))
            answer = self._again(question) or self._first(question, desk)
        except QuestionError as cause:
            return self._refuse(head, str(cause))
        except _TOLD as cause:
            return self._refuse(head, f"{cause.message} Fix, at the site: {cause.fix}")
        except MorphfedError as cause:
            self.failed = cause if isinstance(cause, StorageError) else None
            self._warn(f"error {cause.code}: {cause.message} Fix: {cause.fix}")
            return self._refuse(head, f"error {cause.code} at the site; its own log says more")
        except (RuntimeError, ValueError, OSError, MemoryError) as cause:
            traceback.print_exc(file=sys.stderr)
            self._working = None  # whatever state it was in
            return self._refuse(head, f"{type(cause).__name__} at the site; its own log says more")
        self.over = question.kind in ("finish", "leave") and bool(head.get("over"))
        return answer

    def _again(self, question: Parcel) -> bytes | None:
        """The last answer, if this is its question once more: it was lost, or the network was away for long.

        Nothing is trained or noised twice for it.
        """
        head = question.head
        if self._last.question != _named(question):
            return None
        self._ledger.note(
            "repeat", "the last answer, sent again", site=self.site, round=head.get("round"), repeats=self._last.record
        )
        return with_head(self._last.content, {"nonce": head.get("nonce"), "ledger": self._ledger.head})

    def _first(self, question: Parcel, desk: Desk) -> bytes:
        self._last = _Last()  # two models need not be in memory at once
        found = desk.answer(question)
        content = pack(found)
        if found.kind == ANSWER:
            self._last = _Last(_named(question), content, self._ledger.records)
        return content

    def _check(self, head: Any) -> None:
        if head.get("site") != self.site:
            raise QuestionError(f"the question is for the site '{str(head.get('site'))[:40]}', this is '{self.site}'")
        if head.get("version") != __version__:
            raise QuestionError(
                f"the coordinator runs morphfed {str(head.get('version'))[:20]}, this site {__version__}: "
                "install the same"
            )

    def _refuse(self, head: Any, why: str) -> bytes:
        """A refusal; its words leave the site, so they are written down too."""
        self._warn(f"refused: {why}")
        self._ledger.note("refusal", why, site=self.site, round=head.get("round"))
        return pack(Parcel(REFUSAL, {**{key: head.get(key) for key in ECHOED}, "why": why}))

    def _warn(self, text: str) -> None:
        self._report(Event("site", text=text, level="warning"))

    def _desk(self, study_hash: str, unit_key: str) -> Desk:
        """The desk of a unit of an approved study; consent is looked up at every question."""
        agreed = approved(self.site, self._folder, study_hash)
        working = self._working
        if working is None or (working.study, working.unit) != (study_hash, unit_key):
            unit = next((u for u in agreed.all_units if u.key == unit_key), None)
            if unit is None or not (unit.moves or self.site in unit.trained_on):
                raise QuestionError(f"the study has no unit '{unit_key[:60]}' for this site")
            self._working = None  # two networks need not be in memory at once
            working = self._working = _AtHand(study_hash, unit_key, self._open(agreed, unit))
        return working.desk

    def _open(self, agreed: Agreed, unit: Unit) -> Desk:
        """Network, images and private state of a unit."""
        study, arm = agreed.at_site(self.site, self._data), agreed.arms[unit.arm]
        torch.set_num_threads(study.compute.threads or cores())
        wanted = study.compute.device
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
        if not unit.moves:
            return Alone(self._telling(agreed, unit, study), arm, device, self._keep_file).desk()
        backbone, model, initial = whole_network(unit, agreed.study, arm, folder=agreed.folder, device=device)
        prepared = self._images(agreed)
        telling = self._telling(agreed, unit, study)
        stored = on_features(backbone, arm, prepared, study, report=self._report)
        if stored is not None:
            model, prepared = stored.model, stored.prepared
        prepared, _ = bring(prepared, device, report=self._report, task="images")
        network = declare(unit, agreed.study, arm, backbone, model, initial)
        trainer = Trainer(
            arm.train,
            mean=backbone.mean,
            std=backbone.std,
            device=device,
            seed=unit.seed,
            task=study_task(study).task,
        )
        own = self.site in agreed.sites
        working = Working(network, trainer, prepared)
        return Desk(
            self._site(agreed, unit, working) if own else None,
            RoundStates(self._kept(agreed, unit)),
            network=network.digest(),
            ledger=lambda: self._ledger.head,
            finished=lambda: self._keep_model(agreed, unit, network),
            newcomer=working.newcomer(self.site),
            judge=(lambda head: telling.scores(head, working)) if agreed.releases else None,
            more={"facts": telling.facts} if agreed.releases else {},
        )

    def _site(self, agreed: Agreed, unit: Unit, working: Working) -> Site:
        """This site's half of the unit's rounds."""
        study, arm = agreed.at_site(self.site, self._data), agreed.arms[unit.arm]
        parts = working.prepared.sets[self.site]
        return make_site(
            self.site,
            unit,
            agreed.study,
            working.network,
            working.trainer,
            train=study_task(study).training_part(parts["train"], arm),
            validation={self.site: parts["validation"]},
            ledger=self._ledger.about(study=agreed.hash, unit=unit.key),
            opened=self._kept(agreed, unit) / "opened.json",
            identity=SiteIdentity(self._folder / SECRETS) if working.network.sums else None,
        )

    def _kept(self, agreed: Agreed, unit: Unit) -> Path:
        """Folder of this site's private state of a unit."""
        return self._folder / "state" / agreed.hash / unit.key

    def _telling(self, agreed: Agreed, unit: Unit, study: Study) -> Telling:
        """What of this site's data and scores is told."""
        ledger = self._ledger.about(study=agreed.hash, unit=unit.key)
        run = self._folder / "runs" / agreed.hash
        images = lambda: self._images(agreed)  # noqa: E731
        return Telling(self.site, agreed, unit, study, images, ledger, lambda: self._ledger.head, run, self._report)

    def _images(self, agreed: Agreed) -> Prepared:
        """This site's images, labelled, split and cached; again only when the study or the images' place changes.

        Raises:
            DataError: there are none, or too few.
        """
        study = agreed.at_site(self.site, self._data)
        source = Path(self._data.path)
        content = sha256_file(source) if source.is_file() else ""
        key = sha256_text(f"{agreed.hash} {self._data.model_dump_json()} {content}")[:32]
        if self._prepared is None or self._prepared[0] != key:
            self._report(Event("site", text="preparing this site's images", level="info"))
            folder = self._folder / "data" / key
            cache = self._folder / "cache"
            prepared = prepare(study, folder, cache, Path.cwd(), report=self._report, whole=False)
            study_task(study).fitted(agreed.arms, prepared)  # refuses features of another width
            for note in prepared.notes:
                self._report(Event("site", text=note, level="info"))
            if self.site in agreed.sites and not len(prepared.sets[self.site]["train"]):
                raise DataError(f"Site '{self.site}' has no training image.", fix="see `morphfed data check`.")
            self._prepared = key, prepared
        return self._prepared[1]

    def _keep_model(self, agreed: Agreed, unit: Unit, network: Network) -> None:
        """The finished model as this site uses it, a complete state dict."""
        path = self._model_path(agreed, unit)
        weights.save(path, network.backbone.module.state_dict())
        self._report(Event("site", text=f"{unit.key} is over; its model is {path}", level="info"))

    def _keep_file(self, agreed: Agreed, unit: Unit, model: Path) -> None:
        """The same of a model that was trained here alone."""
        path = self._model_path(agreed, unit)
        write_bytes(path, model.read_bytes())
        self._report(Event("site", text=f"{unit.key} is over; its model is {path}", level="info"))

    def _model_path(self, agreed: Agreed, unit: Unit) -> Path:
        return self._folder / "models" / agreed.study.name / unit.name / "model.safetensors"
