"""Every site held out in turn: what the folds say together of each model at a site that took no part.

A model here is an arm, of which every fold trained another copy: at site *s* its score is that of the copy that was
trained without *s*, on all images of *s*. The draws of the bootstrap depend on the test images alone, so a mean over
folds is taken inside each resample and every difference is paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from morphfed.evaluation.metrics import Floats
from morphfed.evaluation.scores import (
    MASKED,
    MEAN_HELD_OUT,
    MEAN_LOCAL,
    MEAN_TRAINING,
    OWN_SITE,
    Scores,
    Vectors,
    made_of_locals,
    mean_over,
)

BEST_LOCAL = "best"

_Key = tuple[str, int, str]  # model, seed, fold
_Kept = dict[_Key, dict[str, Floats]]


class FoldScores(Vectors):
    """Vectors over the folds of a study; filled fold by fold with :meth:`take`.

    Scopes: each site, where it was left out; ``mean_held_out``, the mean over these; ``mean_training``, the mean over
    folds of the mean over the fold's training sites. ``local (best)`` is, at each left-out site, the local model with
    the highest seed-mean *there* (the same in every resample): nobody could have chosen it beforehand.

    Args:
        sites: every site of the study, in its order.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self.sites = tuple(sites)
        self.resamples = 0
        self.metrics: tuple[str, ...] = ()
        self.folds: tuple[str, ...] = ()
        self._arms: dict[str, str] = {}
        self._kept: dict[str, _Kept] = {MEAN_HELD_OUT: {}, MEAN_TRAINING: {}}
        self._clusters: dict[tuple[str, str], tuple[int, str]] = {}  # (site, role) → clusters, unit
        self._home: dict[tuple[str, int], dict[str, Floats]] = {}  # a local model at its own site's test part
        self._best: dict[tuple[str, str, str], str] = {}
        self._better_up: dict[str, bool] = {}
        self._compared: set[str] = set()

    def take(self, fold: str, scores: Scores) -> None:
        """Keep of a fold's scores what is needed: every model at the left-out site, and over the training sites.

        Args:
            fold: the site that was held out, and the only one.
        """
        if scores.held_out not in ((fold,), ()):  # (): no arm of the study has a model for newcomers
            raise ValueError(f"the fold of {fold} holds out {scores.held_out}")
        self.folds += (fold,)
        self.resamples = scores.resamples
        self.metrics = tuple(dict.fromkeys((*self.metrics, *scores.metrics)))
        self._compared |= set(scores.compared)
        self._better_up |= {metric: scores.higher_is_better(metric) for metric in scores.metrics}
        for site in scores.sites:
            self._clusters[site, scores.units[0].roles[site]] = scores.clusters_of(site)
        for unit in scores.units:
            if unit.own_site is not None:
                found = {m: scores.vector(unit.model, unit.own_site, m, unit.seed) for m in scores.metrics}
                self._home[unit.model, unit.seed] = {m: v for m, v in found.items() if v is not None}
        for model in scores.all_models:
            self._arms.setdefault(model, scores.arm(model))
            for seed in scores.seeds(model):
                for kind, scope in ((MEAN_HELD_OUT, fold), (MEAN_TRAINING, MEAN_TRAINING)):
                    if scope not in scores.scopes:
                        continue
                    vectors = {m: scores.vector(model, scope, m, seed) for m in scores.metrics}
                    known = {m: v for m, v in vectors.items() if v is not None}
                    if known:
                        self._kept[kind][model, seed, fold] = known

    @property
    def local_arms(self) -> tuple[str, ...]:
        """Arms of local models."""
        return tuple(arm for model, arm in self._arms.items() if model == made_of_locals(MEAN_LOCAL, arm))

    def locals_of(self, arm: str) -> tuple[str, ...]:
        """The local models of an arm, in the sites' order."""
        return tuple(name for site in self.sites if (name := f"{arm}/{site}") in self._arms)

    @property
    def all_models(self) -> tuple[str, ...]:
        """The arms, every local model, and what is made of the local ones."""
        return (*self._arms, *(made_of_locals(BEST_LOCAL, arm) for arm in self.local_arms))

    @property
    def scopes(self) -> tuple[str, ...]:
        """Every left-out site, the mean over them, and the mean over folds of the training mean."""
        return (*self.sites, MEAN_HELD_OUT, MEAN_TRAINING)

    def arm(self, model: str) -> str:
        """The arm of a model."""
        return self._arms[model] if model in self._arms else self._best_of(model)

    def _best_of(self, model: str) -> str:
        """The arm of which ``model`` is the best local one; empty for any other model."""
        return next((arm for arm in self.local_arms if model == made_of_locals(BEST_LOCAL, arm)), "")

    def seeds(self, model: str) -> tuple[int, ...]:
        """Seeds that the model has in every fold in which it is."""
        if arm := self._best_of(model):
            return self.seeds(made_of_locals(MEAN_LOCAL, arm))
        shared: dict[str, set[int]] = {}
        for kept in self._kept.values():
            for name, seed, fold in kept:
                if name == model:
                    shared.setdefault(fold, set()).add(seed)
        return tuple(sorted(set.intersection(*shared.values()))) if shared else ()

    def clusters_of(self, scope: str) -> tuple[int, str]:
        """Distinct clusters behind a scope: of a training site its test part once, however many folds use it."""
        role = "train" if scope == MEAN_TRAINING else "held_out"
        sites = (scope,) if scope in self.sites else self.sites
        found = [self._clusters[site, role] for site in sites if (site, role) in self._clusters]
        units = {unit for _, unit in found}
        return sum(n for n, _ in found), units.pop() if len(units) == 1 else "mixed"

    def vector(self, model: str, scope: str, metric: str, seed: int) -> Floats | None:
        """The vector of one model and seed; None where it is not defined, as over folds one of which is missing."""
        if scope == MEAN_HELD_OUT:
            return mean_over([self.vector(model, site, metric, seed) for site in self.sites])
        if arm := self._best_of(model):
            best = self.best_local(arm, scope, metric) if scope in self.sites else ""
            return self.vector(best, scope, metric, seed) if best else None
        if scope == MEAN_TRAINING:
            return mean_over([self._found(scope, model, seed, fold, metric) for fold in self.sites])
        return self._found(MEAN_HELD_OUT, model, seed, scope, metric)

    def _found(self, kind: str, model: str, seed: int, fold: str, metric: str) -> Floats | None:
        kept = self._kept[kind].get((model, seed, fold), {})
        # A fold in which no site lacks a class has no masked metrics: there they are the free ones.
        return kept.get(metric, kept.get(MASKED.get(metric, metric)))

    @property
    def compared(self) -> list[str]:
        """Those that are compared in a fold."""
        return [m for m in self.metrics if m in self._compared]

    def best_local(self, arm: str, site: str, metric: str) -> str:
        """The local model with the best seed-mean at a left-out site (the first of equals); empty if there is none."""
        if (arm, site, metric) not in self._best:
            sign = 1.0 if self._better_up.get(metric, True) else -1.0
            scored = {model: sign * value for model, value in self._at(arm, site, metric)}
            self._best[arm, site, metric] = max(scored, key=lambda m: scored[m]) if scored else ""
        return self._best[arm, site, metric]

    def at(self, model: str, site: str, metric: str) -> float | None:
        """Seed-mean of a local model's score at a site: its own, or one that was held out."""
        seeds = self.seeds(model)
        if model.partition("/")[2] == site:
            vector = mean_over([self._home.get((model, seed), {}).get(metric) for seed in seeds])
        else:
            vector = self.seed_mean(model, site, metric, seeds)
        return None if vector is None or not np.isfinite(vector[0]) else float(vector[0])

    def _at(self, arm: str, site: str, metric: str) -> Iterator[tuple[str, float]]:
        seeds = self.seeds(made_of_locals(BEST_LOCAL, arm))
        for model in self.locals_of(arm):
            found = self.seed_mean(model, site, metric, seeds)
            if found is not None and np.isfinite(found[0]):
                yield model, float(found[0])


def fold_matrix(scores: FoldScores, metric: str) -> dict[str, Any] | None:
    """Local models: trained on row, tested on column, mean over seeds; None without local models.

    At home a model is tested on its site's test part, elsewhere on all images. Of several arms the first is shown.
    """
    if not scores.local_arms:
        return None
    models = scores.locals_of(scores.local_arms[0])
    values = [[scores.at(model, site, metric) for site in scores.sites] for model in models]
    rows = [model.partition("/")[2] for model in models]
    return {"metric": metric, "rows": rows, "columns": list(scores.sites), "values": values}


def fold_pairs(scores: FoldScores, centralised: Sequence[str], federated: Sequence[str]) -> list[tuple[str, str]]:
    """What a study of folds compares: every federated arm with the centralised ones, with the best and the mean local
    model, and with each earlier federated arm; pairs without a common seed are left out.

    Args:
        centralised, federated: models of these kinds, in the study's order.
    """
    against = [*centralised]
    against += [made_of_locals(kind, arm) for arm in scores.local_arms for kind in (OWN_SITE, BEST_LOCAL, MEAN_LOCAL)]
    pairs = [(a, b) for a in federated for b in against]
    pairs += [(a, b) for i, a in enumerate(federated) for b in federated[:i]]
    known = set(scores.all_models)
    return [(a, b) for a, b in pairs if {a, b} <= known and set(scores.seeds(a)) & set(scores.seeds(b))]
