"""DET: a personal model that never leaves its site, and a deputy that travels, teach each other in three stages.

Chen et al., MICCAI 2021 and IEEE TMI 2022 (see ``fourier.py``): deputy-enhanced transfer. Before each pass both models
are judged; with f_p and f_d their scores and α1 ≤ α2:

* *recover*, while ``f_d < α1 f_p``: the deputy, bent by the aggregation, learns from the personal model;
* *exchange*, from ``f_d ≥ α1 f_p``: each learns from the other;
* *sublimate*, from ``f_d ≥ α2 f_p``: the personal model learns from the deputy.

A student adds ``KL(teacher ‖ student)`` at temperature 1, mean over the batch, to its loss; no gradient reaches the
teacher. As in the authors' code each round begins anew with *recover*, and a stage is entered only from the one before,
so *sublimate* needs three passes a round; a round of one pass, whole or (with ``train.local_steps``) begun,
is *exchange*.

* Scores are taken on the site's validation part, as the papers define them; the authors' code takes the augmented
  training part, which ``criterion = "training"`` does without the augmentation.
* Both models meet the same batches. Each has an optimiser of its own.
* Of masks KL is the mean over pixels too, and the score the mean Dice.
* The site is judged by its personal model. A newcomer has none: it gets what is made of the deputies.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Answer, Facts, SiteHalf, SiteWork
from morphfed.algorithms.fedavg import FedAvgConfig, averaging, mean_alone
from morphfed.algorithms.prr.objective import Objective
from morphfed.core.errors import TrainingError
from morphfed.core.types import Tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

PERSONAL = "personal/"
"""Prefix of the personal model in the state of a site."""

DEPUTY_SLOT, PERSONAL_SLOT = "model", "personal"

RECOVER, EXCHANGE, SUBLIMATE = 1, 2, 3


class DeputyConfig(AlgorithmConfig):
    """Keys of DET."""

    alpha1: float = Field(0.7, ge=0, le=1, description="α1, share of the personal model's score at which both exchange")
    alpha2: float = Field(0.9, ge=0, le=1, description="α2, share at which only the personal model learns")
    criterion: Literal["validation", "training"] = Field(
        "validation", description="the site's part on which both are judged before each pass"
    )
    metric: Literal["macro_f1", "balanced_accuracy", "dice", "iou"] = Field(
        "macro_f1", description="the score; of masks dice where it is not said"
    )

    @model_validator(mode="after")
    def _in_order(self) -> DeputyConfig:
        if self.alpha1 > self.alpha2:
            raise ValueError(f"alpha1 = {self.alpha1:g} must not be above alpha2 = {self.alpha2:g}")
        return self


def next_stage(stage: int, personal: float, deputy: float, *, alpha1: float, alpha2: float) -> int:
    """The stage of the next pass.

    Args:
        stage: of the pass before; 0 at the start of a round.
        personal, deputy: f_p and f_d.
        alpha1, alpha2: thresholds.
    """
    if stage == 0 or deputy < alpha1 * personal:
        return RECOVER
    if stage == RECOVER or deputy < alpha2 * personal:
        return EXCHANGE
    return SUBLIMATE


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """``KL(teacher ‖ student)`` of logits ``(n, C, ...)``, mean over batch and pixels; the teacher gets no gradient."""
    wanted = F.log_softmax(teacher.detach().float(), dim=1)
    each = F.kl_div(F.log_softmax(student.float(), dim=1), wanted, reduction="batchmean", log_target=True)
    return each / math.prod(student.shape[2:])


def lessons(stage: int, deputy: Tensor, personal: Tensor) -> list[Tensor]:
    """What the stage adds to the two losses, from logits ``(n, C, ...)``."""
    found = []
    if stage in (RECOVER, EXCHANGE):
        found.append(distance(personal, deputy))
    if stage in (EXCHANGE, SUBLIMATE):
        found.append(distance(deputy, personal))
    return found


class DeputySite(SiteHalf):
    """Train the deputy and the personal model side by side; upload the deputy.

    Args:
        config: thresholds and criterion.
        objective: what both minimise beside the lessons.
    """

    def __init__(self, config: DeputyConfig, objective: Objective) -> None:
        self._config, self._objective = config, objective

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """One round; before the first the personal model is a copy of the download."""
        personal = copy.deepcopy(work.model)
        _load(personal, {name.removeprefix(PERSONAL): t for name, t in work.state.items() if name.startswith(PERSONAL)})
        stage = 0

        def judge(epoch: int, passes: int) -> None:
            nonlocal stage
            if passes == 1:
                stage = EXCHANGE
            elif epoch == 0:
                stage = RECOVER  # whatever the scores are
            else:
                mine, sent = self._score(work, personal), self._score(work, work.model)
                stage = next_stage(stage, mine, sent, alpha1=self._config.alpha1, alpha2=self._config.alpha2)

        def teach(_: Tensor, logits: list[Tensor]) -> list[Tensor]:
            return lessons(stage, *logits)

        with self._objective.of(work, download, personal) as aim:
            report = work.fit_together(
                {DEPUTY_SLOT: work.model, PERSONAL_SLOT: personal},
                teach,
                losses=aim.by_slot(watched=PERSONAL_SLOT, others=[DEPUTY_SLOT]),
                before_epoch=judge,
            )
        state = personal.state_dict()
        work.state.update({PERSONAL + name: state[name].clone() for name in work.layout.order})
        return Answer({**work.current(), **aim.uploads()}, report)

    def personal(self, state: Tensors) -> Tensors:
        """p_k; before the first round there is none."""
        return {name.removeprefix(PERSONAL): t for name, t in state.items() if name.startswith(PERSONAL)}

    def _score(self, work: SiteWork, model: nn.Module) -> float:
        found = work.judge(model, self._config.criterion)
        if found is None or self._config.metric not in found:
            lacking = "there are no validation images" if found is None else "no validation image shows a structure"
            raise TrainingError(
                f"Site '{work.site}', round {work.round}: {lacking} to compare deputy and personal model on.",
                fix="give the site a validation part (data.split.validation), or set criterion = 'training'.",
            )
        return found[self._config.metric]


@torch.no_grad()
def _load(model: nn.Module, tensors: Tensors) -> None:
    if tensors:
        state = model.state_dict()
        torch._foreach_copy_([state[name] for name in tensors], list(tensors.values()))


class DetConfig(FedAvgConfig, DeputyConfig):
    """Keys of DET under the mean."""


def twice(config: AlgorithmConfig, local_epochs: int) -> int:
    """A site trains two models."""
    return 2 * local_epochs


OF_MASKS: Mapping[str, Mapping[str, Any]] = MappingProxyType({"segmentation": MappingProxyType({"metric": "dice"})})
"""Defaults by task."""


def unfit(config: AlgorithmConfig, task: str) -> str:
    """The score must be one of the task, and what the models teach each other a distribution over classes."""
    if task == "survival":
        return "its two models teach each other by probabilities of classes, and survival has hazards"
    metric = cast("DeputyConfig", config).metric
    of_masks = metric in ("dice", "iou")
    if of_masks == (task == "segmentation"):
        return ""
    return f"metric = '{metric}' is a score of {'masks' if of_masks else 'classes'}"


def two_models_note(config: AlgorithmConfig, sites: int) -> str:
    """What the report says."""
    return "each site also trains its personal model: twice the steps of FedAvg a round"


ALGORITHMS.register("det")(
    Algorithm(
        name="det",
        title="deputy-enhanced transfer, under the mean",
        paper="Chen et al., MICCAI 2021 and IEEE TMI 2022",
        equation="d_k: L(d) + [recover, exchange] KL(p ‖ d);  p_k: L(p) + [exchange, sublimate] KL(d ‖ p);  "
        "d ← Σ_k (n_k / n) d_k",
        config=DetConfig,
        site=lambda config: DeputySite(cast("DetConfig", config), Objective()),
        coordinator=averaging,
        facts=Facts(
            travels="the deputy, both ways",
            stays="images, labels, optimiser state, the personal model",
            memory="2 models, whatever the number of sites; a site 2 networks while it trains",
            cost="2 × local training, and a prediction of the validation part by both models before each pass but one",
        ),
        newcomer=lambda config: "the mean of the deputies",
        passes=twice,
        note=two_models_note,
        unfit=unfit,
        defaults=OF_MASKS,
        sums=mean_alone,
    )
)
