"""Units: what is trained once. Arms × seeds, and one unit per site in the local arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """

    arm: str
    model: str
    seed: int
    trained_on: tuple[str, ...]
    pooled: bool

    @property
    def key(self) -> str:
        """Stable name of the unit: its folder below ``units/`` and its progress bar."""
        site = self.model.partition("/")[2] or "all"
        return f"{self.arm}/{site}/seed-{self.seed}"

    def folder(self, run: Path) -> Path:
        """The unit's folder."""
        return run / "units" / self.key

    @property
    def moves(self) -> bool:
        """Whether a model crosses a site's border."""
        return len(self.trained_on) > 1 and not self.pooled


def units_of(study: Study, arms: Mapping[str, Arm]) -> list[Unit]:
    """All units of a study, seed by seed, so that a first complete comparison is there early."""
    found: list[Unit] = []
    for seed in study.seeds:
        for arm in arms.values():
            found += _units_of_arm(arm, seed, tuple(study.training_sites))
    return found


def _units_of_arm(arm: Arm, seed: int, sites: Sequence[str]) -> list[Unit]:
    if arm.algorithm.name == "local":
        return [Unit(arm.name, f"{arm.name}/{site}", seed, (site,), pooled=False) for site in sites]
    return [Unit(arm.name, arm.name, seed, tuple(sites), pooled=arm.algorithm.name == "centralised")]
