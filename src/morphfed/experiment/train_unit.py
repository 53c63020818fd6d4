"""Train one unit and predict with it everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from morphfed.algorithms.base import GLOBAL_MODEL
from morphfed.core.files import read_json, sha256_file, write_json
from morphfed.core.progress import Event, Reporter, silent
from morphfed.core.types import Tensors, nbytes
from morphfed.experiment.devices import Place, exact
from morphfed.experiment.features import on_features
from morphfed.experiment.network import Network, declare, make_site, shares_counts, whole_network
from morphfed.experiment.residence import bring
from morphfed.experiment.tasks import study_task
from morphfed.experiment.tasks.base import Trained
from morphfed.experiment.units import POOLED, Unit
from morphfed.federation.calibrate import fit_temperature
from morphfed.federation.checkpoint import CheckpointStore
from morphfed.federation.loop import Outcome, RoundLoop, downloads_of
from morphfed.federation.reject import choose_threshold
from morphfed.federation.site import Site, Workspace, under
from morphfed.federation.transports.inprocess import InProcess
from morphfed.models import weights
from morphfed.models.backbone import Backbone
from morphfed.models.layout import Layout
from morphfed.models.norm import batch_norms
from morphfed.training.dataset import ImageSet, pool
from morphfed.training.trainer import Trainer

if TYPE_CHECKING:
    from morphfed.algorithms.base import SiteHalf
    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.study import Arm, Study
    from morphfed.federation.transports.base import Transport

DONE = "unit.json"
_NOT_TOLD = {"round", "best_round", "best_score", "warnings"}


def is_done(unit: Unit, run: Path) -> bool:
    """Whether the unit has been trained, predicted with and written."""
    return (unit.folder(run) / DONE).is_file()


def train_unit(
    unit: Unit,
    study: Study,
    arm: Arm,
    prepared: Prepared,
    *,
    run: Path,
    study_folder: Path,
    fingerprint: str,
    place: Place | None = None,
    report: Reporter = silent,
) -> None:
    """Run a unit's rounds from wherever they stopped; write its models, predictions and ``unit.json``.

    Args:
        fingerprint: hash of the resolved study; checkpoints of another study are refused.
        place: where this process computes, and how; None: on the study's device, which nobody shares.

    Raises:
        FederationError: a round lost its quorum.
        StorageError: something could not be written; what was saved before stays.
    """
    folder, task = unit.folder(run), study_task(study)
    place = place or Place(study.compute.device)
    device = exact(place.device)
    backbone, model, initial = whole_network(unit, study, arm, folder=study_folder, device=device)
    stored = on_features(backbone, arm, prepared, study, report=report)
    if stored is not None:  # the rounds see the head alone; what is saved is the whole network
        model, prepared = stored.model, stored.prepared
    prepared, images_on = bring(prepared, device, processes=place.sharing, report=report, task=unit.key)
    trainer = Trainer(
        arm.train,
        mean=backbone.mean,
        std=backbone.std,
        device=device,
        seed=unit.seed,
        compiled=place.compiled,
        task=task.task,
    )
    network = declare(unit, study, arm, backbone, model, initial)
    workspace, layout = network.workspace, network.layout
    sites = _sites(unit, study, prepared, trainer, network, folder)
    here = InProcess(sites, report=report, task=unit.key)
    transport, secure = network.secured(here, task.outputs(study), report=report, task=unit.key)
    store = CheckpointStore(folder, fingerprint)
    loop = RoundLoop(
        arm.federation,
        coordinator=network.coordinator(),
        transport=transport,
        store=store,
        coding=network.coding,
        share_counts=shares_counts(arm),
        moves=unit.moves,
        noise=network.noise,
        secure=secure,
        seed=unit.seed,
        report=report,
        task=unit.key,
    )
    outcome = loop.run()
    save_models(unit, study, arm, backbone, outcome, initial, folder)
    report(Event(unit.key, text="predicting"))
    chosen = (
        (outcome.best, outcome.best_sites) if study.evaluation.use == "best" else (outcome.last, outcome.last_sites)
    )
    tested = _tested(unit, arm, study, prepared, trainer, workspace, *chosen)
    task.predict(Trained(unit, study, arm, prepared, trainer, workspace, tested, folder))
    transport.load_site_states(chosen[1])
    settled = settle(unit, study, transport, outcome, *chosen)
    told = {
        "device": str(device),
        "images_on": images_on,
        **({"compiled": True} if place.compiled else {}),
        **({"noise": network.noise.describe(outcome.progress.round)} if network.noise else {}),
        **({"secure": {**network.sums.describe(), "keys": "unsigned"}} if network.sums else {}),
        **settled[0],
    }
    notes = [stored.note] if stored else []
    write_unit(unit, study, arm, outcome, backbone.module, layout, folder, (told, settled[1]), notes)
    store.clear()


def _sites(
    unit: Unit, study: Study, prepared: Prepared, trainer: Trainer, network: Network, folder: Path
) -> list[Site]:
    def site(name: str, train: ImageSet, validation: dict[str, ImageSet]) -> Site:
        ledger = folder / "ledger.jsonl" if unit.moves else None
        return make_site(name, unit, study, network, trainer, train=train, validation=validation, ledger=ledger)

    folder.mkdir(parents=True, exist_ok=True)
    sets = {name: prepared.sets[name] for name in unit.trained_on}
    task = study_task(study)
    if unit.pooled:
        joined = pool([parts["train"] for parts in sets.values()])
        validation_sets = {name: parts["validation"] for name, parts in sets.items()}
        return [site(POOLED, task.training_part(joined, network.arm), validation_sets)]
    return [
        site(name, task.training_part(parts["train"], network.arm), {name: parts["validation"]})
        for name, parts in sets.items()
    ]


def _full(initial: Tensors, *parts: Tensors) -> Tensors:
    """A complete state dict: the initial one with the trained parts over it."""
    result = dict(initial)
    for part in parts:
        result.update(part)
    return result


def save_models(
    unit: Unit, study: Study, arm: Arm, backbone: Backbone, outcome: Outcome, initial: Tensors, folder: Path
) -> None:
    """Global models as complete state dicts, site-local parts in each site's folder; the same training, same bytes."""
    card = {
        "morphfed": json.dumps(
            {
                "architecture": arm.model.model_dump(mode="json", exclude={"weights"}),
                **study_task(study).card(study),
                "image_size": study.data.image_size,
                "field_um": study.data.field_um,
                "mean": backbone.mean,
                "std": backbone.std,
                "arm": unit.arm,
                "trained_on": list(unit.trained_on),
                "seed": unit.seed,
            },
            sort_keys=True,
        )
    }
    for name, model, sites in (
        ("last", outcome.last, outcome.last_sites),
        ("best", outcome.best, outcome.best_sites),
    ):
        weights.save(folder / f"{name}.safetensors", _full(initial, model), card)
        for site, state in sites.items():
            weights.save(folder / "sites" / site / f"{name}.safetensors", state, card)


def _tested(
    unit: Unit,
    arm: Arm,
    study: Study,
    prepared: Prepared,
    trainer: Trainer,
    workspace: Workspace,
    model: Tensors,
    sites: dict[str, Tensors],
) -> Iterator[tuple[str, ImageSet]]:
    """Each site whose test images the unit predicts, with the network filled as that site would use it."""
    half = arm.algorithm.site(arm.config)
    downloads = downloads_of(model, sites)
    for name in study.sites:
        data = prepared.sets[name]["test"]
        takes_part = name in unit.trained_on or unit.pooled or not unit.moves
        if not len(data) or not (takes_part or arm.algorithm.newcomer(arm.config)):
            continue
        workspace.load(downloads.get(name, model))
        _load_own(workspace, trainer, data, half, sites.get(name))
        yield name, data


def _load_own(workspace: Workspace, trainer: Trainer, data: ImageSet, half: SiteHalf, state: Tensors | None) -> None:
    """A training site uses its own parts; a newcomer re-estimates norms on its own images, without labels."""
    if state is not None:
        workspace.load(under("local/", state))
        workspace.load(half.personal(under("algorithm/", state)))
    elif workspace.local:
        workspace.load(workspace.fresh)
        trainer.restimate_norms(workspace.model, data)


def settle(
    unit: Unit, study: Study, transport: Transport, outcome: Outcome, model: Tensors, sites: dict[str, Tensors]
) -> tuple[dict[str, Any], list[str]]:
    """What the training sites still have to say of the finished model: its temperature, and its threshold.

    Returns:
        What ``unit.json`` says of them, and warnings; what they moved is added to the outcome's traffic.
    """
    entry: dict[str, Any] = {}
    warnings = []
    progress, temperature = outcome.progress, 1.0
    downloads = dict.fromkeys(transport.sites, model) | downloads_of(model, sites)
    how: dict[str, Any] = {"rounds": progress.round, "views": study.evaluation.views}

    def moved(up: int, down: int) -> None:
        progress.bytes_up += up if unit.moves else 0
        progress.bytes_down += down if unit.moves else 0

    if study.evaluation.calibrate == "temperature" or study.evaluation.unknown:
        moved(0, nbytes(model) * len(transport.sites))  # the finished model; one download serves both
    if study.evaluation.calibrate == "temperature":
        fitted = fit_temperature(transport, downloads, **how)
        moved(fitted.bytes_up, fitted.bytes_down)
        temperature = fitted.temperature
        told = ("temperature", "images", "loss_before", "loss_after")
        entry["calibration"] = {key: getattr(fitted, key) for key in told}
        warnings += [f"probabilities are not calibrated: {fitted.note}"] if fitted.note else []
    if study.evaluation.unknown:
        chosen = choose_threshold(transport, downloads, temperature=temperature, **how)
        moved(chosen.bytes_up, chosen.bytes_down)
        entry["rejection"] = {key: getattr(chosen, key) for key in ("threshold", "accepted", "images")}
    return entry, warnings


def write_unit(
    unit: Unit,
    study: Study,
    arm: Arm,
    outcome: Outcome,
    model: torch.nn.Module,
    layout: Layout,
    folder: Path,
    settled: tuple[dict[str, Any], list[str]],
    notes: list[str],
) -> None:
    """Write ``unit.json``, last of all: the unit is done."""
    progress = outcome.progress
    told, said = settled
    warnings = [*progress.warnings, *said, *notes]
    if unit.moves and (note := arm.algorithm.note(arm.config, len(unit.trained_on))):
        warnings.append(note)
    if study.held_out and study.evaluation.adapt == "norms" and not any(True for _ in batch_norms(model)):
        warnings.append("nothing was adapted at held-out sites: the network has no batch norm")
    if unit.moves and study.held_out:
        warnings += _about_newcomers(arm, layout)
    entry = {
        **about(unit, study, arm),
        "best_round": progress.best_round,
        "parameters": sum(p.numel() for p in model.parameters()),
        "models": {name: sha256_file(folder / f"{name}.safetensors") for name in ("best", "last")},
        **{k: v for k, v in asdict(progress).items() if k not in _NOT_TOLD and v is not None},
        **told,
        "warnings": warnings,
    }
    write_json(folder / DONE, entry)


def about(unit: Unit, study: Study, arm: Arm) -> dict[str, Any]:
    """What ``unit.json`` says of a unit, however it went."""
    return {
        "arm": unit.arm,
        "seed": unit.seed,
        "model": unit.model,
        "algorithm": arm.algorithm.name,
        "trained_on": list(unit.trained_on),
        "rounds": arm.federation.rounds,
        "selected": study.evaluation.use,
    }


def _about_newcomers(arm: Arm, layout: Layout) -> list[str]:
    newcomer = arm.algorithm.newcomer(arm.config)
    if not newcomer:
        return [f"{arm.algorithm.title} defines no model for a site that took no part: it has no held-out figures"]
    said = [f"held-out sites use {newcomer}"] if newcomer != GLOBAL_MODEL else []
    if arm.model.norm == "local" and layout.norms:
        said.append(
            "normalisation is site-local: at held-out sites its statistics were re-estimated on that site's own "
            "unlabelled images (adaptation)"
        )
    return said


def read_unit(unit: Unit, run: Path) -> dict[str, Any]:
    """What :func:`train_unit` wrote last."""
    entry: dict[str, Any] = read_json(unit.folder(run) / DONE)
    return entry
