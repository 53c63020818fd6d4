"""What a site tells beside its uploads where the study releases scores: facts of its data, scores of its test part, how
a model went that it trained alone. All of it passes a gate of its own and is in the ledger before it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphfed.core.files import sha256_text
from morphfed.core.progress import Reporter
from morphfed.experiment import facts
from morphfed.experiment.devices import Place
from morphfed.experiment.network import Network
from morphfed.experiment.prepare import Prepared
from morphfed.experiment.released import HISTORY, SCORES, declared_history, declared_scores, tell_history, tell_scores
from morphfed.experiment.tasks import study_task
from morphfed.experiment.tasks.base import Trained
from morphfed.experiment.train_unit import is_done, read_unit, train_unit
from morphfed.federation.transports.desk import Desk, QuestionError, Reply, RoundStates
from morphfed.privacy.egress import Declaration, EgressGate
from morphfed.training.trainer import Trainer

if TYPE_CHECKING:
    import torch

    from morphfed.core.types import Tensors
    from morphfed.deploy.agreed import Agreed
    from morphfed.evaluation.site import Role
    from morphfed.experiment.study import Arm, Study
    from morphfed.experiment.units import Unit
    from morphfed.privacy.ledger import Ledger


def declaration(unit: Unit, study: Study, arm: Arm) -> Declaration:
    """What may leave a site of one unit beside its uploads; nothing unless the study releases scores."""
    found = {facts.FACTS: facts.declared(study), SCORES: declared_scores(study)}
    if not unit.moves:
        found[HISTORY] = declared_history(study, arm.federation.rounds)
    return Declaration({}, frozenset(), "", findings=found)


@dataclass(frozen=True)
class Working:
    """A unit's network at a site, with what it is judged on.

    Attributes:
        network, trainer: of the unit.
        prepared: the site's images, or their features.
    """

    network: Network
    trainer: Trainer
    prepared: Prepared

    def newcomer(self, site: str) -> Callable[[Tensors], None]:
        """Fills the network for a site that took no part: what travels, and norms re-estimated where they are local."""

        def fill(download: Tensors) -> None:
            workspace = self.network.workspace
            workspace.load(download)
            if workspace.local:
                workspace.load(workspace.fresh)
                self.trainer.restimate_norms(workspace.model, self.prepared.sets[site]["test"])

        return fill


@dataclass(frozen=True)
class Telling:
    """Answers questions about this site's data and scores.

    Attributes:
        site: its name.
        agreed, unit: what was trained.
        study: as this site sees it.
        images: its images.
        ledger, head: of the site, and the last hash of it.
        run: folder for predictions and local models.
        report: progress, for this site's eyes.
    """

    site: str
    agreed: Agreed
    unit: Unit
    study: Study
    images: Callable[[], Prepared]
    ledger: Ledger
    head: Callable[[], str]
    run: Path
    report: Reporter

    @cached_property
    def gate(self) -> EgressGate:
        """Lets the declared findings pass."""
        declared = declaration(self.unit, self.agreed.study, self.agreed.arms[self.unit.arm])
        return EgressGate(self.site, declared, self.ledger)

    @property
    def role(self) -> Role:
        """This site's in the study."""
        return "held_out" if self.site in self.agreed.held_out else "train"

    def facts(self, head: Mapping[str, Any]) -> Reply:
        """How many images there are of what."""
        prepared = self.images()
        parts = [part for part in prepared.sets[self.site].values() if len(part)]
        told = facts.tell(prepared.info[self.site], study_task(self.study).colour(parts))
        self.gate.release_findings(facts.FACTS, told, {}, round_number=0)
        return {"told": told}, {}

    def scores(self, head: Mapping[str, Any], working: Working) -> Reply:
        """Predict this site's test part with the network as it is filled, and judge that."""
        data, task = working.prepared.sets[self.site]["test"], study_task(self.study)
        folder = self.unit.folder(self.run)
        if not len(data):
            return {"told": {}}, {}
        arm, network = self.agreed.arms[self.unit.arm], working.network
        tested = iter([(self.site, data)])
        folder.mkdir(parents=True, exist_ok=True)
        task.predict(
            Trained(self.unit, self.study, arm, working.prepared, working.trainer, network.workspace, tested, folder)
        )
        settled = head.get("settled")
        if not isinstance(settled, Mapping):
            raise QuestionError("it does not say what was settled of the model")
        entry: dict[str, Any] = {"algorithm": arm.algorithm.name}
        entry |= {key: dict(settled[key]) for key in ("calibration", "rejection") if key in settled}
        return self.tell(entry, int(head.get("use", 0)))

    def tell(self, entry: Mapping[str, Any], round_number: int) -> Reply:
        """Scores of what the unit predicted here."""
        told = tell_scores(self.unit, self.site, self.role, entry, self.images(), self.study, self.run)
        self.gate.release_findings(SCORES, told.tree, told.rows, round_number=round_number)
        return {"told": told.tree}, told.rows


@dataclass(frozen=True)
class Alone:
    """A local model: trained here from its first round to its last, as in a study on one machine; only numbers leave.

    Attributes:
        telling: of its unit.
        arm: of it.
        device: where it is trained.
        keep: puts the finished model where the site's models are.
    """

    telling: Telling
    arm: Arm
    device: torch.device
    keep: Callable[[Agreed, Unit, Path], None]

    def desk(self) -> Desk:
        """Answers the questions of this unit."""
        t = self.telling
        states = RoundStates(t.run / "no-rounds")
        more = {"alone": self._train, "facts": t.facts}
        return Desk(None, states, network="", ledger=t.head, finished=self._finish, more=more)

    def _train(self, head: Mapping[str, Any]) -> Reply:
        t = self.telling
        prepared = t.images()
        if not is_done(t.unit, t.run):
            train_unit(
                t.unit,
                t.study,
                self.arm,
                prepared,
                run=t.run,
                study_folder=t.agreed.folder,
                fingerprint=sha256_text(f"{t.agreed.hash} {t.unit.key}"),
                place=Place(str(self.device)),
                report=t.report,
            )
        entry = read_unit(t.unit, t.run)
        history = tell_history(entry, t.site)
        t.gate.release_findings(HISTORY, history, {}, round_number=self.arm.federation.rounds)
        told: dict[str, Any] = {"told": {}}
        rows: Tensors = {}
        if len(prepared.sets[t.site]["test"]):
            told, rows = t.tell(entry, self.arm.federation.rounds)
        return {**told, "history": history}, rows

    def _finish(self) -> None:
        t = self.telling
        if is_done(t.unit, t.run):
            self.keep(t.agreed, t.unit, t.unit.folder(t.run) / f"{t.study.evaluation.use}.safetensors")
