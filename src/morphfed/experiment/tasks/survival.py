"""Survival from bags: what became of each patient, hazards over bins of time, and how well risks are ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from morphfed.core.errors import ConfigError
from morphfed.core.progress import Reporter, silent
from morphfed.data.bags.drafting import CENSORSHIP, CONTRADICTED, MONTHS
from morphfed.data.manifest import SPLITS
from morphfed.evaluation.predictions import only
from morphfed.evaluation.scores import Scores, UnitPredictions
from morphfed.evaluation.site import Role
from morphfed.evaluation.survival import (
    Outcomes,
    SurvivalScores,
    bin_names,
    evaluate_outcomes,
    read_outcomes,
    survival_of,
    validation_metrics,
    write_outcomes,
)
from morphfed.experiment.attention import ATTENTION, examine, read_examined, write_examined
from morphfed.experiment.bags import Sought
from morphfed.experiment.tasks.base import Judgement, MakeSet, Selected, Trained
from morphfed.experiment.tasks.mil import MilStudy, in_rows, refuse_pictures
from morphfed.models.mil import HEADS, MilHead
from morphfed.tasks.base import Task
from morphfed.tasks.classification import LossConfig
from morphfed.tasks.segmentation import MaskLossConfig
from morphfed.tasks.survival import Survival
from morphfed.training.bags import SurvivalSet
from morphfed.training.dataset import ImageSet

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from morphfed.data.manifest import Manifest
    from morphfed.data.quality import CheckReport
    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.study import Arm, Study
    from morphfed.experiment.units import Unit

OUTCOMES = "outcomes.parquet"
FATES = ("event", "censored")
"""What can have become of a patient; the split keeps their shares alike."""

_NAMED = 3


class SurvivalStudy(MilStudy):
    """See :class:`StudyTask`."""

    task: ClassVar[Task] = Survival()
    primary: ClassVar[str] = "c_index"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    # ── the study file ──────────────────────────────────────────────────────────────────────────────────────
    def check(self, study: Study, arms: Mapping[str, Arm], *, where: str) -> None:
        """Time has edges, heads are not taught by classes, and what is about classes is left at its default."""
        if not study.data.time_edges:
            raise ConfigError(
                f"{where}: data.time_edges is empty: there are no bins of time.",
                fix="write for example time_edges = [12, 24, 48], in months; docs/how-to/bags.md says how to choose.",
            )
        refuse_pictures(study, where)
        labels = bool(study.data.labels) or any(site.labels for site in study.sites.values())
        for key, unused in (
            ("evaluation.calibrate", study.evaluation.calibrate == "none"),
            ("data.labels and sites.NAME.labels", not labels),
        ):
            if not unused:
                raise ConfigError(
                    f"{where}: {key} is about classes, and survival has none.", fix="remove it, or set task = 'mil'."
                )
        for name, arm in arms.items():
            at = f"{where}: arms.{name}"
            self.check_arm(arm, study, at)
            if arm.train.loss != LossConfig() or arm.train.mask_loss != MaskLossConfig():
                key, of = ("loss", "classes") if arm.train.loss != LossConfig() else ("mask_loss", "masks")
                raise ConfigError(f"{at}: train.{key} is of {of}.", fix="use train.survival_loss.")
            if HEADS[arm.model.name.removeprefix("mil/")].loss_terms is not MilHead.loss_terms:
                raise ConfigError(
                    f"{at}: model.name = '{arm.model.name}' also learns from each bag's class, and survival has none.",
                    fix="write model.name = 'mil/gated_abmil'.",
                )
            if arm.algorithm.counts(arm.config):
                raise ConfigError(
                    f"{at}: '{arm.algorithm.name}' as it is set counts classes, and survival has none.",
                    fix=f"change its loss; `morphfed show {arm.algorithm.name}` explains each key.",
                )

    def outputs(self, study: Study) -> int:
        """A hazard for each bin of time."""
        return len(study.data.time_edges) + 1

    def describe(self, study: Study) -> dict[str, Any]:
        """What becomes of patients, in the place of classes, and the edges of the bins."""
        return {"classes": list(FATES), "time_edges": list(study.data.time_edges)}

    def card(self, study: Study) -> dict[str, Any]:
        """A bin an output."""
        edges = study.data.time_edges
        return {"task": "survival", "classes": bin_names(edges), "time_edges": list(edges)}

    # ── the data ────────────────────────────────────────────────────────────────────────────────────────────
    def select(self, manifest: Manifest, study: Study, *, look: bool = True, report: Reporter = silent) -> Selected:
        """Bags of patients whose time and fate are known; says where there are few events."""
        chosen = super().select(manifest, study, look=look, report=report)
        return Selected(chosen.manifest, chosen.left_out, chosen.split_notes, [*chosen.notes, *_few(chosen, study)])

    def sought(self, study: Study) -> Sought:
        """Bags of patients who were followed."""
        return Sought(_fates, "the columns survival_months and censorship of its slide table")

    def with_targets(self, prepared: pd.DataFrame, frame: pd.DataFrame, study: Study) -> pd.DataFrame:
        """Months, and the bin of the event; of a censored bag the number of bins + its bin."""
        months = frame[MONTHS].to_numpy(dtype=np.float64)
        censored = (frame["class"] == FATES[1]).to_numpy()
        bins = np.searchsorted(np.array(study.data.time_edges), months, side="right")
        return prepared.assign(months=months, label=bins + self.outputs(study) * censored)

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
        """They are in the rows."""

        def make(part: pd.DataFrame, **known: Any) -> ImageSet:
            months = part["months"].to_numpy(dtype=np.float64)
            return SurvivalSet(classes=self.outputs(study), months=months, **in_rows(part), **known)

        return make

    def counts(self, rows: pd.DataFrame, study: Study) -> dict[str, Any]:
        """Events and censored bags of each part, events of each bin, how long patients were followed, how long bags."""
        bins = self.outputs(study)
        events, months = rows["label"] < bins, rows["months"].to_numpy()
        parts = {part: rows["split"] == part for part in SPLITS}
        fates = {
            fate: {part: int((here & (events if fate == FATES[0] else ~events)).sum()) for part, here in parts.items()}
            for fate in FATES
        }
        time = {
            "events": np.bincount(rows["label"][events], minlength=bins).tolist(),
            "median_months": float(np.median(months)) if len(months) else None,
        }
        return {"classes": fates, "time": time, "bags": self.lengths(rows)}

    def uncount(self, block: dict[str, Any], rows: pd.DataFrame) -> None:
        """See the base class."""
        bins = len(block["time"]["events"])
        for label, split in zip(rows["label"], rows["split"], strict=True):
            block["classes"][FATES[int(label >= bins)]][split] -= 1
            if label < bins:
                block["time"]["events"][int(label)] -= 1

    def refuse(self, parts: Sequence[ImageSet], study: Study) -> None:
        """An event at least."""
        if not any(part.class_counts.any() for part in parts):
            without = f" without {', '.join(study.held_out)}" if study.held_out else ""
            raise ConfigError(
                f"All training bags{without} are censored: there is no event to learn from.",
                fix="check the column censorship (1: censored, 0: the event was seen), or bring other sites.",
            )

    def check_data(self, manifest: Manifest, study: Study, *, report: Reporter) -> CheckReport:
        """Bags are looked at as bags, fates as their classes."""
        from morphfed.data.bags.quality import check_bags

        return check_bags(manifest, classes=FATES, min_per_class=study.data.min_per_class)

    # ── a unit ──────────────────────────────────────────────────────────────────────────────────────────────
    def validation_metrics(self, truth: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
        """The c-index over bags, where it is defined, and the mean log loss."""
        return validation_metrics(truth, answers)

    def predict(self, trained: Trained) -> None:
        """Survival curves of every site's test bags, and where a few of them were looked at."""
        found, examined = {}, {}
        shown = trained.study.evaluation.images and trained.unit.seed == trained.study.seeds[0]
        for name, data in trained.tested:
            assert isinstance(data, SurvivalSet)
            if shown:
                told = partial(_told, data, trained.study.data.time_edges)
                examined[name] = examine(trained.workspace.model, data, trained.trainer.device, told)
            found[name] = Outcomes(
                edges=trained.study.data.time_edges,
                ids=data.ids.astype(str),
                months=data.months,
                censored=data.censored,
                survival=survival_of(trained.trainer.predict(trained.workspace.model, data)),
                clusters=data.clusters.astype(str),
                cluster_unit=trained.prepared.cluster_units[name],
            )
        write_outcomes(trained.folder / OUTCOMES, found)
        if examined:
            write_examined(trained.folder / ATTENTION, examined)

    def judge(
        self, unit: Unit, entry: dict[str, Any], roles: Mapping[str, Role], prepared: Prepared, study: Study, run: Path
    ) -> Judgement:
        """Patient by patient, where patients are known."""
        raw = read_outcomes(unit.folder(run) / OUTCOMES)
        tested = {site: only(o, prepared.sets[site]["test"].ids.astype(str)) for site, o in raw.items()}
        found = {site: outcomes.by_cluster() for site, outcomes in tested.items()}
        examined = read_examined(unit.folder(run) / ATTENTION)
        entry["sites"] = {
            site: evaluate_outcomes(o, role=roles[site], resamples=study.evaluation.resamples, seed=0)
            | ({"attention": examined[site]} if examined.get(site) else {})
            for site, o in found.items()
        }
        return Judgement(found)

    def scores(
        self, units: Sequence[UnitPredictions], *, metrics: Sequence[str] | None = None, resamples: int, seed: int = 0
    ) -> Scores:
        """See the base class."""
        return SurvivalScores(units, metrics=metrics, resamples=resamples, seed=seed)


def _told(data: SurvivalSet, edges: Sequence[float], number: int, logits: Tensor) -> tuple[str, str]:
    """What became of a bag's patient, and the predicted share of such patients that outlives the last edge."""
    fate = "censored at" if data.censored[number] else "event at"
    beyond = float(survival_of(logits[None].sigmoid().numpy())[0, len(edges) - 1])
    return f"{fate} {data.months[number]:.1f} months", f"{100 * beyond:.0f} % beyond {edges[-1]:g} months"


def _fates(frame: pd.DataFrame) -> list[tuple[str | None, str]]:
    """Of each row its fate, or why it has none."""
    months = frame[MONTHS].to_numpy(dtype=np.float64) if MONTHS in frame else np.full(len(frame), np.nan)
    seen = [None if flag is None else int(flag) for flag in _nullable(frame, CENSORSHIP)]
    disagree = _disagreeing(frame, months, seen)
    return [_fate(*row) for row in zip(months.tolist(), seen, disagree, strict=True)]


def _fate(months: float, censorship: int | None, disagree: bool) -> tuple[str | None, str]:
    if months == CONTRADICTED:
        return None, "its rows differ in survival_months or censorship"
    if np.isnan(months):
        return None, "no survival_months"
    if months < 0 or np.isinf(months):
        return None, f"survival_months is {months:g}"
    if censorship is None:
        return None, "no censorship"
    if censorship not in (0, 1):
        return None, f"censorship is {censorship}, not 0 or 1"
    if disagree:
        return None, "its patient's slides differ in survival_months or censorship"
    return FATES[censorship], ""


def _disagreeing(frame: pd.DataFrame, months: NDArray[np.float64], seen: Sequence[int | None]) -> list[bool]:
    """Rows of patients who died at two times, or both died and did not."""
    said: dict[tuple[str, str], set[tuple[float, int]]] = {}
    owners = list(zip(frame["site"], _nullable(frame, "patient"), strict=True))
    for (site, patient), m, c in zip(owners, months.tolist(), seen, strict=True):
        if patient is not None and c is not None and np.isfinite(m):
            said.setdefault((site, patient), set()).add((m, c))
    return [len(said.get(owner, ())) > 1 for owner in owners]


def _nullable(frame: pd.DataFrame, name: str) -> list[Any]:
    if name not in frame:
        return [None] * len(frame)
    return [None if missing else value for value, missing in zip(frame[name], frame[name].isna(), strict=True)]


def _few(chosen: Selected, study: Study) -> list[str]:
    """Training sites with fewer events than bins, and bins that no training site has an event in."""
    frame, bins = chosen.manifest.frame, len(study.data.time_edges) + 1
    here = (frame["split"] == "train") & (frame["class"] == FATES[0])
    at = np.searchsorted(np.array(study.data.time_edges), frame[MONTHS][here].to_numpy(), side="right")
    sites = frame["site"][here].to_numpy()
    said = []
    for site in study.training_sites:
        n = int((sites == site).sum())
        if n == 0:
            said.append(f"{site}: all training bags are censored; it teaches only that patients live on")
        elif n < bins:
            said.append(f"{site}: {n} training bags with an event for {bins} bins of time; use fewer data.time_edges")
    counts = np.bincount(at[np.isin(sites, study.training_sites)], minlength=bins)
    if empty := [name for name, n in zip(bin_names(study.data.time_edges), counts, strict=True) if n == 0]:
        said.append(f"no training bag has its event in {', '.join(empty)}: nothing is learned there but that none came")
    return said
