"""Which arms are trained through ``torch.compile``: asked for, or measured to repay itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from morphfed.core.progress import Event, Reporter, silent
from morphfed.experiment.features import wants_features
from morphfed.experiment.units import Unit, steps_of
from morphfed.models.bags import takes_bags

if TYPE_CHECKING:
    from morphfed.experiment.resolve import Resolved
    from morphfed.experiment.study import Arm


def decide(
    resolved: Resolved,
    units: Sequence[Unit],
    counts: Mapping[str, int],
    known: Mapping[str, bool],
    *,
    report: Reporter = silent,
) -> Resolved:
    """Settle ``compute.compile`` for every arm.

    Args:
        units: of the whole study.
        counts: training images by site.
        known: what an earlier call in the same run folder decided; it stands.
        report: told what was measured.

    Raises:
        ConfigError: ``on``, and torch cannot compile here.
    """
    from morphfed.experiment.devices import devices_of, exact
    from morphfed.training.compiling import refuse_without_compiler

    wanted, device = resolved.study.compute.compile, resolved.study.compute.device
    # Bags are of all lengths, and a graph would be compiled for each.
    able = [name for name, arm in resolved.arms.items() if not takes_bags(arm.model)]
    new = [name for name in able if name not in known]
    chosen = {name for name in able if known.get(name)}
    if wanted == "on" and new:
        refuse_without_compiler(exact(devices_of(device)[0]))
        chosen.update(new)
    elif wanted == "auto" and device != "cpu":
        chosen.update(_measured(resolved, new, units, counts, report))
    # A classifier on stored features is one matrix product: there is nothing to fuse.
    return replace(resolved, compiled=frozenset(n for n in chosen if not wants_features(resolved.arms[n])))


def _measured(
    resolved: Resolved, names: Sequence[str], units: Sequence[Unit], counts: Mapping[str, int], report: Reporter
) -> set[str]:
    """Arms of one network, batch and precision are measured together: their units share the cost of compiling."""
    groups: dict[str, list[str]] = {}
    for name in names:
        arm = resolved.arms[name]
        if not wants_features(arm):
            groups.setdefault(f"{arm.model}|{arm.train.batch_size}|{arm.train.precision}", []).append(name)
    found: set[str] = set()
    for members in groups.values():
        own = [unit for unit in units if unit.arm in members]
        steps = sum(steps_of(unit, resolved.arms[unit.arm], counts) for unit in own)
        pays, said = _pays(resolved, resolved.arms[members[0]], steps, len(own))
        report(Event("compile", text=f"{', '.join(members)}: {said}", level="info"))
        if pays:
            found.update(members)
    return found


def _pays(resolved: Resolved, arm: Arm, steps: int, units: int) -> tuple[bool, str]:
    """Whether compiling repays itself, and the figures."""
    from morphfed.experiment.devices import devices_of, exact
    from morphfed.training import compiling
    from morphfed.training.precision import step_seconds

    study = resolved.study
    device = exact(devices_of(study.compute.device)[0])
    network = resolved.network(arm, device)
    how: dict[str, Any] = {
        "precision": arm.train.precision,
        "image_size": study.data.image_size,
        "batch_size": arm.train.batch_size,
        "device": device,
    }
    plain = step_seconds(network, **how)
    told = f"{steps:,} steps of {plain * 1e3:.1f} ms"
    if not compiling.worth_trying(steps=steps, plain=plain):
        return False, f"{told} are too few to compile for"
    try:
        compiled, seconds = compiling.measure(network, plain=plain, **how)
    except RuntimeError as cause:  # what torch's compiler raises derives from it
        why = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        return False, f"not compiled, because torch cannot do it here: {why}"
    pays = compiling.pays(steps=steps, units=units, plain=plain, compiled=compiled, compiling=seconds)
    told += f", {compiled * 1e3:.1f} ms compiled; compiling takes {seconds:.0f} s in each of {units} units"
    return pays, f"{told}: {'compiled' if pays else 'not compiled'}"
