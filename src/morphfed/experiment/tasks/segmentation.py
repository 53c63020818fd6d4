"""Segmentation: a mask an image, masks drawn by a unit, and what is judged of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from morphfed.core.errors import ConfigError, DataError, StorageError
from morphfed.core.files import writing
from morphfed.core.progress import Reporter, silent
from morphfed.core.seeding import numpy_stream
from morphfed.data.cache import side_of
from morphfed.data.manifest import SPLITS
from morphfed.data.masks import Mask, MaskStore
from morphfed.evaluation import released
from morphfed.evaluation.cases import METRICS, Cases, CaseScores, evaluate_cases, read_cases, write_cases
from morphfed.evaluation.masks import validation_metrics
from morphfed.evaluation.predictions import ClusterUnit, only
from morphfed.evaluation.scores import Scores, UnitPredictions
from morphfed.evaluation.site import Role
from morphfed.experiment.assemble import column
from morphfed.experiment.masks import select_masks, values_of
from morphfed.experiment.overlays import DRAWN, overlays, with_outlines
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
from morphfed.models.tuning import FULL
from morphfed.tasks.base import Task
from morphfed.tasks.classification import LossConfig
from morphfed.tasks.segmentation import SEGMENTATION
from morphfed.training.dataset import ImageSet, MaskSet

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from morphfed.data.manifest import Manifest
    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.study import Arm, Study
    from morphfed.experiment.units import Unit

CASES = "cases.parquet"
ONE_VIEW = "one-view.parquet"
"""Cases of masks drawn in the pictures as they are, beside the means over views; only with ``evaluation.views`` above
1."""
MASKS = "masks.npz"
SAMPLES = 4


class SegmentationStudy(TellingTask):
    """See :class:`StudyTask`."""

    task: ClassVar[Task] = SEGMENTATION
    primary: ClassVar[str] = "dice"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({"views": ("dice", "iou")})

    def check(self, study: Study, arms: Mapping[str, Arm], *, where: str) -> None:
        """Networks draw masks, and what is about classes is left at its default."""
        e = study.evaluation
        for key, unused in (
            ("calibrate", e.calibrate == "none"),
            ("adapt", e.adapt == "none"),
            ("unknown", not e.unknown),
        ):
            if not unused:
                raise ConfigError(
                    f"{where}: evaluation.{key} is about classes of images.",
                    fix=f"remove evaluation.{key}, or set task = 'classification'.",
                )
        if study.data.coarse != "leave_out":
            raise ConfigError(
                f"{where}: data.coarse is about classes of images.",
                fix="remove data.coarse, or set task = 'classification'.",
            )
        refuse_survival(study, arms, where)
        for name, site in study.sites.items():
            try:
                values_of(study.structures, site, None)
            except DataError as cause:
                raise ConfigError(f"{where}: sites.{name}.mask_values: {cause.message}", fix=cause.fix) from cause
        for name, arm in arms.items():
            _check_arm(study, arm, f"{where}: arms.{name}", self.task.validation)

    def outputs(self, study: Study) -> int:
        """The background and each structure."""
        return 1 + len(study.structures)

    def describe(self, study: Study) -> dict[str, Any]:
        """The structures; a study of masks has no classes."""
        colours = dict(zip(study.structures, cycle(DRAWN), strict=False))
        return {"classes": [], "structures": list(study.structures), "colours": colours}

    def card(self, study: Study) -> dict[str, Any]:
        """Outputs of each pixel by name."""
        return {"task": "segmentation", "classes": ["background", *study.structures]}

    def select(self, manifest: Manifest, study: Study, *, look: bool = True, report: Reporter = silent) -> Selected:
        """Images with a mask that can be used."""
        return Selected(*select_masks(manifest, study, look=look, report=report))

    def with_targets(self, prepared: pd.DataFrame, frame: pd.DataFrame, study: Study) -> pd.DataFrame:
        """Each image's mask, what its file shows, and the size of a stored pixel."""
        short = np.minimum(frame["width"].to_numpy(dtype=float), frame["height"].to_numpy(dtype=float))
        crops = prepared["crop_px"].to_numpy(dtype=float)
        sides = [
            side_of(int(s), None if np.isnan(c) else int(c), study.data.pad) for s, c in zip(short, crops, strict=True)
        ]
        stored = frame["um_per_px"].to_numpy(dtype=float) * np.array(sides) / study.data.image_size
        kept = ["source", "mask", "mask_sha256", *(f"px/{name}" for name in study.structures)]
        return prepared.assign(**{name: frame[name] for name in kept}, um_per_stored_px=stored)

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
        """The masks' store, filled."""
        store = MaskStore(cache, size=study.data.image_size, pad=study.data.pad)

        def masks(part: pd.DataFrame) -> list[Mask]:
            values = {site: _values(part, site, study) for site in set(part["site"])}
            crops = part["crop_px"].to_numpy(dtype=float)
            rows = zip(column(part, "mask"), column(part, "mask_sha256"), crops, part["site"], strict=True)
            return [
                Mask(run / str(path), str(digest), None if np.isnan(crop) else int(crop), values[site])
                for path, digest, crop, site in rows
            ]

        if build:
            done = store.ensure(masks(frame), workers=workers, report=report)
            if done.failed:
                first = next(iter(done.failed.values()))
                raise DataError(
                    f"{len(done.failed)} masks that were there before cannot be read now: {first}",
                    fix="restore the files, or name another run folder with --run.",
                )

        def make(part: pd.DataFrame, **known: Any) -> ImageSet:
            pixels = part[[f"px/{name}" for name in study.structures]].to_numpy(dtype=np.int64)
            return MaskSet(
                labels=store.rows_of(store.key(mask) for mask in masks(part)),
                classes=self.outputs(study),
                masks=store,
                present=pixels > 0,
                um_per_px=part["um_per_stored_px"].to_numpy(dtype=np.float64),
                **known,
            )

        return make

    def counts(self, rows: pd.DataFrame, study: Study) -> dict[str, Any]:
        """Images of each part, and those that show each structure."""
        parts = {part: rows["split"] == part for part in SPLITS}
        shown = {
            name: {part: int(((rows[f"px/{name}"] > 0) & here).sum()) for part, here in parts.items()}
            for name in study.structures
        }
        return {"parts": {part: int(here.sum()) for part, here in parts.items()}, "structures": shown}

    def uncount(self, block: dict[str, Any], rows: pd.DataFrame) -> None:
        """See the base class."""
        for part, here in rows.groupby("split"):
            block["parts"][part] -= len(here)
            for name in block["structures"]:
                block["structures"][name][part] -= int((here[f"px/{name}"] > 0).sum())

    def refuse(self, parts: Sequence[ImageSet], study: Study) -> None:
        """Every structure is shown somewhere."""
        shown = np.sum([part.present.sum(axis=0) for part in parts if isinstance(part, MaskSet)], axis=0)
        absent = [name for name, n in zip(study.structures, np.atleast_1d(shown), strict=True) if n == 0]
        if absent:
            without = f" without {', '.join(study.held_out)}" if study.held_out else ""
            raise ConfigError(
                f"No training mask{without} shows {' or '.join(absent)}.",
                fix="correct sites.NAME.mask_values, remove the structure, or bring other sites.",
            )

    def samples(self, site: str, parts: Sequence[ImageSet], study: Study) -> list[dict[str, str]]:
        """A few pictures with the outlines of their masks."""
        whole = [(part, i) for part in parts for i in range(len(part))]
        chosen = numpy_stream(0, "samples", site).permutation(len(whole))[:SAMPLES]
        found = []
        for part, i in (whole[k] for k in np.sort(chosen)):
            row = np.array([i])
            picture = part.store.gather(part.rows[row])[0]
            mask = part.masks.gather(part.labels[row])[0] if isinstance(part, MaskSet) else None
            found.append({"class": Path(str(part.ids[i])).name, "image": with_outlines(picture, truth=mask)})
        return found

    def validation_metrics(self, truth: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
        """Mean Dice and IoU."""
        return validation_metrics(truth, answers)

    def predict(self, trained: Trained) -> None:
        """Masks of every site's test images, and their scores."""
        study, trainer, network = trained.study, trained.trainer, trained.workspace.model
        found, one_view, drawn = {}, {}, {}
        for name, data in trained.tested:
            assert isinstance(data, MaskSet)
            unit = trained.prepared.cluster_units[name]
            drawn[name] = trainer.answers(network, data, views=study.evaluation.views)
            found[name] = _cases(data, drawn[name], study, unit)
            if study.evaluation.views != 1:
                one_view[name] = _cases(data, trainer.answers(network, data), study, unit)
        with writing(trained.folder / MASKS) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **drawn)  # type: ignore[arg-type]  # no site is called allow_pickle
        write_cases(trained.folder / CASES, found)
        if one_view:
            write_cases(trained.folder / ONE_VIEW, one_view)

    def judge(
        self, unit: Unit, entry: dict[str, Any], roles: Mapping[str, Role], prepared: Prepared, study: Study, run: Path
    ) -> Judgement:
        """Scores as they are; pictures for the first seed."""
        raw = read_cases(unit.folder(run) / CASES)
        found = _of_this_study(raw, prepared)
        entry["sites"] = {}
        shown = study.evaluation.images and unit.seed == study.seeds[0]
        drawn = _drawn(unit.folder(run) / MASKS) if shown else {}
        for site, cases in found.items():
            block = evaluate_cases(cases, role=roles[site], resamples=study.evaluation.resamples, seed=0)
            if shown:
                data = prepared.sets[site]["test"]
                assert isinstance(data, MaskSet)
                masks = dict(zip(raw[site].ids.tolist(), drawn[site], strict=True))
                block["overlays"] = overlays(cases, data, masks)
            entry["sites"][site] = block
        plain = unit.folder(run) / ONE_VIEW
        if not plain.is_file():
            return Judgement(found)
        return Judgement(found, {"views": (found, _of_this_study(read_cases(plain), prepared))})

    def every_metric(self, study: Study) -> tuple[str, ...]:
        """Means over structures, and of each."""
        return tuple(name for metric in METRICS for name in (metric, *(f"{metric}/{s}" for s in study.structures)))

    def places(self, study: Study) -> Mapping[tuple[str, ...], int]:
        """See :func:`morphfed.evaluation.released.places_of_masks`."""
        return released.places_of_masks(study.structures)

    def tell(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """See the base class."""
        return released.tell_masks(block)

    def retell(self, told: Mapping[str, Any], study: Study, *, role: Role, cluster_unit: ClusterUnit) -> dict[str, Any]:
        """See the base class."""
        return released.retell_masks(told, study.structures, role=role, cluster_unit=cluster_unit)

    def scores(
        self, units: Sequence[UnitPredictions], *, metrics: Sequence[str] | None = None, resamples: int, seed: int = 0
    ) -> Scores:
        """See the base class."""
        return CaseScores(units, metrics=metrics, resamples=resamples, seed=seed)


def _cases(data: MaskSet, drawn: NDArray[np.uint8], study: Study, unit: ClusterUnit) -> Cases:
    return Cases.of(
        data.truth(),
        drawn,
        structures=study.structures,
        ids=data.ids.astype(str),
        clusters=data.clusters.astype(str),
        cluster_unit=unit,
        um_per_px=data.um_per_px,
    )


def _of_this_study(cases: Mapping[str, Cases], prepared: Prepared) -> dict[str, Cases]:
    """Of the images that are test images here: a local model that folds share has predicted others too."""
    return {site: only(c, prepared.sets[site]["test"].ids.astype(str)) for site, c in cases.items()}


def _check_arm(study: Study, arm: Arm, where: str, selectable: frozenset[str]) -> None:
    refuse_bags(study, arm, where)
    if not draws_masks(arm.model):
        raise ConfigError(
            f"{where}: model.name = '{arm.model.name}' is a classifier; a study of masks needs one that draws them.",
            fix=f"write model.name = 'unet/{arm.model.name.rpartition('/')[2]}'.",
        )
    if arm.model.tune != FULL:
        raise ConfigError(
            f"{where}: model.tune = '{arm.model.tune}' is of classifiers.", fix="set model.tune = 'full' for a U-Net."
        )
    if "segmentation" not in arm.algorithm.tasks:
        raise ConfigError(
            f"{where}: '{arm.algorithm.name}' is defined for a classifier's features, one vector an image; a network "
            "that draws masks has none.",
            fix="choose another algorithm; `morphfed list algorithms` shows them.",
        )
    refuse_unfit(arm, SEGMENTATION.name, where)
    if arm.federation.select not in selectable:
        raise ConfigError(
            f"{where}: federation.select = '{arm.federation.select}' is not of masks.", fix="choose dice or iou."
        )
    if arm.train.loss != LossConfig():
        raise ConfigError(
            f"{where}: train.loss is of classes.",
            fix="use train.mask_loss, for example { dice = 1.0, cross_entropy = 1.0 }.",
        )


def _values(part: pd.DataFrame, site: str, study: Study) -> dict[int, int]:
    source = next(iter(part["source"][part["site"] == site]), None)
    return values_of(study.structures, study.sites[site], None if source is None else str(source))


def _drawn(path: Path) -> dict[str, NDArray[np.uint8]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {site: archive[site] for site in archive.files}
    except (OSError, ValueError, KeyError) as cause:
        raise StorageError(
            f"{path} cannot be read: {cause}.", fix="remove the unit's unit.json and run the same command again."
        ) from cause
