"""What a study would do: images, units, steps, bytes, time. Nothing is trained or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphfed.core.progress import Event, Reporter, silent
from morphfed.experiment.assemble import LeftOut, draft_sites
from morphfed.experiment.coarse import coarse_block, coarse_notes
from morphfed.experiment.resolve import Resolved, resolve
from morphfed.experiment.study import Arm, Study, load_study
from morphfed.experiment.tasks import study_task
from morphfed.experiment.units import Unit, steps_of, units_of

if TYPE_CHECKING:
    import pandas as pd

    from morphfed.models.backbone import Backbone
    from morphfed.models.features import Cut

FORWARD_SHARE = 1 / 3
"""A forward pass costs about a third of a training step."""


def plan_study(
    study_file: Path, overrides: Sequence[str] = (), *, measure: bool = True, report: Reporter = silent
) -> dict[str, Any]:
    """Resolve a study completely and count what it would cost.

    Args:
        measure: time a few training steps of each network on this machine.

    Raises:
        MorphfedError: anything that would stop the run at its start.
    """
    study, arms = load_study(study_file, overrides)
    resolved = resolve(study, arms, study_file.parent)
    manifest, notes = draft_sites(study, study_file.parent, report=report)
    chosen = study_task(study).select(manifest, study, look=False, report=report)
    manifest, left_out, split_notes = chosen.manifest, chosen.left_out, list(chosen.split_notes)
    resolved = resolved.fitted(manifest.frame)
    arms = resolved.arms
    bag = study_task(study).typical_bag(manifest.frame)
    notes += chosen.notes
    if study.data.split.copies_together and bag is None:
        split_notes.append("the run will look for near-duplicates first, which may move a few images between parts")
    sites = {site: _site(study, manifest.frame, site, left_out) for site in study.sites}
    coarser = [note for site, block in sites.items() for note in coarse_notes(site, block["coarse"])]
    report(Event("plan", text="building the networks", done=0, total=1))
    timed: dict[str, dict[str, Any]] | None = {} if measure else None
    networks = {name: _network(resolved, arm, timed, bag) for name, arm in arms.items()}
    units = [
        _unit(unit, arms[unit.arm], sites, networks[unit.arm], retrogress=study.evaluation.retrogress)
        for unit in units_of(study, arms)
    ]
    features = _features(arms, networks, sites, study.evaluation.views)
    seconds = [u["seconds"] for u in units] + [f["seconds"] for f in features]
    report(Event("plan", text="building the networks", done=1, total=1))
    return {
        "study": study.name,
        "folds": list(study.sites) if study.holdout == "each" else [],
        "sites": sites,
        "notes": [*notes, *split_notes, *coarser, *_tuning_notes(arms, networks)],
        "features": features,
        "units": units,
        "estimated_seconds": None if None in seconds else sum(seconds) / resolved.jobs,
        "jobs": resolved.jobs,
        "threads": resolved.threads,
        "config": resolved.as_dict(),
    }


_PARTS = ("train", "validation", "test")


def _site(study: Study, frame: pd.DataFrame, site: str, left_out: LeftOut) -> dict[str, Any]:
    """Images of one site by part; those that train with a coarser label are among ``train``."""
    here = frame[(frame["site"] == site) & (frame["class"].notna() | frame["parent"].notna())]
    return {
        "role": "each" if study.holdout == "each" else "held_out" if site in study.held_out else "train",
        **{part: int((here["split"] == part).sum()) for part in _PARTS},
        "coarse": coarse_block(study, here),
        "left_out": sum(left_out[site].values()),
    }


def _network(resolved: Resolved, arm: Arm, timed: dict[str, dict[str, Any]] | None, bag: int | None) -> dict[str, Any]:
    """One arm's network in numbers; ``timed`` holds what has been measured, None: nothing is to be."""
    from morphfed.core.types import Spec, nbytes
    from morphfed.experiment.features import wants_features
    from morphfed.models.backbone import build
    from morphfed.models.features import cut_before_classifier
    from morphfed.models.layout import Layout
    from morphfed.training.features import views_of

    size = resolved.study.data.image_size
    backbone = build(
        arm.model,
        classes=study_task(resolved.study).outputs(resolved.study),
        image_size=size,
        seed=0,
        folder=resolved.folder,
    )
    network = backbone.module
    state = network.state_dict()
    layout = Layout.of(network, backbone.head)
    initial = {name: state[name] for name in arm.travelling(layout)}
    uploads = arm.algorithm.uploads(arm.config, layout, {name: Spec.of(t) for name, t in initial.items()})
    coding = arm.coding(layout, uploads, seed=0)
    noise = arm.noise(layout, uploads, seed=0) if arm.algorithm.kind == "federated" else None
    sums = None
    if arm.algorithm.kind == "federated":
        sums = arm.sums(layout, uploads, unit="", sites=tuple(resolved.study.training_sites))
    download = coding.send({"": arm.algorithm.coordinator(arm.config, initial, layout).download("")})[""]
    cut = cut_before_classifier(backbone, image_size=size) if wants_features(arm) else None
    found: dict[str, Any] = {
        "tune": arm.model.tune,
        "feature_views": len(views_of(arm.train.augment)) if cut else None,
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "megabytes": ((sums or coding).nbytes + nbytes(download)) / 1e6,
        "step_seconds": None,
        "feature_seconds": None,
        "precision": arm.train.precision,
        "noise": noise.describe(arm.federation.rounds) if noise else None,
        "secure": sums.describe() if sums else None,
    }
    return found | _timing(resolved, arm, backbone, cut, timed, bag) if timed is not None else found


def _timing(
    resolved: Resolved, arm: Arm, backbone: Backbone, cut: Cut | None, timed: dict[str, dict[str, Any]], bag: int | None
) -> dict[str, Any]:
    """Precision and seconds of a step; arms with the same network and batches share one measurement."""
    import torch

    from morphfed.models.features import HeadOnly
    from morphfed.training.precision import bag_seconds, faster_precision, step_seconds

    precision = arm.train.precision
    key = f"{arm.model}|{arm.train.batch_size}|{precision}|{cut is None}|{arm.train.max_instances}"
    if key in timed:
        return timed[key]
    device = torch.device(resolved.study.compute.device)
    network = backbone.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    shape: dict[str, Any] = {
        "image_size": resolved.study.data.image_size,
        "batch_size": arm.train.batch_size,
        "device": device,
    }
    feature_seconds = None
    before = torch.get_num_threads()
    torch.set_num_threads(resolved.threads)
    try:
        if cut is not None:
            # A pass of the whole network trains its head only, so nearly all of it is the forward pass.
            feature_seconds = step_seconds(network, precision="fp32", **shape) / arm.train.batch_size
            network, shape["width"] = HeadOnly(network, cut).to(device), cut.width
        if bag is not None:
            precision = "fp32" if precision == "auto" else precision
            instances = min(bag, arm.train.max_instances or bag)
            each = bag_seconds(network, instances=instances, precision=precision, device=device)
            seconds = each * arm.train.batch_size
        else:
            if precision == "auto":
                precision = "fp32" if cut is not None else faster_precision(network, **shape)  # type: ignore[assignment]
            seconds = step_seconds(network, precision=precision, **shape)
    finally:
        torch.set_num_threads(before)
    timed[key] = {"precision": precision, "step_seconds": seconds, "feature_seconds": feature_seconds}
    return timed[key]


def _features(
    arms: Mapping[str, Arm],
    networks: Mapping[str, Mapping[str, Any]],
    sites: Mapping[str, Mapping[str, Any]],
    judging: int,
) -> list[dict[str, Any]]:
    """Features that the run computes before its units: once for each backbone and set of views."""
    counts = {part: sum(int(site[part]) for site in sites.values()) for part in _PARTS}
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for name, arm in arms.items():
        views, each = networks[name]["feature_views"], networks[name]["feature_seconds"]
        if views is not None:
            passes = counts["train"] * views + (counts["validation"] + counts["test"]) * judging
            seconds = None if each is None else passes * each
            found[str(arm.model), views] = {
                "model": arm.model.name,
                "views": views,
                "images": passes,
                "seconds": seconds,
            }
    return list(found.values())


def _tuning_notes(arms: Mapping[str, Arm], networks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    from morphfed.experiment.features import NOT_CUT, describe, wants_features

    found: dict[str, list[str]] = {}
    for name, arm in arms.items():
        if wants_features(arm):
            views = networks[name]["feature_views"]
            found.setdefault(NOT_CUT if views is None else describe(views), []).append(name)
    return [f"{', '.join(names)}: {note}" for note, names in found.items()]


def _unit(
    unit: Unit, arm: Arm, sites: Mapping[str, Mapping[str, Any]], network: Mapping[str, Any], *, retrogress: bool
) -> dict[str, Any]:
    steps = steps_of(unit, arm, {name: int(site["train"]) for name, site in sites.items()})
    # After each round, and where retrogress is asked for also before each communication.
    validations = 2 if retrogress and unit.moves else 1
    validated = validations * arm.federation.rounds * sum(int(sites[s]["validation"]) for s in unit.trained_on)
    tested = sum(_tested(unit, name, site) for name, site in sites.items())
    step = network["step_seconds"]
    seconds = None
    if step is not None:
        seconds = steps * step + (validated + tested) / arm.train.batch_size * step * FORWARD_SHARE
    traffic = network["megabytes"] * len(unit.trained_on) if unit.moves else 0.0
    return {
        "arm": unit.arm,
        "model": unit.model,
        "held_out": unit.fold or None,
        "seed": unit.seed,
        "rounds": arm.federation.rounds,
        "steps": steps,
        "validations_per_round": validations,
        "validated": validated,
        "tested": tested,
        "tune": network["tune"],
        "parameters": network["parameters"],
        "trained": network["trained"],
        "megabytes_per_round": traffic,
        "upload": arm.federation.upload.code if unit.moves else None,
        "download": arm.federation.download if unit.moves else None,
        "noise": network["noise"] if unit.moves else None,
        "secure": network["secure"] if unit.moves else None,
        "precision": network["precision"],
        "seconds": seconds,
    }


def _tested(unit: Unit, name: str, site: Mapping[str, Any]) -> int:
    """Images of a site that the unit predicts: all of them where the site is held out."""
    whole = name == unit.fold or (unit.shared and name not in unit.trained_on)
    coarse = sum(int(entry["n"]) for entry in site["coarse"])
    return sum(int(site[part]) for part in _PARTS) - coarse if whole else int(site["test"])


def render_plan(plan: Mapping[str, Any]) -> str:
    """The plan as text for a terminal."""
    lines = [f"study {plan['study']}", "", "sites"]
    width = max(len(name) for name in plan["sites"])
    for name, site in plan["sites"].items():
        parts = "  ".join(f"{part} {site[part]:>5}" for part in _PARTS)
        left = f"  left out {site['left_out']}" if site["left_out"] else ""
        role = "in turn" if site["role"] == "each" else site["role"]
        lines.append(f"  {name:<{width}}  {role:<8}  {parts}{left}")
        for entry in site["coarse"]:
            said = f"{entry['n']} of train are {entry['label']}: one of {', '.join(entry['classes'])}"
            lines.append(f"  {'':<{width}}  {said}")
    if plan["folds"]:
        lines += ["", f"{len(plan['folds'])} folds: each site is held out once, as test only, and the others train;"]
        lines += ["local models are trained once and shared by the folds"]
    lines += ["", "notes", *(f"  {note}" for note in plan["notes"]), "", "models (one seed)"]
    first = plan["units"][0]["seed"]
    width = max(len(_name(u)) for u in plan["units"])
    for u in (u for u in plan["units"] if u["seed"] == first):
        time = "" if u["seconds"] is None else f"  about {_duration(u['seconds'])}"
        lines.append(
            f"  {_name(u):<{width}}  {u['rounds']} rounds  {u['steps']:>6} steps  {_parameters(u)}  "
            f"{_megabytes(u['megabytes_per_round'])} a round{_coded(u)}  {u['precision']}{time}"
        )
    lines.append(f"  {_judging([u for u in plan['units'] if u['seed'] == first])}")
    for f in plan["features"]:
        time = "" if f["seconds"] is None else f": about {_duration(f['seconds'])}"
        lines.append(f"  features of {f['model']}, once for all models: {f['images']} images and views{time}")
    seeds = Counter(u["seed"] for u in plan["units"])
    lines += ["", f"{len(plan['units'])} units over {len(seeds)} seed{'s' * (len(seeds) > 1)}, {plan['jobs']} at once"]
    if plan["estimated_seconds"] is not None:
        lines[-1] += f": about {_duration(plan['estimated_seconds'])} of training on this machine"
    return "\n".join(lines)


def _name(unit: Mapping[str, Any]) -> str:
    return f"{unit['model']} without {unit['held_out']}" if unit["held_out"] else str(unit["model"])


def _judging(units: Sequence[Mapping[str, Any]]) -> str:
    """Images that are only looked at: forward passes over validation parts in the rounds, and over what is tested."""
    twice = any(u["validations_per_round"] > 1 for u in units)
    validated, tested = (sum(int(u[key]) for u in units) for key in ("validated", "tested"))
    more = " (twice a round where models travel: before and after each communication)" if twice else ""
    return f"judged: {validated} validation images over the rounds{more}, {tested} test images"


def _parameters(unit: Mapping[str, Any]) -> str:
    size = f"{unit['parameters'] / 1e6:.2f} M parameters"
    if unit["trained"] == unit["parameters"]:
        return size
    return f"{unit['trained'] / 1e6:.3f} of {size} ({unit['tune']})"


def _coded(unit: Mapping[str, Any]) -> str:
    said = [f"{way} {unit[key]}" for key, way in (("upload", "up"), ("download", "down"))]
    said = [text for text in said if not text.endswith(("fp32", "None"))]
    if noise := unit.get("noise"):
        said.append("noise " + ("without ε" if noise["epsilon"] is None else f"ε {noise['epsilon']:.3g} in all"))
    if secure := unit.get("secure"):
        said.append(f"summed under masks of {secure['bits']} bits, opened by any {secure['threshold']} sites")
    return f" ({', '.join(said)})" if said else ""


def _megabytes(n: float) -> str:
    return f"{n:.1f} MB" if n >= 1 or n == 0 else f"{n:.2g} MB"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
