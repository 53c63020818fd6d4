"""A study file: which sites, which classes, which arms. Everything is resolved and checked before any work."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Specs
from morphfed.core.config import Config, override, read_toml, validate
from morphfed.core.errors import ConfigError, did_you_mean
from morphfed.federation.coding.wire import Coding
from morphfed.federation.loop import FederationConfig
from morphfed.federation.secure.plan import Plan
from morphfed.models.backbone import ModelConfig
from morphfed.models.layout import Layout
from morphfed.models.tuning import refuse_nonsense
from morphfed.privacy.accounting import need_accounting
from morphfed.privacy.noise import Noise
from morphfed.privacy.secure.masks import need_cryptography
from morphfed.training.config import TrainConfig

TaskName = Literal["classification", "segmentation", "mil", "survival"]

_BAGS = ("mil", "survival")

_SELECT = {"segmentation": "dice", "survival": "c_index"}
"""Validation metric that chooses the round where the study names none; of classes the field's own default."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class SiteConfig(Config):
    """Where one site's images are: a folder that a source adapter reads, or a manifest."""

    path: str = Field(
        description="folder of images, or a .parquet/.csv manifest; of bags a folder of them, a slide table "
        "or a CSV set; relative to data.root"
    )
    source: str | None = Field(None, description="source adapter; empty: the one that fits best")
    um_per_px: float | None = Field(None, gt=0, description="micrometres per pixel; empty: from the source")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the source adapter")
    mask_values: dict[str, int | tuple[int, ...]] = Field(
        default_factory=dict,
        description="structure = its value, or list of values, in this site's masks; empty: the source's, else the "
        "k-th structure is k; with task = 'segmentation'",
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="this site's own label = class; beside data.labels, with task = 'mil'"
    )


class SplitConfig(Config):
    """Shares of a training site's images (patients where known). Held-out sites are all test."""

    train: float = Field(0.6, gt=0, lt=1, description="share for training")
    validation: float = Field(0.1, ge=0, lt=1, description="share for choosing the best round")
    test: float = Field(0.3, gt=0, lt=1, description="share for the report")
    seed: int = Field(0, ge=0, description="of the split; the same for every training seed")
    copies_together: bool = Field(True, description="pictures that nearly repeat another stay on its side")
    leaky_published: str | None = Field(
        None,
        description="table of a published split, with the columns image and part (and site); relative to data.root. "
        "It is taken as it is; what lies on both sides is counted and said in the report, and images that it does not "
        "list are left out",
    )


class DataConfig(Config):
    """How images become tensors."""

    root: str = Field(".", description="folder that the sites' paths are relative to; relative to the study file")
    image_size: int = Field(96, ge=16, le=1024, description="side of the stored pictures in pixels")
    field_um: float = Field(25.0, ge=0, description="side of the kept square in µm; 0: the whole picture")
    estimate_scale: bool = Field(True, description="estimate µm per pixel from the nuclei where it is unknown")
    pad: Literal["edge", "none"] = Field("none", description="where the field is larger than the picture")
    split: SplitConfig = Field(default_factory=SplitConfig, description="shares of the parts")
    coarse: Literal["leave_out", "parent"] = Field(
        "leave_out",
        description="images whose label is a coarser name of two or more classes; parent: those of training sites are "
        "trained with, as an image of one of these classes; they are never tested or validated with",
    )
    min_per_class: int = Field(5, ge=1, description="fewer images of a class at a site are pointed out")
    check: bool = Field(True, description="run the data check before training")
    labels: dict[str, str] = Field(
        default_factory=dict, description="a label = its class, at all sites; with task = 'mil'"
    )
    encoder: str | None = Field(
        None,
        description="of bags: what computed the features, as their files say (a name, or a name and the fingerprint "
        "of its weights); bags of another encoder are refused. Needed over a network, where nobody sees all bags",
    )
    time_edges: tuple[float, ...] = Field(
        (),
        description="with task = 'survival': months that cut time into bins, rising, one fewer than bins; an event at "
        "an edge is in the bin that begins there. The same at every site, agreed before training",
    )
    standardise: Literal["none", "site"] = Field(
        "none",
        description="of bags; site: each feature has mean 0 and spread 1 over the instances of the site's "
        "own training bags (of a held-out site all its bags, never their labels); nothing of it leaves the site",
    )

    @field_validator("time_edges")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not (math.isfinite(v) and v > 0) for v in value) or any(b <= a for a, b in pairwise(value)):
            raise ValueError("time_edges must be finite, above 0 and rising")
        return value


class EvaluationConfig(Config):
    """How arms are judged."""

    resamples: int = Field(2000, ge=100, description="bootstrap resamples")
    images: bool = Field(True, description="show sample images and mistakes in the report")
    views: Literal[1, 8] = Field(1, description="8: test predictions are means over turned and mirrored copies")
    use: Literal["best", "last"] = Field("best", description="which round's model is tested")
    calibrate: Literal["none", "temperature"] = Field(
        "none",
        description="temperature: one number that scales a model's confidence, fitted over the validation parts of its "
        "training sites without moving images",
    )
    adapt: Literal["none", "norms"] = Field(
        "none",
        description="norms: held-out sites are also judged with batch norms whose running statistics were re-estimated "
        "on their own unlabelled test images; reported beside the plain scores, as adaptation",
    )
    unknown: bool = Field(
        False,
        description="also judge cells of none of the classes (left out for their label): is a model less sure of them, "
        "and how many does a threshold stop that accepts 95 % of the validation images",
    )
    release: Literal["none", "scores"] = Field(
        "none",
        description="over a network only: what of its test part each site tells, so that the coordinator can write a "
        "report. scores: how many images of each class it has, and of each model the scores with their resamples, the "
        "table of confusions and the curves; never an image, a label or a prediction of one. Held-out sites take part, "
        "and local models are trained at their sites",
    )
    retrogress: bool = Field(
        False,
        description="in every round each site also judges the model that it has just trained, on its validation part, "
        "so that the report can show what each communication does to it; one more forward pass over these parts",
    )


class ComputeConfig(Config):
    """What the machine gives. It does not change what is computed; device, threads and compile change the last bits."""

    device: str = Field("auto", description="auto, cpu, cuda (units are dealt out over all GPUs) or cuda:N")
    jobs: int = Field(0, ge=0, description="units trained at once in processes of their own; 0: one a core, or a GPU")
    threads: int = Field(0, ge=0, description="torch threads a process; 0: cores / jobs")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile of the training step; auto: on a GPU, where it is measured to repay itself"
    )


class Study(Config):
    """A study as written."""

    name: str = Field(description="short name; the run folder is called after it")
    title: str = Field("", description="headline of the report")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="one training run of every arm each")
    task: TaskName = Field(
        "classification",
        description="classification: a class an image; segmentation: a mask; mil: a class a bag; survival: when an "
        "event comes, from a bag",
    )
    classes: tuple[str, ...] = Field(
        (), description="nodes of the ontology, at least 2; finer labels are joined. With task = 'mil' any words"
    )
    structures: tuple[str, ...] = Field((), description="what masks show beside the background; with segmentation")
    held_out: tuple[str, ...] = Field((), description="sites that never train and never select")
    holdout: Literal["named", "each"] = Field(
        "named", description="named: the sites of held_out; each: every site in turn, all others training"
    )
    sites: dict[str, SiteConfig] = Field(min_length=1, description="the sites by name")
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    arms: dict[str, dict[str, Any]] = Field(
        default_factory=lambda: dict[str, dict[str, Any]](local={}, centralised={}, fedavg={}, fedprox={}),
        description="what is compared; keys: algorithm, its own keys, and model/train/federation overrides",
    )
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    compute: ComputeConfig = Field(default_factory=ComputeConfig)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("task") in _BAGS:
            model = values.get("model")
            if model is None or (isinstance(model, dict) and "name" not in model):
                values = {**values, "model": {**(model or {}), "name": "mil/gated_abmil"}}
        select = _SELECT.get(str(values.get("task"))) if isinstance(values, dict) else None
        if select is not None:
            federation = values.get("federation")
            if federation is None or (isinstance(federation, dict) and "select" not in federation):
                return {**values, "federation": {**(federation or {}), "select": select}}
        return values

    @field_validator("classes", "structures")
    @classmethod
    def _names_of_the_task(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        task = info.data.get("task")
        if info.field_name == "classes" and task in ("classification", "mil") and len(value) < 2:
            raise ValueError("name at least two classes")
        if task is None:  # no task at all; that is what the user reads
            return value
        if info.field_name == "structures" and task == "segmentation" and not value:
            raise ValueError("name at least one structure, such as structures = ['nucleus']")
        named = {"segmentation": "structures", "survival": "data.time_edges"}.get(task, "classes")
        if value and info.field_name != named:
            raise ValueError(f"task = '{task}' has {named}, no {info.field_name}")
        if (info.field_name == "structures" or task == "mil") and len(set(value)) != len(value):
            raise ValueError("each name once")
        return value

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("use lower-case letters, digits, '-' and '_'")
        return value

    @field_validator("sites", "arms")
    @classmethod
    def _plain_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"'{name}': use lower-case letters, digits, '-' and '_'")
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value) or min(value) < 0:
            raise ValueError("seeds must be distinct and not negative")
        return value

    @property
    def training_sites(self) -> list[str]:
        """Sites that train, in the study's order."""
        return [name for name in self.sites if name not in self.held_out]


@dataclass(frozen=True)
class Arm:
    """One thing compared, with all its settings resolved.

    Attributes:
        name: as in the study.
        algorithm: the registered algorithm.
        config: its keys.
        model, train, federation: the study's, with this arm's overrides.
    """

    name: str
    algorithm: Algorithm
    config: AlgorithmConfig
    model: ModelConfig
    train: TrainConfig
    federation: FederationConfig

    def travelling(self, layout: Layout) -> tuple[str, ...]:
        """Keys that cross a site's border: what the algorithm sends, less site-local normalisation.

        Raises:
            ConfigError: there are none.
        """
        going = self.algorithm.travels(self.config, layout)
        if self.model.norm == "local":
            going = tuple(k for k in going if k not in layout.norms)
        if not going:
            raise ConfigError(
                f"arms.{self.name}: nothing would travel: '{self.algorithm.name}' keeps at the sites all that "
                f"model.tune = '{self.model.tune}' trains.",
                fix="train more (model.tune = 'last-1' or 'full'), or choose another algorithm.",
            )
        return going

    def coding(self, layout: Layout, uploads: Specs, *, seed: int) -> Coding:
        """How this arm's uploads and downloads are written.

        Args:
            layout: of the network.
            uploads: what an upload of the algorithm holds, uncoded.
            seed: of stochastic rounding.
        """
        return Coding(
            self.federation.upload,
            self.federation.download,
            specs=uploads,
            weights=layout.parameters.intersection(self.travelling(layout)),
            changes=self.algorithm.changes(uploads),
            seed=seed,
        )

    def noise(self, layout: Layout, uploads: Specs, *, seed: int) -> Noise | None:
        """What this arm's sites add to their uploads; None: nothing.

        Args:
            layout: of the network.
            uploads: what an upload of the algorithm holds, uncoded.
            seed: of the draws.

        Raises:
            ConfigError: calibrated noise would leave a tensor of the upload without any.
        """
        keys = self.federation.noise
        if keys.kind == "none":
            return None
        weights, changes = layout.parameters.intersection(self.travelling(layout)), self.algorithm.changes(uploads)
        clean = [name for name in uploads if name not in weights | changes]
        if keys.kind == "calibrated" and clean:
            statistics = [name for name in clean if name in layout.statistics]
            raise ConfigError(
                f"arms.{self.name}: federation.noise.kind = 'calibrated' needs every tensor of an upload to be a "
                f"change of weights, but {len(clean)} are not ({', '.join(clean[:3])}), so that no ε would hold.",
                fix="set model.norm = 'group' or 'local', so that no running statistics travel."
                if statistics == clean
                else f"'{self.algorithm.name}' sends more than weights: choose another algorithm, or 'as_published'.",
            )
        return Noise(keys, weights=weights, changes=changes, seed=seed)

    def sums(self, layout: Layout, uploads: Specs, *, unit: str, sites: tuple[str, ...]) -> Plan | None:
        """What of this arm's uploads is summed under masks; None: they go one by one.

        Args:
            layout: of the network.
            uploads: what an upload of the algorithm holds.
            unit: key of the unit.
            sites: that train.
        """
        rule = self.algorithm.sums(self.config)
        if not self.federation.secure.on or rule.weighting is None:
            return None
        travels, changes = frozenset(self.travelling(layout)), self.algorithm.changes(uploads)
        return Plan(
            unit=unit,
            sites=sites,
            config=self.federation.secure,
            weighting=rule.weighting,
            specs=uploads,
            relative=frozenset(uploads) & travels,
            trained=(layout.parameters & travels) | changes,
            purpose=f"{self.algorithm.name}: {self.algorithm.facts.travels}",
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for config.json."""
        return {
            "algorithm": self.algorithm.name,
            "config": self.config.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json"),
            "federation": self.federation.model_dump(mode="json"),
        }


_TABLES = ("model", "train", "federation")


def load_study(path: Path, overrides: Sequence[str] = ()) -> tuple[Study, dict[str, Arm]]:
    """Read a study file, apply ``key=value`` overrides, and check all of it.

    Raises:
        ConfigError: names the key, the site or the arm, and what was expected.
    """
    values = override(read_toml(path), overrides)
    study = validate(Study, values, where=str(path))
    _check_sites(study, path)
    arms = {name: resolve_arm(study, name, where=str(path)) for name in study.arms}
    from morphfed.experiment.tasks import study_task

    study_task(study).check(study, arms, where=str(path))
    return study, arms


def _check_sites(study: Study, path: Path) -> None:
    for name in study.held_out:
        if name not in study.sites:
            raise ConfigError(
                f"{path}: held_out names the site '{name}', which is not in [sites].{did_you_mean(name, study.sites)}",
                fix="correct the name, or add the site.",
            )
    if study.holdout == "each":
        _check_each(study, path)
    if not study.training_sites:
        raise ConfigError(f"{path}: every site is held out.", fix="leave at least one site to train.")
    if not study.arms:
        raise ConfigError(f"{path}: no arm is named.", fix="add for example [arms.fedavg].")


def _check_each(study: Study, path: Path) -> None:
    if study.held_out:
        raise ConfigError(
            f'{path}: holdout = "each" holds out every site in turn, but held_out names {", ".join(study.held_out)}.',
            fix='remove held_out, or set holdout = "named" to hold out only the sites that it names.',
        )
    if len(study.sites) < 2:
        raise ConfigError(
            f'{path}: holdout = "each" needs at least two sites, one to hold out and one to train; '
            f"there is {len(study.sites)}.",
            fix='add a site, or set holdout = "named".',
        )


def resolve_arm(study: Study, name: str, *, where: str) -> Arm:
    """One arm with the study's settings and its own overrides.

    Raises:
        ConfigError: unknown algorithm or key.
    """
    own = dict(study.arms[name])
    algorithm = ALGORITHMS[str(own.pop("algorithm", name))]
    tables: dict[str, Any] = {}
    for table in _TABLES:
        changes = own.pop(table, {})
        if not isinstance(changes, Mapping):
            raise ConfigError(f"{where}: arms.{name}.{table} must be a table.", fix=f"write [arms.{name}.{table}].")
        base: Config = getattr(study, table)
        tables[table] = validate(type(base), _merge(base.model_dump(), changes), where=f"{where}: arms.{name}.{table}")
    known = set(algorithm.config.model_fields) | {"algorithm", *_TABLES}
    for key in own:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key 'arms.{name}.{key}'.{did_you_mean(key, known)} "
                f"Known here: {', '.join(sorted(known))}.",
                fix="correct the key; `morphfed show " + algorithm.name + "` explains each.",
            )
    own = {**algorithm.defaults.get(study.task, {}), **own}
    config = validate(algorithm.config, own, where=f"{where}: arms.{name}")
    refuse_nonsense(tables["model"], where=f"{where}: arms.{name}")
    if tables["federation"].noise.kind == "calibrated" and algorithm.kind == "federated":
        need_accounting()
    if tables["federation"].secure.on and algorithm.kind == "federated":
        _check_secure(study, Arm(name, algorithm, config, **tables), where)
    return Arm(name, algorithm, config, **tables)


def _check_secure(study: Study, arm: Arm, where: str) -> None:
    """What cannot be had when the coordinator sees sums only is said before any work.

    Raises:
        ConfigError: names the arm and why.
        MissingExtraError: the library is not installed.
    """
    why, fix = _unfit_for_sums(study, arm)
    if why:
        raise ConfigError(f"{where}: arms.{arm.name}: federation.secure: {why}.", fix=fix)
    need_cryptography()


def _unfit_for_sums(study: Study, arm: Arm) -> tuple[str, str]:
    """Why an arm's uploads cannot be summed under masks, and what to do; empty: they can."""
    off = f"set arms.{arm.name}.federation.secure = false"
    sites = len(study.training_sites) - (study.holdout == "each")
    if why := arm.federation.secure.unfit_for(sites):
        return why, "change federation.secure.threshold, or the number of training sites."
    rule = arm.algorithm.sums(arm.config)
    if rule.weighting is None:
        return (
            f"'{arm.algorithm.name}' cannot work with sums: {rule.why}",
            f"{off}, or take an algorithm that averages.",
        )
    if arm.algorithm.numbers:
        told = ", ".join(sorted(arm.algorithm.numbers))
        return f"'{arm.algorithm.name}' sends numbers of each site with its upload: {told}", f"{off}."
    if arm.federation.upload.code != "fp32":
        why = (
            f"federation.upload = '{arm.federation.upload.code}' writes each site's numbers in a scale or at places of "
            "their own, which cannot be added under masks"
        )
        return why, "leave upload at 'fp32'; federation.secure.bits = 16 halves what is sent."
    if study.evaluation.retrogress:
        return "evaluation.retrogress sends scores of each site with its upload", "set evaluation.retrogress = false."
    return "", ""


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
