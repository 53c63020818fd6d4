"""A study with nothing left open: device, processes, threads and precision decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from morphfed.core.errors import ConfigError
from morphfed.experiment.devices import devices_of
from morphfed.experiment.environment import cores as available_cores
from morphfed.experiment.features import wants_features
from morphfed.experiment.study import Arm, Study
from morphfed.experiment.tasks import study_task
from morphfed.experiment.units import units_of
from morphfed.models.bags import takes_bags

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn

    from morphfed.experiment.prepare import Prepared

FREE = ("seeds", "arms", "evaluation", "name", "model", "train", "federation")
"""Keys that may change from one call to the next in the same run folder: seeds and arms may be added, the judging
changed. ``model``, ``train`` and ``federation`` count through each arm's own copy."""

DECIDING = ("use", "views", "calibrate", "adapt", "unknown")
"""Keys of ``evaluation`` that decide what a unit predicts; the others only judge what it predicted."""


@dataclass(frozen=True)
class Resolved:
    """A study ready to run.

    Attributes:
        study: with ``compute.device`` decided.
        arms: by name.
        jobs: processes that train at once.
        threads: torch threads of each.
        folder: the study file's, for relative paths.
        compiled: arms whose training steps are compiled.
    """

    study: Study
    arms: dict[str, Arm]
    jobs: int
    threads: int
    folder: Path
    compiled: frozenset[str] = frozenset()

    def asked(self) -> dict[str, Any]:
        """What was asked for, without what only says where to compute."""
        plain = self.study.model_dump(mode="json", exclude={"compute", "arms", "title"})
        return {**plain, "arms": {name: arm.as_dict() for name, arm in self.arms.items()}}

    def as_dict(self) -> dict[str, Any]:
        """All settings as they are used."""
        compute: dict[str, Any] = {"device": self.study.compute.device, "threads": self.threads}
        if self.compiled:
            compute["compile"] = sorted(self.compiled)
        return {**self.asked(), "compute": compute}

    def of_arm(self, name: str) -> dict[str, Any]:
        """All that decides what the units of one arm compute: not the other arms, other seeds, or the judging."""
        settings = {key: value for key, value in self.as_dict().items() if key not in FREE}
        settings["compute"] = {key: value for key, value in settings["compute"].items() if key != "compile"}
        if name in self.compiled:
            settings["compute"]["compile"] = True
        deciding = self.study.evaluation.model_dump(mode="json", include=set(DECIDING))
        return {**settings, "arm": self.arms[name].as_dict(), "evaluation": deciding}

    def measured(self) -> Resolved:
        """Replace ``precision = "auto"`` in every arm by what is faster on this machine."""
        found: dict[str, str] = {}
        arms = {}
        for name, arm in self.arms.items():
            if arm.train.precision == "auto" and (wants_features(arm) or takes_bags(arm.model)):
                arm = _with_precision(arm, "fp32")  # a head on stored features is too small to gain
            if arm.train.precision == "auto":
                key = arm.model.model_dump_json() + str(arm.train.batch_size)
                if key not in found:
                    found[key] = self._faster(arm)
                arm = _with_precision(arm, found[key])
            arms[name] = arm
        return replace(self, arms=arms)

    def fitted(self, prepared: pd.DataFrame | Prepared) -> Resolved:
        """Take from the data what the networks need to know of them."""
        return replace(self, arms=dict(study_task(self.study).fitted(self.arms, prepared)))

    def _faster(self, arm: Arm) -> str:
        import torch

        from morphfed.training.precision import faster_precision

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            device = torch.device(self.study.compute.device)
            size = self.study.data.image_size
            return faster_precision(
                self.network(arm, device), image_size=size, batch_size=arm.train.batch_size, device=device
            )
        finally:
            torch.set_num_threads(before)

    def network(self, arm: Arm, device: torch.device) -> nn.Module:
        """An arm's network on a device, to be measured there; no unit trains it."""
        import torch

        from morphfed.models.backbone import build

        size = self.study.data.image_size
        outputs = study_task(self.study).outputs(self.study)
        backbone = build(arm.model, classes=outputs, image_size=size, seed=0, folder=self.folder)
        return backbone.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def with_measured(self, saved: Mapping[str, Any]) -> Resolved:
        """Take the measured choices of the run's first call."""
        known = saved["arms"]
        arms = {
            name: _with_precision(arm, known[name]["train"]["precision"]) if name in known else arm
            for name, arm in self.arms.items()
        }
        compute = self.study.compute.model_copy(update={"device": saved["compute"]["device"]})
        study = self.study.model_copy(update={"compute": compute})
        return replace(self, study=study, arms=arms, threads=int(saved["compute"]["threads"]))


def _with_precision(arm: Arm, precision: str) -> Arm:
    chosen = cast("Literal['fp32', 'bf16']", precision)
    return replace(arm, train=arm.train.model_copy(update={"precision": chosen}))


def resolve(study: Study, arms: dict[str, Arm], folder: Path) -> Resolved:
    """Decide the device, and how many processes train at once with how many threads.

    On a CPU, units in processes of one thread each are faster than one unit with many threads: small batches do not
    fill several cores. On GPUs one unit at a time has a whole card.

    Raises:
        ConfigError: the device does not exist here.
    """
    device = _device(study.compute.device)
    cores = available_cores()
    units = len(units_of(study, arms))
    at_once = cores if device == "cpu" else len(devices_of(device))
    jobs = study.compute.jobs or min(at_once, units)
    # From the machine and the asked jobs only: the number of units left must not change what is computed.
    threads = study.compute.threads or max(1, cores // (study.compute.jobs or at_once))
    compute = study.compute.model_copy(update={"device": device})
    return Resolved(study.model_copy(update={"compute": compute}), arms, jobs, threads, folder)


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as cause:
        raise ConfigError(f"compute.device = '{wanted}' is no device.", fix="use auto, cpu, cuda or cuda:0.") from cause
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"compute.device = '{wanted}': there is no such GPU here.", fix="use auto or cpu.")
    return wanted


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that differ between two calls in one run folder and may not.

    Args:
        before, now: :meth:`Resolved.asked` of the two calls.
    """
    fixed_before, fixed_now = ({k: v for k, v in asked.items() if k not in FREE} for asked in (before, now))
    found = differences(fixed_before, fixed_now)
    for name in before["arms"]:
        if name in now["arms"]:
            found += differences(before["arms"][name], now["arms"][name], f"arms.{name}")
    for key in DECIDING:
        found += differences(before["evaluation"].get(key), now["evaluation"].get(key), f"evaluation.{key}")
    return found


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """``key: old → new`` for every value in which two plain configurations differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found = []
        for key in [*before, *(k for k in now if k not in before)]:
            found += differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if before == now else [f"{path}: {before!r} → {now!r}"]
