"""Units: what is trained once. Arms × seeds, and one unit per site in the local arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from morphfed.experiment.study import Arm, Study

POOLED = "pooled"
"""Name of the only site of the centralised arm."""


@dataclass(frozen=True)
class Unit:
    """One federation to run.

    Attributes:
        arm: the arm's name.
        model: what the report calls the trained model: the arm, or ``arm/site`` for a local model.
        seed: of weights, order and augmentation.
        trained_on: training sites that take part.
        pooled: whether their images are joined into one site.
        fold: the site that is held out, in a study that holds out each in turn; empty: no fold's own.
        shared: trained once for all folds (a local model does not depend on who is held out); such a unit predicts
            every image of every other site.
    """

    arm: str
    model: str
    seed: int
    trained_on: tuple[str, ...]
    pooled: bool
    fold: str = ""
    shared: bool = False

    @property
    def name(self) -> str:
        """The unit's folder below ``units/``; what its fold calls it."""
        site = self.model.partition("/")[2] or "all"
        return f"{self.arm}/{site}/seed-{self.seed}"

    @property
    def key(self) -> str:
        """Stable name of the unit in the whole run: its progress bar, and part of what its checkpoints belong to."""
        return f"without-{self.fold}/{self.name}" if self.fold else self.name

    def folder(self, run: Path) -> Path:
        """The unit's folder."""
        return (fold_folder(run, self.fold) if self.fold else run) / "units" / self.name

    @property
    def moves(self) -> bool:
        """Whether a model crosses a site's border."""
        return len(self.trained_on) > 1 and not self.pooled


def steps_of(unit: Unit, arm: Arm, counts: Mapping[str, int]) -> int:
    """Training steps of a unit.

    Args:
        counts: training images by site.
    """
    own = [counts[site] for site in unit.trained_on]
    passes = arm.algorithm.passes(arm.config, arm.train.local_epochs)
    groups, pooled = ([sum(own)], len(own)) if unit.pooled else (own, 1)
    return arm.federation.rounds * sum(arm.train.steps(n, passes=passes, sites=pooled) for n in groups)


def fold_folder(run: Path, site: str) -> Path:
    """Where the fold that holds out ``site`` is kept."""
    return run / "folds" / site


def units_of(study: Study, arms: Mapping[str, Arm]) -> list[Unit]:
    """All units of a study, seed by seed, so that a first complete comparison is there early."""
    found: list[Unit] = []
    for seed in study.seeds:
        if study.holdout == "each":
            found += _units_of_folds(arms, seed, tuple(study.sites))
            continue
        for arm in arms.values():
            found += _units_of_arm(arm, seed, tuple(study.training_sites))
    return found


def _units_of_folds(arms: Mapping[str, Arm], seed: int, sites: Sequence[str]) -> list[Unit]:
    """Local models once, then fold by fold what is trained on the other sites."""
    local = [arm for arm in arms.values() if arm.algorithm.name == "local"]
    joint = [arm for arm in arms.values() if arm.algorithm.name != "local"]
    found = [replace(unit, shared=True) for arm in local for unit in _units_of_arm(arm, seed, sites)]
    for fold in sites:
        others = [site for site in sites if site != fold]
        found += [replace(unit, fold=fold) for arm in joint for unit in _units_of_arm(arm, seed, others)]
    return found


def units_of_fold(units: Sequence[Unit], study: Study, site: str) -> list[Unit]:
    """The units of the fold that holds out ``site``, in the order of a study that holds out this site only."""
    mine = [u for u in units if u.fold == site or (u.shared and site not in u.trained_on)]
    seeds, arms = list(study.seeds), list(study.arms)
    return sorted(mine, key=lambda u: (seeds.index(u.seed), arms.index(u.arm)))


def _units_of_arm(arm: Arm, seed: int, sites: Sequence[str]) -> list[Unit]:
    if arm.algorithm.name == "local":
        return [Unit(arm.name, f"{arm.name}/{site}", seed, (site,), pooled=False) for site in sites]
    return [Unit(arm.name, arm.name, seed, tuple(sites), pooled=arm.algorithm.name == "centralised")]
