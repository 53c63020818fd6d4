"""A read-only view of results.json: who was trained, what was measured, what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from morphfed.core.errors import StorageError
from morphfed.core.files import read_json
from morphfed.reporting.text import arm_title, finite

SCHEMA = 1
SIGNIFICANT = 0.05
SMALL_CLASS = 20
"""Test images of a class below which its recall is called uncertain (its 95 % interval spans 0.2 or more)."""

Kind = Literal["own", "mean", "best", "single", "pooled", "federated"]


@dataclass(frozen=True)
class Estimate:
    """A number over seeds with its interval; any of them None where it could not be computed."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    seeds: int = 0

    @property
    def known(self) -> bool:
        """Whether there is a number at all."""
        return self.value is not None

    def times(self, factor: float) -> Estimate:
        """The same in another unit."""
        low, value, high, sd = (None if v is None else v * factor for v in (self.low, self.value, self.high, self.sd))
        return Estimate(value, low, high, sd, self.seeds)


@dataclass(frozen=True)
class Model:
    """One row of the comparison.

    Attributes:
        key: name in ``summary`` and ``comparisons``.
        arm: the arm it belongs to.
        kind: ``own``: every site judged by its own local model; ``mean``: the mean of the local models' scores;
            ``best``: at each held-out site the best local model; ``single``: one site's local model, judged
            everywhere; ``pooled``: all images in one place;
            ``federated``: the rest.
        title: name for people.
        site: the site that trained it, for ``single``.
    """

    key: str
    arm: str
    kind: Kind
    title: str
    site: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A paired difference ``a − b``."""

    a: str
    b: str
    metric: str
    scope: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    resamples: int | None = None
    seeds: int | None = None
    clusters: int | None = None
    cluster_unit: str | None = None

    @property
    def tested(self) -> bool:
        """Whether there is a difference with an interval."""
        return None not in (self.difference, self.low, self.high)

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out and the corrected p, where there is one, is below .05."""
        if self.low is None or self.high is None or not self.tested:
            return False
        return (self.low > 0 or self.high < 0) and (self.p_holm is None or self.p_holm < SIGNIFICANT)

    def turned(self) -> Comparison:
        """The same comparison read as ``b − a``."""
        flip = [None if v is None else -v for v in (self.difference, self.high, self.low)]
        return replace(self, a=self.b, b=self.a, difference=flip[0], low=flip[1], high=flip[2])


class Results:
    """What every part of the report asks.

    Args:
        raw: results.json, schema 1.

    Raises:
        StorageError: another schema, or a block without which there is no report.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        _check(raw)
        self.raw = raw
        study: Mapping[str, Any] = raw["study"]
        self.study = study
        self.name = str(study["name"])
        self.title = str(study.get("title") or study["name"])
        self.task = str(study.get("task") or "classification")
        self.classes: list[str] = [str(c) for c in study["classes"]]
        self.structures: list[str] = [str(s) for s in study.get("structures") or []]
        self.seeds: list[int] = list(study.get("seeds") or sorted({u["seed"] for u in raw["arms"]}))
        self.training: list[str] = list(study["training_sites"])
        self.held_out: list[str] = list(study.get("held_out") or [])
        self.folds: list[Mapping[str, Any]] = list(raw.get("folds") or [])
        self.metric = str(study.get("primary_metric") or "balanced_accuracy")
        self.units: list[Mapping[str, Any]] = list(raw["arms"])
        self.data: Mapping[str, Any] = raw.get("data") or {}
        self.sites: Mapping[str, Mapping[str, Any]] = self.data.get("sites") or {}
        self.config: Mapping[str, Any] = raw.get("config") or {}
        self.environment: Mapping[str, Any] = raw.get("environment") or {}
        self._summary = {(s["model"], s["scope"], s["metric"]): _estimate(s) for s in raw.get("summary") or []}
        self.comparisons = [_comparison(c) for c in raw.get("comparisons") or []]

    @property
    def all_sites(self) -> list[str]:
        """Training sites, then held-out sites; each once where every site is both in turn."""
        return list(dict.fromkeys([*self.training, *self.held_out]))

    @property
    def over_network(self) -> bool:
        """Whether images and predictions stayed at their sites, so that only scores are known."""
        return bool(self.raw.get("network"))

    def role(self, site: str) -> str:
        """``train``, ``held_out``, or ``each`` where every site is held out in turn."""
        if self.folds:
            return "each"
        return "held_out" if site in self.held_out else "train"

    def patient_unit(self, site: str) -> str:
        """What the bootstrap resamples at a site: ``patient`` or ``image``."""
        said = self.sites.get(site, {}).get("cluster_unit")
        for unit in self.units:
            said = said or unit.get("sites", {}).get(site, {}).get("cluster_unit")
        return str(said or "image")

    # ── models ──────────────────────────────────────────────────────────────────────────────────────────────
    @cached_property
    def arms(self) -> list[Model]:
        """One model an arm, in the study's order; a local arm is ``local (own site)``."""
        names = list(self.study.get("arms") or dict.fromkeys(u["arm"] for u in self.units))
        return [self._arm(str(name)) for name in names]

    def _arm(self, name: str) -> Model:
        units = [u for u in self.units if u["arm"] == name]
        local = any("/" in str(u["model"]) for u in units) or (not units and name == "local")
        if local:
            return Model(f"{name} (own site)", name, "own", f"{arm_title(name)} (own site)")
        pooled = name == "centralised" or any(u.get("algorithm") == "centralised" for u in units)
        return Model(name, name, "pooled" if pooled else "federated", arm_title(name))

    @cached_property
    def singles(self) -> list[Model]:
        """Local models one by one, each judged at every site."""
        return [
            Model(f"{m.arm}/{site}", m.arm, "single", f"{arm_title(m.arm)}: {site}", site)
            for m in self.arms
            if m.kind == "own"
            for site in self.training
        ]

    @cached_property
    def means(self) -> list[Model]:
        """For every local arm the mean of its models: what to expect of one of them, wherever it is used."""
        return [
            Model(f"{m.arm} (mean)", m.arm, "mean", f"{arm_title(m.arm)} (mean of models)")
            for m in self.arms
            if m.kind == "own"
        ]

    @cached_property
    def bests(self) -> list[Model]:
        """For every local arm the best of its models at each held-out site, in a study of folds."""
        return [
            Model(f"{m.arm} (best)", m.arm, "best", f"{arm_title(m.arm)} (best of models)")
            for m in self.arms
            if m.kind == "own" and self.folds
        ]

    @property
    def models(self) -> list[Model]:
        """Every model: the arms, and what the local ones are and make."""
        return [*self.arms, *self.means, *self.bests, *self.singles]

    def of_kind(self, kind: Kind) -> list[Model]:
        """Arms of one kind."""
        return [m for m in self.models if m.kind == kind]

    def mean_of(self, model: Model) -> Model | None:
        """The mean model of a local arm."""
        return next((m for m in self.means if m.arm == model.arm), None)

    def judged_at(self, site: str) -> list[Model]:
        """Models to show at a site: the arms, and where no local model is at home, every local model."""
        shown: list[Model] = []
        for model in self.arms:
            if model.kind == "own" and site not in self.training:
                # Over a network local models stay at home, and nobody knows how they do elsewhere.
                shown += [] if self.over_network else [s for s in self.singles if s.arm == model.arm]
            else:
                shown.append(model)
        return shown

    def title_of(self, key: str) -> str:
        """A model's name for people."""
        known = {m.key: m.title for m in self.models}
        return known.get(key, key)

    def units_of(self, model: Model, site: str | None = None) -> list[Mapping[str, Any]]:
        """Trained units behind a model, by seed; for ``own``, those of ``site`` (of all sites where None)."""
        key = f"{model.arm}/{site}" if model.kind == "own" and site is not None else model.key
        if model.kind == "mean":
            return []  # made of others
        if model.kind == "own" and site is None:
            found = [u for u in self.units if u["arm"] == model.arm]
        else:
            found = [u for u in self.units if u["model"] == key]
        return sorted(found, key=lambda u: int(u["seed"]))

    def tests_of(self, model: Model, site: str) -> list[Mapping[str, Any]]:
        """What each seed's model did on a site's test part."""
        return [u["sites"][site] for u in self.units_of(model, site) if u.get("sites", {}).get(site)]

    # ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────
    def estimate(self, model: Model, scope: str, metric: str | None = None) -> Estimate:
        """A model's number in a scope (a site, ``mean_training`` …): of ``summary``, else of its units."""
        metric = metric or self.metric
        keys = [model.key]
        if model.kind == "own" and scope in self.training:
            keys.append(f"{model.arm}/{scope}")
        for key in keys:
            if (key, scope, metric) in self._summary:
                return self._summary[key, scope, metric]
        return over_seeds(t.get("metrics", {}).get(metric) for t in self.tests_of(model, scope))

    def masked(self, model: Model, site: str, metric: str | None = None) -> Estimate:
        """The same, prediction masked to the classes present at the site; unknown where all are present."""
        blocks = [t["masked"] for t in self.tests_of(model, site) if t.get("masked")]
        name = metric or self.metric
        if not blocks:
            return Estimate()
        summed_up = self._summary.get((model.key, site, f"{name}_masked"))
        return summed_up or over_seeds(b.get("metrics", {}).get(name) for b in blocks)

    def compare(self, a: Model, b: Model, scope: str, metric: str | None = None) -> Comparison | None:
        """The tested difference ``a − b``, whichever way round it was written down."""
        for c in self.comparisons:
            if c.metric == (metric or self.metric) and c.scope in self._same(scope):
                if (c.a, c.b) == (a.key, b.key):
                    return c
                if (c.a, c.b) == (b.key, a.key):
                    return c.turned()
        return None

    def _same(self, scope: str) -> set[str]:
        """Scopes that mean the same test images."""
        for group, sites in (("mean_held_out", self.held_out), ("mean_training", self.training)):
            if len(sites) == 1 and scope in {group, sites[0]}:
                return {group, sites[0]}
        return {scope}

    def plain_scope(self, scope: str) -> str:
        """The site for a mean over that one site; any other scope as it is."""
        return min(self._same(scope), key=lambda s: s.startswith("mean_"))

    @property
    def held_out_scope(self) -> str | None:
        """The one scope that stands for all held-out sites."""
        if not self.held_out:
            return None
        return self.held_out[0] if len(self.held_out) == 1 else "mean_held_out"

    # ── what is missing ─────────────────────────────────────────────────────────────────────────────────────
    @property
    def planned(self) -> int:
        """Units that the study asked for."""
        if self.folds:
            return len(self.units) + len(self.missing)
        return len(self._wanted) * len(self.seeds)

    @cached_property
    def _wanted(self) -> list[str]:
        keys = [[f"{m.arm}/{s}" for s in self.training] if m.kind == "own" else [m.key] for m in self.arms]
        return [key for of_arm in keys for key in of_arm]

    @cached_property
    def missing(self) -> list[tuple[str, str]]:
        """Units that the study asked for and that have no results → why, as far as that is known."""
        reasons = _reasons(self.raw.get("failed"))
        if self.folds:
            return list(reasons.items())
        done = {(u["model"], u["seed"]) for u in self.units if u.get("sites")}
        lacking = [(key, seed) for key in self._wanted for seed in self.seeds if (key, seed) not in done]
        return [(f"{key}, seed {seed}", self._why(key, seed, reasons)) for key, seed in lacking]

    def _why(self, key: str, seed: int, reasons: Mapping[str, str]) -> str:
        for unit in self.units:
            if (unit["model"], unit["seed"]) == (key, seed) and unit.get("error"):
                return str(unit["error"])
        arm, _, site = key.partition("/")
        return reasons.get(f"{arm}/{site or 'all'}/seed-{seed}", "it is not in results.json")


def over_seeds(values: Iterable[Mapping[str, Any] | None]) -> Estimate:
    """Mean over seeds of ``{value, low, high}``; limits are means of limits, one seed's width."""
    known = [v for v in values if v and finite(v.get("value")) is not None]
    if not known:
        return Estimate()
    numbers = [float(v["value"]) for v in known]
    mean = fmean(numbers)
    sd = (sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1)) ** 0.5 if len(numbers) > 1 else None
    lows, highs = ([finite(v.get(k)) for v in known] for k in ("low", "high"))
    return Estimate(mean, _mean(lows), _mean(highs), sd, len(known))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if len(known) == len(values) and known else None


def _estimate(raw: Mapping[str, Any]) -> Estimate:
    value, low, high, sd = (finite(raw.get(k)) for k in ("mean", "low", "high", "sd"))
    return Estimate(value, low, high, sd, int(raw.get("seeds") or 0))


def _comparison(raw: Mapping[str, Any]) -> Comparison:
    difference, low, high, p, p_holm = (finite(raw.get(k)) for k in ("difference", "low", "high", "p", "p_holm"))
    return Comparison(
        str(raw["a"]),
        str(raw["b"]),
        str(raw["metric"]),
        str(raw["scope"]),
        difference=difference,
        low=low,
        high=high,
        p=p,
        p_holm=p_holm,
        resamples=raw.get("resamples"),
        seeds=raw.get("seeds"),
        clusters=raw.get("clusters"),
        cluster_unit=raw.get("cluster_unit"),
    )


def _reasons(failed: Any) -> dict[str, str]:
    """Why units failed: a mapping from the unit's key, or a list of ``{unit, reason}``."""
    if isinstance(failed, Mapping):
        return {str(k): str(v) for k, v in failed.items()}
    return {str(f.get("unit")): str(f.get("reason")) for f in failed or [] if isinstance(f, Mapping)}


def _check(raw: Mapping[str, Any]) -> None:
    given = raw.get("schema")
    if given != SCHEMA:
        raise StorageError(
            f"results.json has schema {given!r}; this morphfed reads schema {SCHEMA}.",
            fix="write the report with the morphfed version that made the results.",
        )
    wanted = {"study": ("name", "classes", "training_sites"), "arms": ()}
    for block, keys in wanted.items():
        if block not in raw:
            raise StorageError(f"results.json has no block '{block}'.", fix="run the study again to rewrite it.")
        for key in keys:
            if key not in raw[block]:
                raise StorageError(f"results.json has no '{block}.{key}'.", fix="run the study again to rewrite it.")


def load(results: Mapping[str, Any] | Path) -> Results:
    """Read results from a mapping, a results.json or the run folder that holds one.

    Raises:
        StorageError: the file is missing or damaged, or it has another schema.
    """
    if isinstance(results, Mapping):
        return Results(results)
    path = Path(results)
    path = path / "results.json" if path.is_dir() else path
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise StorageError(f"{path} does not hold an object.", fix="name the results.json of a run.")
    return Results(content)
