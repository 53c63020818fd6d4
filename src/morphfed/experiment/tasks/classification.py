"""Classification: one class an image, probabilities, and what is judged of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from morphfed.core.errors import ConfigError
from morphfed.core.progress import Reporter, silent
from morphfed.core.seeding import numpy_stream
from morphfed.evaluation.metrics import balanced_accuracy, confusion, macro_f1
from morphfed.evaluation.predictions import Predictions, read_predictions, write_predictions
from morphfed.evaluation.scores import Scores, UnitPredictions
from morphfed.evaluation.site import Role, adaptation, calibration_error, evaluate_site
from morphfed.evaluation.unknown import Strangers, judge_strangers, read_strangers, write_strangers
from morphfed.experiment.assemble import column, label_and_split
from morphfed.experiment.pictures import data_uri
from morphfed.experiment.tasks.base import MakeSet, Selected, StudyTask, Trained
from morphfed.models.backbone import draws_masks
from morphfed.models.norm import batch_norms
from morphfed.tasks.base import Task
from morphfed.tasks.classification import CLASSIFICATION
from morphfed.tasks.segmentation import MaskLossConfig
from morphfed.training.dataset import ImageSet

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from morphfed.data.manifest import Manifest
    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.study import Arm, Study
    from morphfed.experiment.units import Unit
    from morphfed.federation.site import Workspace

PREDICTIONS = "predictions.parquet"
ADAPTED = "adapted.parquet"
STRANGERS = "unknown.parquet"
NO_CLASS = -1
SAMPLES_PER_CLASS = 2


class ClassificationStudy(StudyTask):
    """See :class:`StudyTask`."""

    task: ClassVar[Task] = CLASSIFICATION
    primary: ClassVar[str] = "balanced_accuracy"

    def check(self, study: Study, arms: Mapping[str, Arm], *, where: str) -> None:
        """Classes are nodes of the ontology, networks are classifiers."""
        from morphfed.data.ontology import load_ontology

        load_ontology().resolve_classes(study.classes)
        for name, arm in arms.items():
            if draws_masks(arm.model):
                raise ConfigError(
                    f"{where}: arms.{name}: model.name = '{arm.model.name}' draws masks; a study of classes needs a "
                    "classifier.",
                    fix="name a classifier, or set task = 'segmentation'.",
                )
            if arm.federation.select not in self.task.validation:
                raise ConfigError(
                    f"{where}: arms.{name}: federation.select = '{arm.federation.select}' is of masks.",
                    fix="choose balanced_accuracy or macro_f1.",
                )
            if arm.train.mask_loss != MaskLossConfig():
                raise ConfigError(
                    f"{where}: arms.{name}: train.mask_loss is of masks.", fix="use train.loss for classes."
                )
        for name, site in study.sites.items():
            if site.mask_values:
                raise ConfigError(
                    f"{where}: sites.{name}.mask_values is of masks.", fix="remove it, or set task = 'segmentation'."
                )

    def outputs(self, study: Study) -> int:
        """One for each class."""
        return len(study.classes)

    def describe(self, study: Study) -> dict[str, Any]:
        """The classes."""
        return {"classes": list(study.classes)}

    def card(self, study: Study) -> dict[str, Any]:
        """The classes."""
        return {"classes": list(study.classes)}

    def select(self, manifest: Manifest, study: Study, *, look: bool = True, report: Reporter = silent) -> Selected:
        """Images whose label is in one of the classes."""
        return Selected(*label_and_split(manifest, study, look=look, report=report))

    def with_targets(self, prepared: pd.DataFrame, frame: pd.DataFrame, study: Study) -> pd.DataFrame:
        """The index of each image's class, -1 for cells of none."""
        index = {name: i for i, name in enumerate(study.classes)}
        labels = [NO_CLASS if name is None else index[name] for name in column(frame, "class")]
        return prepared.assign(label=labels)

    def targets(
        self,
        frame: pd.DataFrame,
        study: Study,
        run: Path,
        cache: Path,
        *,
        report: Reporter,
        workers: int | None,
        build: bool,
    ) -> MakeSet:
        """Labels are in the rows."""

        def make(part: pd.DataFrame, **known: Any) -> ImageSet:
            return ImageSet(labels=part["label"].to_numpy(dtype=np.int64), classes=len(study.classes), **known)

        return make

    def counts(self, rows: pd.DataFrame, study: Study) -> dict[str, Any]:
        """Images of each class in each part."""
        parts = ("train", "validation", "test")
        counts = {
            name: {part: int(((rows["label"] == i) & (rows["split"] == part)).sum()) for part in parts}
            for i, name in enumerate(study.classes)
        }
        return {"classes": counts}

    def uncount(self, block: dict[str, Any], rows: pd.DataFrame) -> None:
        """See the base class."""
        names = list(block["classes"])
        for label, split in zip(rows["label"], rows["split"], strict=True):
            block["classes"][names[int(label)]][split] -= 1

    def refuse(self, parts: Sequence[ImageSet], study: Study) -> None:
        """Two classes at least."""
        if np.count_nonzero(np.sum([part.class_counts for part in parts], axis=0)) < 2:
            without = f" without {', '.join(study.held_out)}" if study.held_out else ""
            raise ConfigError(
                f"All training images{without} are of one class.", fix="name other classes, or bring other sites."
            )

    def samples(self, site: str, parts: Sequence[ImageSet], study: Study) -> list[dict[str, str]]:
        """A few pictures of each class."""
        found = []
        rows = np.concatenate([p.rows for p in parts])
        labels = np.concatenate([p.labels for p in parts])
        for index, name in enumerate(study.classes):
            here = rows[labels == index]
            chosen = numpy_stream(0, "samples", site, name).permutation(len(here))[:SAMPLES_PER_CLASS]
            for row in here[np.sort(chosen)]:
                found.append({"class": name, "image": data_uri(parts[0].store.gather(np.array([row]))[0])})
        return found

    def validation_metrics(self, truth: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
        """See :func:`validation_metrics`."""
        return validation_metrics(truth, answers)

    def predict(self, trained: Trained) -> None:
        """Probabilities of every site's test images; of cells of none of the classes; of the former, adapted."""
        study, prepared, network = trained.study, trained.prepared, trained.workspace.model
        views, trainer = study.evaluation.views, trained.trainer
        found, strangers, adapted = {}, {}, {}
        for name, data in trained.tested:
            found[name] = Predictions(
                classes=study.classes,
                ids=data.ids.astype(str),
                labels=data.labels,
                probabilities=trainer.predict(network, data, views=views),
                clusters=data.clusters.astype(str),
                cluster_unit="patient" if prepared.cluster_units[name] == "patient" else "image",
            )
            if name in prepared.unknown:
                images, kinds = prepared.unknown[name]
                probabilities = trainer.predict(network, images, views=views)
                strangers[name] = Strangers(images.ids.astype(str), kinds, images.clusters.astype(str), probabilities)
            if name in study.held_out and _adapts(study, trained.arm, trained.workspace):
                with _restored(trained.workspace):
                    trainer.restimate_norms(network, data)
                    again = trainer.predict(network, data, views=views)
                adapted[name] = replace(found[name], probabilities=again)
        write_predictions(trained.folder / PREDICTIONS, found)
        if adapted:
            write_predictions(trained.folder / ADAPTED, adapted)
        if study.evaluation.unknown:
            write_strangers(trained.folder / STRANGERS, strangers, study.classes)

    def judge(
        self, unit: Unit, entry: dict[str, Any], roles: Mapping[str, Role], prepared: Prepared, study: Study, run: Path
    ) -> Mapping[str, Predictions]:
        """At the unit's temperature."""
        raw = read_predictions(unit.folder(run) / PREDICTIONS)
        if unit.shared:
            raw = {site: p.only(prepared.sets[site]["test"].ids.astype(str)) for site, p in raw.items()}
        temperature = entry.get("calibration", {}).get("temperature", 1.0)
        found = {site: p.tempered(temperature) for site, p in raw.items()}
        entry["sites"] = _judge(unit, found, roles, prepared, study)
        _judge_options(entry, unit, raw, found, roles, run, study)
        return found

    def scores(self, units: Sequence[UnitPredictions], *, resamples: int) -> Scores:
        """See the base class."""
        return Scores(units, resamples=resamples, seed=0)

    def compared(self, scores: Scores) -> list[str] | None:
        """Balanced accuracy and macro-F1."""
        return None


def validation_metrics(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> dict[str, float]:
    """What a site reports of its validation part each round: balanced accuracy, macro-F1, and mean log loss."""
    counts = confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return {
        "balanced_accuracy": float(balanced_accuracy(counts)),
        "macro_f1": float(macro_f1(counts)),
        "loss": float(-np.log(np.maximum(chosen, 1e-12)).mean()),
    }


def _adapts(study: Study, arm: Arm, workspace: Workspace) -> bool:
    """Whether batch norms are re-estimated; site-local ones are at every newcomer, with or without being asked."""
    asked = study.evaluation.adapt == "norms" and arm.model.norm != "local"
    return asked and any(True for _ in batch_norms(workspace.model))


@contextmanager
def _restored(workspace: Workspace) -> Iterator[None]:
    """Give the network back as it was: statistics of layers that are not trained are in nobody's tensors."""
    before = {name: tensor.clone() for name, tensor in workspace.model.state_dict().items()}
    try:
        yield
    finally:
        workspace.model.load_state_dict(before)


def _judge(
    unit: Unit,
    found: Mapping[str, Predictions],
    roles: Mapping[str, Role],
    prepared: Prepared,
    study: Study,
) -> dict[str, Any]:
    judged = {}
    for site, predictions in found.items():
        block = evaluate_site(predictions, role=roles[site], resamples=study.evaluation.resamples, seed=0)
        # Pictures of mistakes are shown for the first seed: the others make much the same ones.
        if study.evaluation.images and unit.seed == study.seeds[0]:
            _add_images(block["errors"], prepared.sets[site]["test"])
        judged[site] = block
    return judged


def _judge_options(
    entry: Mapping[str, Any],
    unit: Unit,
    raw: Mapping[str, Predictions],
    found: Mapping[str, Predictions],
    roles: Mapping[str, Role],
    run: Path,
    study: Study,
) -> None:
    """Add to the sites' blocks what only some studies ask for: before calibration, after adaptation, unknown cells.

    Args:
        raw: as the model said it.
        found: the same at the unit's temperature.
    """
    resamples, sites = study.evaluation.resamples, entry["sites"]
    temperature = entry.get("calibration", {}).get("temperature", 1.0)
    if "calibration" in entry:
        for site, p in raw.items():
            sites[site]["uncalibrated"] = {"ece": calibration_error(p, resamples=resamples)}
    how = study.evaluation.adapt
    for site, p in _adapted(unit, run, roles).items():
        adapted = p.tempered(temperature)
        sites[site]["adapted"] = adaptation(
            found[site], adapted, how=how, metric=ClassificationStudy.primary, resamples=resamples
        )
    if "rejection" in entry:
        strangers = read_strangers(unit.folder(run) / STRANGERS)
        for site, known in found.items():
            met = strangers[site].tempered(temperature) if site in strangers else None
            threshold = entry["rejection"]["threshold"]
            sites[site]["unknown"] = judge_strangers(known, met, threshold, resamples=resamples)


def _adapted(unit: Unit, run: Path, roles: Mapping[str, Role]) -> dict[str, Predictions]:
    """Predictions of the model adapted to each held-out site; none where nothing was adapted."""
    path = unit.folder(run) / ADAPTED
    if not path.is_file():
        return {}
    # A local model that folds share was adapted to every other site; in this fold only some are held out.
    return {site: p for site, p in read_predictions(path).items() if roles[site] == "held_out"}


def _add_images(errors: Sequence[dict[str, Any]], data: ImageSet) -> None:
    where = {str(name): i for i, name in enumerate(data.ids)}
    for error in errors:
        error["image"] = data_uri(data.store.gather(data.rows[[where[error["path"]]]])[0])
