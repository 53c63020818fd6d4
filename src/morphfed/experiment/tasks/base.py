"""The interface of a task within a study. Arms, units, rounds, resuming and reporting are the same for every task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from morphfed.core.errors import ConfigError
from morphfed.core.progress import Reporter, silent
from morphfed.experiment.assemble import LeftOut, site_scales
from morphfed.experiment.pictures import colour
from morphfed.experiment.stock import Pictures, Stock
from morphfed.models.bags import takes_bags
from morphfed.tasks.survival import SurvivalLossConfig

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from morphfed.data.manifest import Manifest
    from morphfed.data.quality import CheckReport
    from morphfed.data.scale import SiteScale
    from morphfed.evaluation.compare import UnitPredictions
    from morphfed.evaluation.predictions import ClusterUnit, Judged
    from morphfed.evaluation.scores import Scores
    from morphfed.evaluation.site import Role
    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.study import Arm, Study
    from morphfed.experiment.units import Unit
    from morphfed.federation.site import Workspace
    from morphfed.tasks.base import Task
    from morphfed.training.dataset import ImageSet
    from morphfed.training.trainer import Trainer

MakeSet = Callable[..., "ImageSet"]
"""Prepared rows, and ``store``, ``rows``, ``ids``, ``clusters`` of an image set → the set with its targets."""


@dataclass(frozen=True)
class Selected:
    """Which images of a study take part, and where.

    Attributes:
        manifest: with ``split``, ``class`` (null for an image that takes no part) and ``parent`` (a coarser label of an
            image that only trains, else null).
        left_out: by site.
        split_notes: sentences of the split, each beginning with its site's name.
        notes: other sentences.
    """

    manifest: Manifest
    left_out: LeftOut
    split_notes: list[str]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """A unit whose rounds are over, ready to predict.

    Attributes:
        unit, study, arm, prepared: what was trained on what.
        trainer, workspace: its training loop and network.
        tested: each site whose test images the unit predicts; while it is yielded the network is filled as that site
            would use it.
        folder: the unit's.
    """

    unit: Unit
    study: Study
    arm: Arm
    prepared: Prepared
    trainer: Trainer
    workspace: Workspace
    tested: Iterator[tuple[str, ImageSet]]
    folder: Path


@dataclass(frozen=True)
class Judgement:
    """What a unit said of every site's test images.

    Attributes:
        found: by site, as it is judged.
        versions: for each of the task's options that the study asked for, what the unit said with it and without it.
    """

    found: Mapping[str, Judged]
    versions: Mapping[str, tuple[Mapping[str, Judged], Mapping[str, Judged]]] = field(default_factory=dict)


def refuse_unfit(arm: Arm, task: str, where: str) -> None:
    """Refuse an arm whose algorithm is not defined for a task with the keys that it has.

    Raises:
        ConfigError: says why.
    """
    if why := arm.algorithm.unfit(arm.config, task):
        raise ConfigError(
            f"{where}: '{arm.algorithm.name}' is not defined for task = '{task}' as it is set: {why}.",
            fix=f"change the key; `morphfed show {arm.algorithm.name}` explains each.",
        )


def refuse_survival(study: Study, arms: Mapping[str, Arm], where: str) -> None:
    """Refuse what belongs to survival in a study of something else.

    Raises:
        ConfigError: names the key.
    """
    keys = {"data.time_edges": not study.data.time_edges}
    keys |= {f"arms.{n}: train.survival_loss": a.train.survival_loss == SurvivalLossConfig() for n, a in arms.items()}
    for key, unused in keys.items():
        if not unused:
            raise ConfigError(f"{where}: {key} is of survival.", fix="remove it, or set task = 'survival'.")


def refuse_bags(study: Study, arm: Arm, where: str) -> None:
    """Refuse what belongs to bags in a study of pictures.

    Raises:
        ConfigError: names the key.
    """
    if takes_bags(arm.model):
        raise ConfigError(
            f"{where}: model.name = '{arm.model.name}' takes bags of features.",
            fix="set task = 'mil', or name a network for pictures.",
        )
    for key, unused in (
        ("model.options", not arm.model.options),
        ("model.dim", arm.model.dim is None),
        ("train.max_instances", arm.train.max_instances is None),
        ("data.encoder", study.data.encoder is None),
    ):
        if not unused:
            raise ConfigError(f"{where}: {key} is of bags.", fix=f"remove {key}, or set task = 'mil'.")


class StudyTask(ABC):
    """What a study does differently for each task.

    Attributes:
        task: for the training loop.
        unit: what one prediction is of, and what the bootstrap draws where no patient or lesion is known.
        primary: the metric that the report is about.
        options: keys of ``evaluation`` whose change is measured, and in which metrics.
    """

    task: ClassVar[Task]
    unit: ClassVar[ClusterUnit] = "image"
    primary: ClassVar[str]
    options: ClassVar[Mapping[str, tuple[str, ...]]]

    # ── the study file ──────────────────────────────────────────────────────────────────────────────────────
    @abstractmethod
    def check(self, study: Study, arms: Mapping[str, Arm], *, where: str) -> None:
        """Refuse settings that mean nothing in this task.

        Raises:
            ConfigError: names the key.
        """

    @abstractmethod
    def outputs(self, study: Study) -> int:
        """Channels of the network's logits."""

    @abstractmethod
    def describe(self, study: Study) -> dict[str, Any]:
        """What results.json says of the task: ``classes``, ``structures``."""

    @abstractmethod
    def card(self, study: Study) -> dict[str, Any]:
        """What a saved model says of its outputs."""

    # ── the data ────────────────────────────────────────────────────────────────────────────────────────────
    @abstractmethod
    def select(self, manifest: Manifest, study: Study, *, look: bool = True, report: Reporter = silent) -> Selected:
        """Decide which images take part, and in which part.

        Args:
            manifest: all sites.
            study: what is looked for, held-out sites, shares.
            look: read the training sites' images so that near-duplicates stay on one side of the split.
            report: progress.

        Raises:
            DataError: a site has no image that can be used; names it.
        """

    def scales(self, manifest: Manifest, study: Study, *, report: Reporter = silent) -> dict[str, SiteScale]:
        """µm per pixel of each site: given, estimated from its nuclei, or unknown."""
        return site_scales(manifest, study, report=report)

    def stock(self, study: Study, run: Path, cache: Path) -> Stock:
        """What the images are read from."""
        return Pictures(study, run, cache)

    def check_data(self, manifest: Manifest, study: Study, *, report: Reporter) -> CheckReport:
        """The data check that runs before training."""
        from morphfed.data.quality import check

        classes = study.classes or None
        least = study.data.min_per_class
        return check(manifest, classes=classes, labelled=bool(classes), min_per_class=least, report=report)

    def typical_bag(self, rows: pd.DataFrame) -> int | None:
        """Instances of the median bag, for a plan's estimate; None where a study has no bags."""
        return None

    def fitted(self, arms: Mapping[str, Arm], prepared: pd.DataFrame | Prepared) -> Mapping[str, Arm]:
        """The arms with what their networks take from the data.

        Args:
            arms: by name.
            prepared: the prepared data, or in a plan the manifest's rows with their ``class``.
        """
        return arms

    @abstractmethod
    def with_targets(self, prepared: pd.DataFrame, frame: pd.DataFrame, study: Study) -> pd.DataFrame:
        """The prepared rows with what :meth:`targets` will ask.

        Args:
            prepared: rows to be kept in the run folder.
            frame: the same rows of the manifest, with ``um_per_px`` of file or site.
            study: the study.
        """

    def meaning(self, study: Study) -> dict[str, Any]:
        """What the targets stand for beyond what the study says, to be kept with them in the run folder."""
        return {}

    @abstractmethod
    def targets(
        self,
        frame: pd.DataFrame,
        study: Study,
        meaning: Mapping[str, Any],
        run: Path,
        cache: Path,
        *,
        report: Reporter,
        workers: int | None,
        build: bool,
    ) -> MakeSet:
        """Make sure that every target is there.

        Args:
            frame: prepared rows whose pictures are in the cache.
            study: the study.
            meaning: of :meth:`meaning`, as it was kept.
            run, cache: folders.
            report, workers: of what has to be read.
            build: False in worker processes, where the cache is known to be complete.
        """

    @abstractmethod
    def counts(self, rows: pd.DataFrame, study: Study) -> dict[str, Any]:
        """What a site's block says of its prepared rows."""

    @abstractmethod
    def uncount(self, block: dict[str, Any], rows: pd.DataFrame) -> None:
        """Take rows that cannot be read out of :meth:`counts`."""

    @abstractmethod
    def refuse(self, parts: Sequence[ImageSet], study: Study) -> None:
        """Refuse training parts that together teach nothing.

        Raises:
            ConfigError: says what is missing.
        """

    def training_part(self, data: ImageSet, arm: Arm) -> ImageSet:
        """A site's training part as an arm wants it handed out."""
        return data

    def colour(self, parts: Sequence[ImageSet]) -> dict[str, list[float]] | None:
        """Mean and sd of R, G and B in [0, 1] over a site's pictures; None where there are none."""
        return colour(parts)

    @abstractmethod
    def samples(self, site: str, parts: Sequence[ImageSet], study: Study) -> list[dict[str, str]]:
        """A few of a site's pictures as the models see them."""

    # ── a unit ──────────────────────────────────────────────────────────────────────────────────────────────
    @abstractmethod
    def validation_metrics(self, truth: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
        """What a site reports of its validation part each round, named in ``task.validation``."""

    @abstractmethod
    def predict(self, trained: Trained) -> None:
        """Write what a trained unit says of every site's test images into its folder."""

    @abstractmethod
    def judge(
        self, unit: Unit, entry: dict[str, Any], roles: Mapping[str, Role], prepared: Prepared, study: Study, run: Path
    ) -> Judgement:
        """Read what :meth:`predict` wrote, put ``sites`` into the unit's entry, and return what was judged."""

    @abstractmethod
    def scores(
        self, units: Sequence[UnitPredictions], *, metrics: Sequence[str] | None = None, resamples: int, seed: int = 0
    ) -> Scores:
        """Vectors of all units; see :class:`morphfed.evaluation.scores.Scores`."""


class TellingTask(StudyTask):
    """A task whose scores may leave a site, so that a report can be written over a network; predictions may not."""

    def refuse_apart(self, study: Study, arms: Mapping[str, Arm], *, where: str) -> None:
        """Refuse a study that leaves open what only the data of all sites together would tell.

        Raises:
            ConfigError: names the key.
        """

    @abstractmethod
    def every_metric(self, study: Study) -> tuple[str, ...]:
        """Metrics whose vectors a site tells: all that a summary may want."""

    @abstractmethod
    def places(self, study: Study) -> Mapping[tuple[str, ...], int]:
        """Where numbers stand in what a site tells of a model's block, and how many there may be."""

    @abstractmethod
    def tell(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers of a site's block, without words and single images."""

    @abstractmethod
    def retell(self, told: Mapping[str, Any], study: Study, *, role: Role, cluster_unit: ClusterUnit) -> dict[str, Any]:
        """The block again, its words put back.

        Raises:
            KeyError, TypeError, ValueError: a number is missing, or does not fit the others.
        """
