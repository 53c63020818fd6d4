"""Classification: one class an image, probabilities, and what is judged of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from morphfed.core.errors import ConfigError
from morphfed.core.progress import Reporter, silent
from morphfed.core.seeding import numpy_stream
from morphfed.evaluation import released
from morphfed.evaluation.metrics import METRICS, balanced_accuracy, confusion, macro_f1
from morphfed.evaluation.options import OPTIONS
from morphfed.evaluation.predictions import ClusterUnit, Predictions, read_predictions, write_predictions
from morphfed.evaluation.scores import MASKED, Scores, UnitPredictions
from morphfed.evaluation.site import Role, adaptation, calibration_error, evaluate_site
from morphfed.evaluation.unknown import Strangers, judge_strangers, read_strangers, write_strangers
from morphfed.experiment.assemble import column, label_and_split
from morphfed.experiment.coarse import coarser_labels
from morphfed.experiment.pictures import data_uri
from morphfed.experiment.tasks.base import (
    Judgement,
    MakeSet,
    Selected,
    TellingTask,
    Trained,
    refuse_bags,
    refuse_survival,
    refuse_unfit,
)
from morphfed.models.backbone import draws_masks
from morphfed.models.norm import batch_norms
from morphfed.tasks.base import Task
from morphfed.tasks.classification import CLASSIFICATION
from morphfed.tasks.segmentation import MaskLossConfig
from morphfed.training.dataset import ImageSet
from morphfed.training.trainer import Views

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
ONE_VIEW = "one-view.parquet"
"""Predictions of the pictures as they are, beside the means over views; only with ``evaluation.views`` above 1."""
STRANGERS = "unknown.parquet"
NO_CLASS = -1
SAMPLES_PER_CLASS = 2


class ClassificationStudy(TellingTask):
    """See :class:`StudyTask`."""

    task: ClassVar[Task] = CLASSIFICATION
    primary: ClassVar[str] = "balanced_accuracy"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = OPTIONS

    def check(self, study: Study, arms: Mapping[str, Arm], *, where: str) -> None:
        """Classes are nodes of the ontology, networks are classifiers."""
        from morphfed.data.ontology import load_ontology

        load_ontology().resolve_classes(study.classes)
        refuse_survival(study, arms, where)
        for name, arm in arms.items():
            refuse_bags(study, arm, f"{where}: arms.{name}")
            if draws_masks(arm.model):
                raise ConfigError(
                    f"{where}: arms.{name}: model.name = '{arm.model.name}' draws masks; a study of classes needs a "
                    "classifier.",
                    fix="name a classifier, or set task = 'segmentation'.",
                )
            if arm.federation.select not in self.task.validation:
                raise ConfigError(
                    f"{where}: arms.{name}: federation.select = '{arm.federation.select}' is not of classes.",
                    fix="choose balanced_accuracy or macro_f1.",
                )
            if arm.train.mask_loss != MaskLossConfig():
                raise ConfigError(
                    f"{where}: arms.{name}: train.mask_loss is of masks.", fix="use train.loss for classes."
                )
            refuse_unfit(arm, self.task.name, f"{where}: arms.{name}")
            _refuse_coarse(study, arm, where)
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
        """The index of each image's class, or behind the classes of its coarser label; -1 for cells of none."""
        index = {name: i for i, name in enumerate((*study.classes, *coarser_labels(study)))}
        targets = [name or parent for name, parent in zip(column(frame, "class"), column(frame, "parent"), strict=True)]
        return prepared.assign(label=[NO_CLASS if name is None else index[name] for name in targets])

    def meaning(self, study: Study) -> dict[str, Any]:
        """The coarser labels, in the order of their indices, and the classes below each."""
        return {"parents": {node: list(below) for node, below in coarser_labels(study).items()}}

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
        index = {name: i for i, name in enumerate(study.classes)}
        parents = tuple(tuple(index[name] for name in below) for below in meaning.get("parents", {}).values())

        def make(part: pd.DataFrame, **known: Any) -> ImageSet:
            labels = part["label"].to_numpy(dtype=np.int64)
            return ImageSet(labels=labels, classes=len(index), parents=parents, **known)

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
        coarse = {str(entry["label"]): entry for entry in block.get("coarse", ())}
        for label, kind, split in zip(rows["label"], rows["kind"], rows["split"], strict=True):
            if label < len(names):
                block["classes"][names[int(label)]][split] -= 1
            else:
                coarse[str(kind)]["n"] -= 1

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
        self._predict(trained, trained.tested)

    def _predict(self, trained: Trained, tested: Iterable[tuple[str, ImageSet]]) -> None:
        study, prepared, network = trained.study, trained.prepared, trained.workspace.model
        views, trainer = study.evaluation.views, trained.trainer
        found, one_view, strangers, adapted = {}, {}, {}, {}

        def predicted(name: str, data: ImageSet, views: Views) -> Predictions:
            probabilities, logs = trainer.predict_logs(network, data, views=views)
            about = (data.ids.astype(str), data.labels, probabilities, data.clusters.astype(str))
            return Predictions(study.classes, *about, prepared.cluster_units[name], logs)

        for name, data in tested:
            found[name] = predicted(name, data, views)
            if views != 1:
                one_view[name] = predicted(name, data, 1)
            if name in prepared.unknown:
                images, kinds = prepared.unknown[name]
                said = trainer.predict_logs(network, images, views=views)
                strangers[name] = Strangers(images.ids.astype(str), kinds, images.clusters.astype(str), *said)
            if name in study.held_out and _adapts(study, trained.arm, trained.workspace):
                with _restored(trained.workspace):
                    trainer.restimate_norms(network, data)
                    adapted[name] = predicted(name, data, views)
        write_predictions(trained.folder / PREDICTIONS, found)
        for file, more in ((ONE_VIEW, one_view), (ADAPTED, adapted)):
            if more:
                write_predictions(trained.folder / file, more)
        if study.evaluation.unknown:
            write_strangers(trained.folder / STRANGERS, strangers, study.classes)

    def judge(
        self, unit: Unit, entry: dict[str, Any], roles: Mapping[str, Role], prepared: Prepared, study: Study, run: Path
    ) -> Judgement:
        """At the unit's temperature."""
        raw = read_judged(unit, run, PREDICTIONS, prepared)
        temperature = entry.get("calibration", {}).get("temperature")
        found = {site: p.tempered(temperature or 1.0) for site, p in raw.items()}
        adapted = {site: p.tempered(temperature or 1.0) for site, p in _adapted(unit, run, roles).items()}
        entry["sites"] = _judge(unit, found, roles, prepared, study)
        _judge_options(entry, raw, found, adapted, unit.folder(run), study)
        one_view = read_judged(unit, run, ONE_VIEW, prepared)
        return Judgement(found, _versions(raw, found, temperature, adapted, one_view))

    def every_metric(self, study: Study) -> tuple[str, ...]:
        """Of all classes, and masked to those present."""
        return (*METRICS, *MASKED)

    def places(self, study: Study) -> Mapping[tuple[str, ...], int]:
        """See :func:`morphfed.evaluation.released.places_of_classes`."""
        kinds: tuple[str, ...] = ()
        if study.evaluation.unknown:
            from morphfed.data.ontology import load_ontology

            ontology = load_ontology()
            kinds = tuple(node for node in ontology.nodes if ontology.is_outside(node, study.classes))
        return released.places_of_classes(study.classes, kinds)

    def tell(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """See the base class."""
        return released.tell_classes(block)

    def retell(self, told: Mapping[str, Any], study: Study, *, role: Role, cluster_unit: ClusterUnit) -> dict[str, Any]:
        """See the base class."""
        how = {"how": study.evaluation.adapt, "metric": self.primary}
        return released.retell_classes(told, study.classes, role=role, cluster_unit=cluster_unit, **how)

    def scores(
        self, units: Sequence[UnitPredictions], *, metrics: Sequence[str] | None = None, resamples: int, seed: int = 0
    ) -> Scores:
        """See the base class."""
        return Scores(units, metrics=metrics, resamples=resamples, seed=seed)


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


def _refuse_coarse(study: Study, arm: Arm, where: str) -> None:
    """The seesaw factors are those of one true class, which an image with a coarser label does not name."""
    if study.data.coarse == "parent" and (arm.train.loss.kind == "seesaw" or arm.algorithm.counts(arm.config)):
        raise ConfigError(
            f"{where}: arms.{arm.name}: the seesaw loss is not defined for images with a coarser label.",
            fix='set data.coarse = "leave_out", or choose another train.loss.kind (in prr: loss = "task").',
        )


def read_judged(unit: Unit, run: Path, name: str, prepared: Prepared) -> dict[str, Predictions]:
    """Predictions of a unit, of the images that are test images in this study; {} without such a file."""
    path = unit.folder(run) / name
    if name != PREDICTIONS and not path.is_file():
        return {}
    found = read_predictions(path)
    if unit.shared:
        return {site: p.only(prepared.sets[site]["test"].ids.astype(str)) for site, p in found.items()}
    return found


def _versions(
    raw: Mapping[str, Predictions],
    found: Mapping[str, Predictions],
    temperature: float | None,
    adapted: Mapping[str, Predictions],
    one_view: Mapping[str, Predictions],
) -> dict[str, tuple[Mapping[str, Predictions], Mapping[str, Predictions]]]:
    """Option → what the unit said with it and without it, of the same images; only options that the study asked for."""
    pairs = {}
    if one_view:
        pairs["views"] = (raw, one_view)
    if temperature is not None:
        pairs["calibrate"] = (found, raw)
    if adapted:
        pairs["adapt"] = (adapted, {site: found[site] for site in adapted})
    return pairs


def _judge_options(
    entry: Mapping[str, Any],
    raw: Mapping[str, Predictions],
    found: Mapping[str, Predictions],
    adapted: Mapping[str, Predictions],
    folder: Path,
    study: Study,
) -> None:
    """Add to the sites' blocks what only some studies ask for: before calibration, after adaptation, unknown cells.

    Args:
        raw: as the model said it.
        found: the same at the unit's temperature.
        adapted: at held-out sites after adaptation, at that temperature too.
        folder: the unit's.
    """
    resamples, sites = study.evaluation.resamples, entry["sites"]
    temperature = entry.get("calibration", {}).get("temperature", 1.0)
    if "calibration" in entry:
        for site, p in raw.items():
            sites[site]["uncalibrated"] = {"ece": calibration_error(p, resamples=resamples)}
    how = study.evaluation.adapt
    for site, p in adapted.items():
        sites[site]["adapted"] = adaptation(
            found[site], p, how=how, metric=ClassificationStudy.primary, resamples=resamples
        )
    if "rejection" in entry:
        strangers = read_strangers(folder / STRANGERS)
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
