"""Multiple-instance learning: one class a bag; what is judged is what classification judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from morphfed.core.errors import ConfigError, ModelError
from morphfed.core.progress import Reporter, silent
from morphfed.data.augment import AugmentConfig
from morphfed.data.scale import SiteScale
from morphfed.evaluation.predictions import ClusterUnit
from morphfed.evaluation.site import Role, evaluate_site
from morphfed.experiment.attention import ATTENTION, examine, read_examined, write_examined
from morphfed.experiment.bags import Sought, classes_sought, select_bags
from morphfed.experiment.stock import BagStock, Stock
from morphfed.experiment.tasks.base import Judgement, MakeSet, Selected, Trained, refuse_survival, refuse_unfit
from morphfed.experiment.tasks.classification import PREDICTIONS, ClassificationStudy, read_judged
from morphfed.models.bags import takes_bags
from morphfed.models.tuning import FULL
from morphfed.tasks.base import Task
from morphfed.tasks.mil import MIL
from morphfed.tasks.segmentation import MaskLossConfig
from morphfed.training.bags import BagSet
from morphfed.training.dataset import ImageSet

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from morphfed.data.manifest import Manifest
    from morphfed.data.quality import CheckReport
    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.study import Arm, Study
    from morphfed.experiment.units import Unit


def in_rows(part: pd.DataFrame) -> dict[str, Any]:
    """What prepared rows say of the bags of a set, whatever is predicted of them: ``labels``, ``sizes`` and ``dim``."""
    return {
        "labels": part["label"].to_numpy(dtype=np.int64),
        "sizes": part["instances"].to_numpy(dtype=np.int64),
        "dim": int(part["dim"].iloc[0]) if len(part) else 1,
    }


class MilStudy(ClassificationStudy):
    """See :class:`StudyTask`."""

    task: ClassVar[Task] = MIL
    unit: ClassVar[ClusterUnit] = "bag"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"calibrate": ("ece",)}

    # ── the study file ──────────────────────────────────────────────────────────────────────────────────────
    def check(self, study: Study, arms: Mapping[str, Arm], *, where: str) -> None:
        """Networks take bags, and what is about pictures is left at its default."""
        refuse_pictures(study, where)
        refuse_survival(study, arms, where)
        for name, arm in arms.items():
            self.check_arm(arm, study, f"{where}: arms.{name}")
            if arm.train.mask_loss != MaskLossConfig():
                raise ConfigError(f"{where}: arms.{name}: train.mask_loss is of masks.", fix="use train.loss.")

    def check_arm(self, arm: Arm, study: Study, at: str) -> None:
        """What every task over bags asks of an arm."""
        if not takes_bags(arm.model):
            raise ConfigError(
                f"{at}: model.name = '{arm.model.name}' takes pictures; bags need a head that pools them.",
                fix="write model.name = 'mil/gated_abmil'; `morphfed list heads` prints the others.",
            )
        if arm.model.tune != FULL or arm.model.norm == "group":
            key = "tune" if arm.model.tune != FULL else "norm"
            raise ConfigError(
                f"{at}: model.{key} = '{getattr(arm.model, key)}' is of networks for pictures.",
                fix=f"remove model.{key}.",
            )
        if self.task.name not in arm.algorithm.tasks:
            raise ConfigError(
                f"{at}: '{arm.algorithm.name}' is defined for a classifier's features, one vector an image; a bag "
                "has one an instance.",
                fix="choose another algorithm; `morphfed list algorithms` shows them.",
            )
        if arm.federation.select not in self.task.validation:
            raise ConfigError(
                f"{at}: federation.select = '{arm.federation.select}' is not computed with task = '{self.task.name}'.",
                fix=f"choose {' or '.join(sorted(self.task.validation - {'loss'}))}.",
            )
        if arm.train.augment != AugmentConfig():
            raise ConfigError(f"{at}: train.augment is of pictures.", fix="remove train.augment.")
        refuse_unfit(arm, self.task.name, at)
        _try_head(arm, self.outputs(study), at)

    def refuse_apart(self, study: Study, arms: Mapping[str, Arm], *, where: str) -> None:
        """See the base class: the width and the encoder of the features."""
        for name, arm in arms.items():
            if arm.model.dim is None:
                raise ConfigError(
                    f"{where}: arms.{name}: model.dim is not set, and over a network nobody sees all sites' bags.",
                    fix="write model.dim = the width of the features, such as 1024.",
                )
        if study.data.encoder is None:
            raise ConfigError(
                f"{where}: data.encoder is not set, and over a network nobody sees all sites' bags: features of two "
                "encoders would be averaged without a word.",
                fix="write data.encoder = the encoder that all sites agreed on, as their files name it.",
            )

    # ── the data ────────────────────────────────────────────────────────────────────────────────────────────
    def select(self, manifest: Manifest, study: Study, *, look: bool = True, report: Reporter = silent) -> Selected:
        """Bags with a class, instances and finite features."""
        return Selected(*select_bags(manifest, study, self.sought(study), look=look, report=report))

    def sought(self, study: Study) -> Sought:
        """Bags of a class."""
        return classes_sought(study)

    def scales(self, manifest: Manifest, study: Study, *, report: Reporter = silent) -> dict[str, SiteScale]:
        """Features have no µm."""
        return dict.fromkeys(study.sites, SiteScale(None, "none"))

    def stock(self, study: Study, run: Path, cache: Path) -> Stock:
        """Bags stay where they are."""
        return BagStock(study, run)

    def with_targets(self, prepared: pd.DataFrame, frame: pd.DataFrame, study: Study) -> pd.DataFrame:
        """The index of each bag's class."""
        index = {name: i for i, name in enumerate(study.classes)}
        return prepared.assign(label=[index[name] for name in frame["class"]])

    def meaning(self, study: Study) -> dict[str, Any]:
        """Classes say all."""
        return {}

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
        """Labels are in the rows."""

        def make(part: pd.DataFrame, **known: Any) -> ImageSet:
            return BagSet(classes=len(study.classes), **in_rows(part), **known)

        return make

    def counts(self, rows: pd.DataFrame, study: Study) -> dict[str, Any]:
        """Bags of each class in each part, and how long they are."""
        return {**super().counts(rows, study), "bags": self.lengths(rows)}

    def lengths(self, rows: pd.DataFrame) -> dict[str, Any]:
        """How many instances bags have, of which width, by which encoder."""
        sizes = rows["instances"].to_numpy(dtype=np.int64)
        encoders = sorted({str(e) for e in rows["encoder"].dropna()})
        quartiles = np.percentile(sizes, (0, 25, 50, 75, 100)) if len(sizes) else np.zeros(5)
        return {
            "instances": int(sizes.sum()),
            "quartiles": [float(q) for q in quartiles],
            "dim": int(rows["dim"].iloc[0]) if len(rows) else None,
            "encoder": encoders[0] if encoders else None,
        }

    def typical_bag(self, rows: pd.DataFrame) -> int | None:
        """The median over the bags that take part."""
        return int(rows[rows["class"].notna()]["instances"].median())

    def fitted(self, arms: Mapping[str, Arm], prepared: pd.DataFrame | Prepared) -> dict[str, Arm]:
        """Arms whose network takes features as wide as the bags have.

        Raises:
            ConfigError: ``model.dim`` is another width.
        """
        from dataclasses import replace

        dim = _dim_of(prepared)
        for name, arm in arms.items():
            if arm.model.dim not in (None, dim):
                raise ConfigError(
                    f"arms.{name}: model.dim = {arm.model.dim}, and the bags have {dim} numbers an instance.",
                    fix="remove model.dim, or name bags of that encoder.",
                )
        return {name: replace(a, model=a.model.model_copy(update={"dim": dim})) for name, a in arms.items()}

    def check_data(self, manifest: Manifest, study: Study, *, report: Reporter) -> CheckReport:
        """Bags are looked at as bags."""
        from morphfed.data.bags.quality import check_bags

        return check_bags(manifest, classes=study.classes, min_per_class=study.data.min_per_class)

    def training_part(self, data: ImageSet, arm: Arm) -> ImageSet:
        """With as many instances of a bag in each step as the arm says."""
        from dataclasses import replace

        return replace(data, max_instances=arm.train.max_instances)  # type: ignore[call-arg]  # a BagSet

    def samples(self, site: str, parts: Sequence[ImageSet], study: Study) -> list[dict[str, str]]:
        """Features are nothing to look at."""
        return []

    def colour(self, parts: Sequence[ImageSet]) -> dict[str, list[float]] | None:
        """Features have none."""
        return None

    # ── a unit ──────────────────────────────────────────────────────────────────────────────────────────────
    def predict(self, trained: Trained) -> None:
        """Probabilities of every site's test bags, and where a few of them were looked at."""
        examined: dict[str, list[dict[str, Any]]] = {}
        shown = trained.study.evaluation.images and trained.unit.seed == trained.study.seeds[0]

        def looked(name: str, data: ImageSet) -> ImageSet:
            if shown and isinstance(data, BagSet):
                told = partial(_told, data, trained.study.classes)
                examined[name] = examine(trained.workspace.model, data, trained.trainer.device, told)
            return data

        self._predict(trained, ((name, looked(name, data)) for name, data in trained.tested))
        if examined:
            write_examined(trained.folder / ATTENTION, examined)

    def judge(
        self, unit: Unit, entry: dict[str, Any], roles: Mapping[str, Role], prepared: Prepared, study: Study, run: Path
    ) -> Judgement:
        """At the unit's temperature; without pictures of mistakes."""
        raw = read_judged(unit, run, PREDICTIONS, prepared)
        temperature = entry.get("calibration", {}).get("temperature")
        found = {site: p.tempered(temperature or 1.0) for site, p in raw.items()}
        resamples = study.evaluation.resamples
        examined = read_examined(unit.folder(run) / ATTENTION)
        entry["sites"] = {
            site: evaluate_site(p, role=roles[site], resamples=resamples, seed=0)
            | ({"attention": examined[site]} if examined.get(site) else {})
            for site, p in found.items()
        }
        return Judgement(found, {"calibrate": (found, raw)} if temperature is not None else {})


def _told(data: BagSet, classes: Sequence[str], number: int, logits: Tensor) -> tuple[str, str]:
    """The class of a bag and the one it was taken for."""
    return classes[int(data.labels[number])], classes[int(logits.argmax())]


def refuse_pictures(study: Study, where: str) -> None:
    """Refuse what is about pictures in a study of bags.

    Raises:
        ConfigError: names the key.
    """
    e = study.evaluation
    for key, unused, why in (
        ("evaluation.views", e.views == 1, "turns pictures"),
        ("evaluation.adapt", e.adapt == "none", "re-estimates batch norms of pictures"),
        ("evaluation.unknown", not e.unknown, "is about types of cells"),
        ("data.coarse", study.data.coarse == "leave_out", "is about types of cells"),
        ("data.split.leaky_published", study.data.split.leaky_published is None, "lists pictures"),
    ):
        if not unused:
            fix = "remove it; bags have the option splits" if "published" in key else "remove it"
            raise ConfigError(f"{where}: {key} {why}, and a study of bags has none.", fix=f"{fix}.")
    for name, site in study.sites.items():
        if site.mask_values:
            raise ConfigError(f"{where}: sites.{name}.mask_values is of masks.", fix="remove it.")


def _try_head(arm: Arm, outputs: int, at: str) -> None:
    """Build a narrow head, so that a wrong name or option is refused before any data are read."""
    from morphfed.models.backbone import build

    narrow = arm.model.model_copy(update={"dim": arm.model.dim or 8, "weights": "none"})
    try:
        build(narrow, classes=outputs, image_size=16, seed=0)
    except (ConfigError, ModelError) as cause:
        raise ConfigError(f"{at}: {cause.message}", fix=cause.fix) from cause


def _dim_of(prepared: pd.DataFrame | Prepared) -> int:
    import pandas as pd

    if isinstance(prepared, pd.DataFrame):
        return int(prepared[prepared["class"].notna()]["dim"].iloc[0])
    sets = [data for parts in prepared.sets.values() for data in parts.values() if len(data)]
    first = sets[0]
    assert isinstance(first, BagSet)
    return first.dim
