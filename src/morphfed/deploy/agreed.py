"""The part of a study that all machines of a federation must agree on, and its hash."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphfed.core.errors import ConfigError
from morphfed.core.files import sha256_text
from morphfed.experiment.released import releases
from morphfed.experiment.study import Arm, SiteConfig, Study, load_study
from morphfed.experiment.tasks import OVER_NETWORK, telling_task
from morphfed.experiment.units import Unit, units_of

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMAT = 1
"""Counted up when the same settings come to mean something else."""

_LOCAL = {"sites", "title", "compute", "arms"}
_LOCAL_DATA = {"root", "check"}


@dataclass(frozen=True)
class Agreed:
    """A study as it is trained over a network.

    Attributes:
        study: as written.
        arms: those that move models between sites and, where scores are told, those of local models, which are trained
            each at its site; with ``precision = "auto"`` read as fp32: each site would measure another answer.
        folder: the study file's, for weights given by a relative path.
    """

    study: Study
    arms: dict[str, Arm]
    folder: Path

    @property
    def units(self) -> list[Unit]:
        """What is trained between sites, in order."""
        return [unit for unit in self.all_units if unit.moves]

    @property
    def all_units(self) -> list[Unit]:
        """The same, and the local models that each site trains for itself."""
        return units_of(self.study, self.arms)

    @property
    def releases(self) -> bool:
        """Whether sites tell the scores of their test parts."""
        return releases(self.study)

    @property
    def held_out(self) -> list[str]:
        """Sites that judge and never train; none where no scores are told."""
        return list(self.study.held_out) if self.releases else []

    @property
    def everyone(self) -> list[str]:
        """All sites that join, in the study's order."""
        return [site for site in self.study.sites if site in (*self.sites, *self.held_out)]

    @property
    def sites(self) -> list[str]:
        """Sites that train, in the study's order."""
        return self.study.training_sites

    @property
    def hash(self) -> str:
        """SHA-256 over all that decides what is trained, what leaves a site and what is kept there.

        Left out is what belongs to one place: the sites' paths, sources, options and µm per pixel, ``data.root``,
        ``[compute]``, the title, and arms that move no model.
        """
        return sha256_text(json.dumps(self.settings(), sort_keys=True, ensure_ascii=False))

    def settings(self) -> dict[str, Any]:
        """What the hash covers, as plain values."""
        plain = self.study.model_dump(mode="json", exclude=_LOCAL)
        data = {key: value for key, value in plain["data"].items() if key not in _LOCAL_DATA}
        arms = {name: arm.as_dict() for name, arm in self.arms.items()}
        return {"format": FORMAT, **plain, "data": data, "sites": list(self.study.sites), "arms": arms}

    def at_site(self, name: str, config: SiteConfig) -> Study:
        """The study as one site sees it: with its own images, and no other site.

        Raises:
            ConfigError: the study does not name the site, or holds it out where no scores are told.
        """
        if name not in self.everyone:
            held = name in self.study.held_out
            where = 'holds it out, with evaluation.release = "none"' if held else f"trains {', '.join(self.sites)}"
            raise ConfigError(
                f"The study '{self.study.name}' does not train at the site '{name}': it {where}.",
                fix="join with the name that the study gives to this site, or ask its author.",
            )
        data = self.study.data.model_copy(update={"root": "."})
        held_out = tuple(site for site in self.held_out if site == name)
        return self.study.model_copy(update={"sites": {name: config}, "held_out": held_out, "data": data})


def load_agreed(path: Path, overrides: Sequence[str] = ()) -> Agreed:
    """Read a study file for training over a network.

    Raises:
        ConfigError: as :func:`morphfed.experiment.study.load_study`; or no arm moves a model; or fewer than two sites
            train; or it holds out every site in turn.
    """
    study, arms = load_study(path, overrides)
    if study.holdout == "each":
        raise ConfigError(
            f'{path}: holdout = "each" trains a federation for every site left out; over a network one is trained.',
            fix='set holdout = "named", and name the sites that take no part in held_out.',
        )
    if len(study.training_sites) < 2:
        raise ConfigError(f"{path}: one site trains; a federation needs two.", fix="add a site, or hold fewer out.")
    if study.task not in OVER_NETWORK:
        raise ConfigError(
            f"{path}: task = '{study.task}' has not been tried over a network.",
            fix=f"use one of {', '.join(OVER_NETWORK)}.",
        )
    moving = {name: _fp32(arm) for name, arm in arms.items() if arm.algorithm.kind == "federated"}
    if not moving:
        raise ConfigError(f"{path}: no arm moves a model between sites.", fix="add for example [arms.fedavg].")
    if releases(study):  # in the study's order
        moving = {n: _fp32(arm) for n, arm in arms.items() if n in moving or arm.algorithm.name == "local"}
    telling_task(study).refuse_apart(study, moving, where=str(path))
    for name, arm in moving.items():
        if (
            arm.algorithm.kind == "federated"
            and arm.federation.noise.kind != "none"
            and arm.federation.noise.draw == "study"
        ):
            raise ConfigError(
                f"{path}: arms.{name}: the noise would be drawn from the study's seed, which the coordinator knows: it "
                "could subtract it.",
                fix="set federation.noise.draw = 'secret'; such a run does not repeat.",
            )
    return Agreed(study, moving, path.parent)


def _fp32(arm: Arm) -> Arm:
    if arm.train.precision != "auto":
        return arm
    return replace(arm, train=arm.train.model_copy(update={"precision": "fp32"}))
