"""What all ends of a unit agree on before a round: the network, what of it travels, how it is written, what may leave.

A study on one machine builds it once; over a network the coordinator and each site build it from the same study, and
compare :meth:`Network.digest`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from morphfed.core.seeding import derive
from morphfed.core.types import Spec, Tensors
from morphfed.experiment.tasks import study_task
from morphfed.federation import retrogress
from morphfed.federation.coding.wire import Coding
from morphfed.federation.secure.member import Member, Opened
from morphfed.federation.secure.rows import SummedRows
from morphfed.federation.secure.total import SecureSums
from morphfed.federation.site import UPLOAD_METRICS, Site, Workspace
from morphfed.federation.statistics import class_counts, confidence_counts, temperature_losses
from morphfed.models.backbone import Backbone, build
from morphfed.models.layout import Layout
from morphfed.privacy.egress import Declaration, EgressGate, Statistic

if TYPE_CHECKING:
    from torch import nn

    from morphfed.algorithms.base import CoordinatorHalf
    from morphfed.core.progress import Reporter
    from morphfed.experiment.study import Arm, Study
    from morphfed.experiment.units import Unit
    from morphfed.federation.secure.plan import Plan
    from morphfed.federation.transports.base import Transport
    from morphfed.privacy.ledger import Ledger
    from morphfed.privacy.noise import Noise
    from morphfed.privacy.secure.keys import Identity
    from morphfed.training.dataset import ImageSet
    from morphfed.training.trainer import Trainer


@dataclass(frozen=True)
class Network:
    """A unit's network and its declarations.

    Attributes:
        backbone: the whole network, with its preprocessing.
        initial: its state dict before round 1.
        layout, workspace: of what the rounds train, which is the classifier alone on stored features.
        coding: how uploads and downloads are written.
        declaration: what may leave a site.
        noise: what a site adds to its uploads; None: nothing.
        arm: whose network it is.
        sums: what of the uploads is summed under masks; None: they leave one by one.
    """

    backbone: Backbone
    initial: Tensors
    layout: Layout
    workspace: Workspace
    coding: Coding
    declaration: Declaration
    noise: Noise | None
    arm: Arm
    sums: Plan | None = None

    @property
    def travelling(self) -> Tensors:
        """What of the initial network crosses a site's border."""
        return {name: self.initial[name] for name in self.workspace.travels}

    def coordinator(self) -> CoordinatorHalf:
        """The algorithm's coordinator half, before round 1."""
        return self.arm.algorithm.coordinator(self.arm.config, self.travelling, self.layout)

    def secured(
        self, transport: Transport, classes: int, *, report: Reporter, task: str
    ) -> tuple[Transport, SecureSums | None]:
        """The coordinator's contact with the sites, and its end of secure sums; None: uploads come one by one.

        Args:
            transport: reaches the sites.
            classes: length of the class counts.
            report, task: progress.
        """
        if self.sums is None:
            return transport, None
        secure = SecureSums(self.sums)
        quorum = self.arm.federation.quorum
        return SummedRows(transport, secure, classes=classes, quorum=quorum, report=report, task=task), secure

    @property
    def upload_bytes(self) -> int:
        """Bytes of the tensors that leave a site in a round."""
        return self.coding.nbytes if self.sums is None else self.sums.nbytes

    def digest(self) -> str:
        """SHA-256 of the initial network: names, types, shapes and bytes, in the order of the names."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.initial.items()):
            found.update(f"{name} {Spec.of(tensor)}\n".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def whole_network(
    unit: Unit, study: Study, arm: Arm, *, folder: Path, device: torch.device
) -> tuple[Backbone, nn.Module, Tensors]:
    """The network with its initial values, on ``device``, and a copy of its state dict.

    Args:
        folder: the study file's, for weights given by a relative path.
    """
    backbone = build(
        arm.model,
        classes=study_task(study).outputs(study),
        image_size=study.data.image_size,
        seed=derive(unit.seed, "weights"),
        folder=folder,
    )
    model = backbone.module.to(device)
    if arm.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return backbone, model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def declare(unit: Unit, study: Study, arm: Arm, backbone: Backbone, model: nn.Module, initial: Tensors) -> Network:
    """Split what is trained into what travels and what stays, and declare what may leave a site.

    Args:
        model: what the rounds train: the whole network, or its classifier on stored features.
        initial: of the whole network.
    """
    layout = Layout.of(model, backbone.head)
    # A model trained at one site alone, or on pooled images, has nothing site-local: all of it is that site's.
    workspace = Workspace.of(model, layout, arm.travelling(layout) if unit.moves else None)
    uploads = arm.algorithm.uploads(arm.config, layout, {name: Spec.of(initial[name]) for name in workspace.travels})
    coding = arm.coding(layout, uploads, seed=unit.seed) if unit.moves else Coding.none(uploads)
    noise = arm.noise(layout, uploads, seed=unit.seed) if unit.moves else None
    sums = arm.sums(layout, uploads, unit=unit.key, sites=unit.trained_on) if unit.moves else None
    declaration = _declaration(unit, study, arm, coding, sums)
    return Network(backbone, initial, layout, workspace, coding, declaration, noise, arm, sums)


def _declaration(unit: Unit, study: Study, arm: Arm, coding: Coding, sums: Plan | None) -> Declaration:
    validation = study_task(study).task.validation
    written = "" if coding.plain else f"; changes of weights as {arm.federation.upload.code}"
    return Declaration(
        coding.specs,
        UPLOAD_METRICS
        | arm.algorithm.numbers
        | (retrogress.names(validation) if judges_own(unit, study) else frozenset()),
        f"{arm.algorithm.name}: {arm.algorithm.facts.travels}{written}",
        validation,
        _statistics(study, arm),
        masked=None if sums is None else sums.declared,
    )


def _statistics(study: Study, arm: Arm) -> dict[str, Statistic]:
    """Sums that may leave a site outside the rounds: none unless the study asks for what they are needed for."""
    counts = class_counts(study_task(study).outputs(study)) if shares_counts(arm) else {}
    losses = temperature_losses() if study.evaluation.calibrate == "temperature" else {}
    return counts | losses | (confidence_counts() if study.evaluation.unknown else {})


def shares_counts(arm: Arm) -> bool:
    """Whether the sites' class counts are summed: for the loss, or for the algorithm."""
    return arm.train.loss.prior == "federation" or arm.algorithm.counts(arm.config)


def judges_own(unit: Unit, study: Study) -> bool:
    """Whether each upload carries the validation metrics of the model that was just trained."""
    return study.evaluation.retrogress and unit.moves


def keeps_optimizer(unit: Unit, arm: Arm) -> bool:
    """Whether a site's moments survive from round to round."""
    return arm.train.optimizer_state == "keep" or (arm.train.optimizer_state == "auto" and not unit.moves)


def make_site(
    name: str,
    unit: Unit,
    study: Study,
    network: Network,
    trainer: Trainer,
    *,
    train: ImageSet,
    validation: Mapping[str, ImageSet],
    ledger: Path | Ledger | None,
    opened: Path | None = None,
    identity: Identity | None = None,
) -> Site:
    """A site of this process, on a unit's network.

    Args:
        name: the site's.
        unit, study, network, trainer: what is trained, and how.
        train, validation: its images; validation sets by the name under which they are reported.
        ledger: where its gate writes down what leaves.
        opened: file of the rounds whose secure sums it has helped to open; None: in memory.
        identity: signs its keys of secure sums; None: nobody's are signed.
    """
    gate = EgressGate(name, network.declaration, ledger)
    member = None
    if network.sums is not None:
        member = Member(name, network.sums, gate, opened=Opened(opened), identity=identity)
    return Site(
        name,
        train=train,
        validation=validation,
        trainer=trainer,
        workspace=network.workspace,
        half=network.arm.algorithm.site(network.arm.config),
        gate=gate,
        measure=study_task(study).validation_metrics,
        keep_optimizer=keeps_optimizer(unit, network.arm),
        judges_own=judges_own(unit, study),
        coding=network.coding,
        noise=network.noise,
        member=member,
    )
