"""Every unit's metrics at every site, on the images as they are and on each resample of them.

A *vector* is an array ``(1 + B,)``: the metric on the images as they are, then on each of B resamples. Means
over seeds, sites or models are taken inside each resample, so whatever is made of vectors has its own
interval and is paired with whatever else is made of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from morphfed.core.errors import DataError, did_you_mean
from morphfed.evaluation.bootstrap import RESAMPLES, cluster_codes, replicate_metrics
from morphfed.evaluation.metrics import HIGHER_IS_BETTER, METRICS, Floats, measure
from morphfed.evaluation.predictions import Judged, Predictions, in_order
from morphfed.evaluation.site import Role
from morphfed.evaluation.vectored import Vectored

OWN_SITE, MEAN_LOCAL = "own site", "mean"
MEAN_TRAINING, MEAN_HELD_OUT = "mean_training", "mean_held_out"
WORST_TRAINING, GAP_TRAINING = "worst_training", "gap_training"
MASKED = {"balanced_accuracy_masked": "balanced_accuracy", "macro_f1_masked": "macro_f1"}


@dataclass(frozen=True, eq=False)
class UnitPredictions:
    """One trained model's predictions on the test images of every site.

    Attributes:
        arm: name of the study's arm.
        model: what was trained; the same over seeds (``fedavg``, ``local/barcelona``).
        algorithm: name of the algorithm; ``centralised`` marks the arm that pools the images.
        seed: of this training.
        trained_on: sites whose images it was trained on.
        sites: site → predictions, all with the study's classes; without held-out sites that the model is not for.
        roles: site → its role in the study (not in this unit), for every one of ``sites``.
    """

    arm: str
    model: str
    algorithm: str
    seed: int
    trained_on: tuple[str, ...]
    sites: Mapping[str, Judged]
    roles: Mapping[str, Role]

    @property
    def own_site(self) -> str | None:
        """The site whose local model this is (``arm/site``), or None."""
        local = len(self.trained_on) == 1 and self.model == f"{self.arm}/{self.trained_on[0]}"
        return self.trained_on[0] if local else None

    @property
    def centralised(self) -> bool:
        """Whether the training sites' images were pooled."""
        return "centralised" in (self.arm, self.algorithm)


def made_of_locals(kind: str, arm: str) -> str:
    """Name of what is made of an arm's local models: ``local (own site)`` or ``local (mean)``."""
    return f"{arm} ({kind})"


class Vectors(ABC):
    """What summaries and comparisons ask: a vector for every model, scope, metric and seed.

    Attributes:
        resamples: B.
        metrics: names, of :data:`METRICS` and :data:`MASKED`.
    """

    resamples: int
    metrics: tuple[str, ...]

    @property
    def compared(self) -> list[str]:
        """Metrics in which models are compared, of those that are known."""
        return [m for m in self.metrics if m in ("balanced_accuracy", "macro_f1", *MASKED)]

    @property
    @abstractmethod
    def all_models(self) -> tuple[str, ...]:
        """Every model, also those that are made of others."""

    @property
    @abstractmethod
    def scopes(self) -> tuple[str, ...]:
        """Every scope."""

    @abstractmethod
    def arm(self, model: str) -> str:
        """The arm of a model."""

    @abstractmethod
    def seeds(self, model: str) -> tuple[int, ...]:
        """Seeds of a model, rising."""

    @abstractmethod
    def clusters_of(self, scope: str) -> tuple[int, str]:
        """How many clusters stand behind a scope, and of what unit: ``patient``, ``image`` or ``mixed``."""

    @abstractmethod
    def vector(self, model: str, scope: str, metric: str, seed: int) -> Floats | None:
        """The vector of one model and seed in a scope; None where that is not defined."""

    def largest(self, metric: str) -> float:
        """The largest value that a metric can have."""
        return 1.0

    def seed_mean(self, model: str, scope: str, metric: str, seeds: Sequence[int]) -> Floats | None:
        """Mean of the vectors over ``seeds``, inside each resample."""
        return mean_over([self.vector(model, scope, metric, s) for s in seeds])


class Scores(Vectors):
    """Vectors of many units; what summaries, matrices and comparisons are read from.

    Args:
        units: any number of models, seeds and sites; with vectors in place of predictions where these stayed at a site.
        metrics: names of :data:`METRICS` or :data:`MASKED`; by default all of the former, and the latter
            where a site lacks a class of the study.
        resamples: B.
        seed: of the resampling.

    Raises:
        DataError: no units, an unknown metric, a model twice with one seed, or units whose sites, roles,
            classes or images differ. Held-out sites may be missing, where a method has no model for them; of vectors
            that sites gave any site may.
    """

    def __init__(
        self,
        units: Sequence[UnitPredictions],
        *,
        metrics: Sequence[str] | None = None,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        _check_units(units)
        self.resamples = resamples
        self.units = tuple(units)
        first = _all_sites(units) if _given(units) else _widest(units)
        self.models = tuple(dict.fromkeys(u.model for u in units))
        self.arms = {u.model: u.arm for u in units}
        self.sites = tuple(first.sites)
        self.training = tuple(s for s in self.sites if first.roles[s] == "train")
        self.held_out = tuple(s for s in self.sites if first.roles[s] == "held_out")
        self.clusters = {s: _clusters(p) for s, p in first.sites.items()}
        self.cluster_units = {s: str(p.cluster_unit) for s, p in first.sites.items()}
        self.locals: dict[str, dict[str, str]] = {}  # arm → site → model
        for u in units:
            if u.own_site is not None:
                self.locals.setdefault(u.arm, {})[u.own_site] = u.model
        self._made = {made_of_locals(k, a): (k, a) for a in self.locals for k in (OWN_SITE, MEAN_LOCAL)}
        every, usual = self._known_metrics(first.sites)
        self.metrics = tuple(metrics) if metrics is not None else usual
        known("metric", self.metrics, every)
        self._vectors = {
            (u.model, u.seed, site): {name: p.vectors[name] for name in self.metrics}
            if isinstance(p, Vectored)
            else self._vectors_of(p, resamples, seed)
            for u in units
            for site, p in u.sites.items()
        }

    def _known_metrics(self, sites: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Metrics that may be asked for, and those that are computed where none is."""
        lacking = any(0 < len(p.present) < len(p.classes) for p in sites.values())
        return (*METRICS, *MASKED), (*METRICS, *(MASKED if lacking else ()))

    def _vectors_of(self, judged: Any, resamples: int, seed: int) -> dict[str, Floats]:
        """The vector of each metric at one site."""
        return _vectors(judged, self.metrics, resamples, seed)

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of a metric is better."""
        return HIGHER_IS_BETTER[MASKED.get(metric, metric)]

    @property
    def all_models(self) -> tuple[str, ...]:
        """The models, and the two that are made of the local ones of each arm that has any."""
        return (*self.models, *self._made)

    @property
    def scopes(self) -> tuple[str, ...]:
        """Every scope that this study has: its sites, then what is made of several."""
        result = list(self.sites)
        result += [MEAN_TRAINING] if self.training else []
        result += [MEAN_HELD_OUT] if self.held_out else []
        result += [WORST_TRAINING, GAP_TRAINING] if len(self.training) > 1 else []
        return tuple(result)

    def arm(self, model: str) -> str:
        """The arm of a model; that of the local models for what is made of them."""
        return self._made[model][1] if model in self._made else self.arms[model]

    def seeds(self, model: str) -> tuple[int, ...]:
        """Seeds of a model, rising; those that every local model has for what is made of them."""
        parts = list(self.locals[self._made[model][1]].values()) if model in self._made else [model]
        shared = [{u.seed for u in self.units if u.model == part} for part in parts]
        return tuple(sorted(set.intersection(*shared)))

    def sites_of(self, scope: str) -> tuple[str, ...]:
        """The sites that a scope is made of."""
        if scope in self.sites:
            return (scope,)
        return self.held_out if scope == MEAN_HELD_OUT else self.training

    def clusters_of(self, scope: str) -> tuple[int, str]:
        """How many clusters stand behind a scope, and of what unit: ``patient``, ``image`` or ``mixed``."""
        sites = self.sites_of(scope)
        units = {self.cluster_units[s] for s in sites}
        return sum(self.clusters[s] for s in sites), units.pop() if len(units) == 1 else "mixed"

    def vector(self, model: str, scope: str, metric: str, seed: int) -> Floats | None:
        """The vector of one model and seed in a scope; None where that is not defined.

        ``local (own site)`` is not defined at a site that trained no local model. NaN inside a vector: the
        metric cannot be computed (at one of the scope's sites).
        """
        kind, arm = self._made.get(model, ("", ""))
        if kind == MEAN_LOCAL:
            return _over([self.vector(m, scope, metric, seed) for m in self.locals[arm].values()], _mean)
        if scope in self.sites:
            name = self.locals[arm].get(scope, "") if kind == OWN_SITE else model
            found = self._vectors.get((name, seed, scope))
            return None if found is None else found[metric]
        parts = [self.vector(model, site, metric, seed) for site in self.sites_of(scope)]
        better_up = self.higher_is_better(metric)
        fold: dict[str, Callable[[Floats], Floats]] = {
            WORST_TRAINING: _lowest if better_up else _highest,
            GAP_TRAINING: _range,
        }
        return _over(parts, fold.get(scope, _mean))


def known(kind: str, names: Sequence[str], options: Sequence[str]) -> None:
    """Refuse a name that is not among ``options``.

    Raises:
        DataError: names it, the nearest option and all of them.
    """
    for name in names:
        if name not in options:
            raise DataError(
                f"There is no {kind} '{name}' to compare.{did_you_mean(name, options)}",
                fix=f"choose among: {', '.join(options)}.",
            )


def _over(parts: Sequence[Floats | None], fold: Callable[[Floats], Floats]) -> Floats | None:
    known = [p for p in parts if p is not None]
    return fold(np.stack(known)) if parts and len(known) == len(parts) else None


def mean_over(parts: Sequence[Floats | None]) -> Floats | None:
    """Mean of vectors; None without any, or where one of them is None."""
    return _over(parts, _mean)


def _mean(values: Floats) -> Floats:
    return np.asarray(values.mean(axis=0))


def _lowest(values: Floats) -> Floats:
    return np.asarray(values.min(axis=0))


def _highest(values: Floats) -> Floats:
    return np.asarray(values.max(axis=0))


def _range(values: Floats) -> Floats:
    return _highest(values) - _lowest(values)


def _vectors(p: Predictions, metrics: Sequence[str], resamples: int, seed: int) -> dict[str, Floats]:
    if not len(p):
        return {name: np.full(1 + resamples, np.nan) for name in metrics}
    free = tuple(n for n in metrics if n not in MASKED)
    masked = {n: MASKED[n] for n in metrics if n in MASKED}
    result = _measured(p, free, resamples, seed)
    if masked:
        # Where every class occurs the mask changes nothing, and the free vectors serve.
        known = result if len(p.present) == len(p.classes) and set(masked.values()) <= set(free) else None
        values = known or _measured(p.masked(p.present), tuple(masked.values()), resamples, seed)
        result |= {name: values[base] for name, base in masked.items()}
    return result


def _measured(p: Predictions, metrics: tuple[str, ...], resamples: int, seed: int) -> dict[str, Floats]:
    if not metrics:
        return {}
    estimate = measure(p.labels, p.probabilities, metrics=metrics, ranking=p.ranking)
    drawn = replicate_metrics(p, metrics, resamples=resamples, seed=seed)
    return {name: np.append(estimate[name], drawn.get(name, np.empty(0))) for name in metrics}


def _widest(units: Sequence[UnitPredictions]) -> UnitPredictions:
    """The first of the units that were judged at most sites."""
    return max(units, key=lambda u: len(u.sites))


def _given(units: Sequence[UnitPredictions]) -> bool:
    """Whether sites gave vectors in place of predictions."""
    return any(isinstance(p, Vectored) for u in units for p in u.sites.values())


def _all_sites(units: Sequence[UnitPredictions]) -> UnitPredictions:
    """The first unit, as if it had been judged wherever any was: in the order of the study's sites."""
    roles = units[0].roles
    known = {site: p for u in reversed(units) for site, p in u.sites.items()}
    return replace(units[0], sites={site: known[site] for site in roles if site in known})


def _clusters(judged: Judged) -> int:
    return judged.count if isinstance(judged, Vectored) else cluster_codes(judged.clusters)[1]


def _check_units(units: Sequence[UnitPredictions]) -> None:
    if not units:
        raise DataError("There are no predictions to compare.", fix="finish at least one unit of the study.")
    seen: set[tuple[str, int]] = set()
    first = _all_sites(units) if _given(units) else _widest(units)
    reference = {site: in_order(p) for site, p in first.sites.items()}
    for u in units:
        name = f"model '{u.model}' with seed {u.seed}"
        if (u.model, u.seed) in seen:
            raise DataError(f"There are two units of {name}.", fix="give each unit its own model or seed.")
        seen.add((u.model, u.seed))
        # A method may define no model for a site that took no part; every training site must be judged.
        odd = sorted(s for s in set(u.sites) ^ set(first.sites) if s in u.sites or first.roles.get(s) != "held_out")
        if odd and not _given(units):
            raise DataError(
                f"{name} and model '{first.model}' were not judged at the same sites; only one has {', '.join(odd)}.",
                fix="predict at every site of the study with every model.",
            )
        for site, p in u.sites.items():
            if site not in u.roles or u.roles[site] != first.roles.get(site):
                raise DataError(
                    f"{name} has site '{site}' as {u.roles.get(site)!r}, others as {first.roles.get(site)!r}.",
                    fix="give each site its role in the study, the same for every unit.",
                )
            _check_same_images(p, reference[site], f"{name} at site '{site}'", first.model)


def _check_same_images(p: Judged, other: Judged, where: str, model: str) -> None:
    if said := in_order(p).differs(other):
        raise DataError(
            f"{where} was judged on other images than model '{model}': {said}.",
            fix="judge every model and seed on the same test images, with the same classes in the same order; remove "
            "stale predictions and run again.",
        )
