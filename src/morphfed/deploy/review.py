"""A study in plain words, for the person who decides whether a site takes part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from morphfed import __version__
from morphfed.core.types import nbytes
from morphfed.experiment import facts
from morphfed.experiment.features import cut_of
from morphfed.experiment.network import Network, declare, whole_network
from morphfed.experiment.released import declared_history, declared_scores
from morphfed.models.features import HeadOnly
from morphfed.privacy.egress import NUMBER_BYTES

if TYPE_CHECKING:
    from morphfed.deploy.agreed import Agreed
    from morphfed.experiment.study import Arm
    from morphfed.experiment.units import Unit


def network_of(unit: Unit, agreed: Agreed, device: torch.device) -> Network:
    """A unit's network as every machine of the federation builds it, without images."""
    arm, study = agreed.arms[unit.arm], agreed.study
    backbone, model, initial = whole_network(unit, study, arm, folder=agreed.folder, device=device)
    cut = cut_of(backbone, arm, study)
    seen = model if cut is None else HeadOnly(backbone.module, cut)
    return declare(unit, study, arm, backbone, seen, initial)


_WHAT = {"mil": "bags"}
"""What a study is of, if not of images."""


@dataclass(frozen=True)
class Review:
    """What a study means for a site.

    Attributes:
        text: what is trained, what leaves and how much of it, what comes in, what stays.
        download: bytes of the largest download's tensors; more is not fetched.
        leaves: bytes that leave in all, if the site answers every round.
    """

    text: str
    download: int
    leaves: int


def review(agreed: Agreed) -> Review:
    """Look at a study from a site.

    Sizes are those of the networks as they are built here, and of the declarations that the gate enforces.
    """
    study = agreed.study
    lines = [
        f"Study {study.name}" + (f": {study.title}" if study.title else ""),
        f"  hash      {agreed.hash}",
        f"  sites     {', '.join(agreed.sites)}"
        + (f"; held out: {', '.join(study.held_out)}" if study.held_out else "")
        + (" (judged there, never trained with)" if agreed.held_out else ""),
        f"  task      {study.task} of {_targets(agreed)}",
        f"  {_WHAT.get(study.task, 'images'):<9} {_inputs(agreed)}; {study.data.split.train:.0%} of them "
        f"train, {study.data.split.validation:.0%} choose the round, the rest are kept for tests",
        "",
    ]
    head = len(lines)
    total = largest = 0
    for name, arm in agreed.arms.items():
        said, moved, down = (_arm if arm.algorithm.kind == "federated" else _alone)(name, arm, agreed)
        lines += said
        total, largest = total + moved, max(largest, down)
    if agreed.releases:
        said, moved = _told(agreed)
        lines, total = [*lines, *said], total + moved
    lines += [
        f"In all about {_size(total)} leave this site, if it answers every round.",
        "",
        "What stays here: images, labels, file names, patient identifiers, predictions of single images.",
        "What leaves is written to this site's ledger first (`morphfed site ledger`); anything else is refused.",
        "",
        f"The code that runs is the installed morphfed {__version__}. A study is data: it brings no code, and the "
        "coordinator cannot send any.",
        _what_is_seen(agreed),
    ]
    if study.task == "mil":  # everything above says image for what the network takes
        kept = lines[: head - 2]
        lines = [*kept, *(line.replace("images", "bags").replace("image", "bag") for line in lines[head - 2 :])]
    return Review("\n".join(lines) + "\n", largest, total)


def _inputs(agreed: Agreed) -> str:
    data = agreed.study.data
    if agreed.study.task == "mil":
        widths = sorted({str(arm.model.dim) for arm in agreed.arms.values()})
        return f"features, {' and '.join(widths)} numbers an instance, of the encoder {data.encoder}"
    return f"{data.image_size} × {data.image_size} pixels"


def _what_is_seen(agreed: Agreed) -> str:
    moving = [name for name, arm in agreed.arms.items() if arm.algorithm.kind == "federated"]
    alone = [name for name in moving if not agreed.arms[name].federation.secure.on]
    text = "Model weights can reveal something about the images that they were trained on"
    if not alone:
        return f"{text}. The coordinator sees those of all sites together. See docs/explanation/secure-aggregation.md."
    where = "" if len(alone) == len(moving) else f" of {', '.join(alone)}"
    return f"{text}, and the coordinator sees this site's upload{where} by itself. See docs/security.md."


def _targets(agreed: Agreed) -> str:
    study = agreed.study
    if study.task == "segmentation":
        return f"{len(study.structures)} structures: {', '.join(study.structures)}"
    return f"{len(study.classes)} classes: {', '.join(study.classes)}"


def _arm(name: str, arm: Arm, agreed: Agreed) -> tuple[list[str], int, int]:
    """Lines of one arm, the bytes that leave a site for it, and those of one download."""
    units = [unit for unit in agreed.units if unit.arm == name]
    network = network_of(units[0], agreed, torch.device("cpu"))
    rounds, declared = arm.federation.rounds, network.declaration
    numbers = sorted(declared.metrics)
    validation = sorted(declared.validation)
    download = network.coding.send({"": network.coordinator().download("")})[""]
    upload = network.upload_bytes + (NUMBER_BYTES * (len(numbers) + 1) if network.sums is None else 0)
    each = upload + NUMBER_BYTES * len(validation)
    once = sum(NUMBER_BYTES * row.length for row in declared.statistics.values())
    parameters = sum(p.numel() for p in network.backbone.module.parameters())
    times = f"{rounds} rounds, {_plural(len(units), 'seed')}"
    lines = [
        f"Arm {name}: {arm.algorithm.title}",
        f"  trained   {arm.model.name}, {parameters:,} numbers; {times}",
        *_uploaded(network),
        f"            after each round, of the validation images: {', '.join(validation)}",
    ]
    lines += [
        f"            besides, {_plural(row.length, 'number')} '{key}': {row.purpose}"
        for key, row in sorted(declared.statistics.items())
    ]
    keys = arm.federation.noise
    added = "none" if network.noise is None else f"{keys.kind}, drawn here in secret; " + keys.model_dump_json()
    lines += [
        f"  noise     {added}",
        f"  comes in  before each round {_size(nbytes(download))}",
        f"  stays     {arm.algorithm.facts.stays or 'nothing of the model'}",
        "",
    ]
    return lines, len(units) * (rounds * each + once), nbytes(download)


def _alone(name: str, arm: Arm, agreed: Agreed) -> tuple[list[str], int, int]:
    """The same of an arm of local models."""
    rounds, seeds = arm.federation.rounds, len(agreed.study.seeds)
    declared = declared_history(agreed.study, rounds)
    lines = [
        f"Arm {name}: {arm.algorithm.title}",
        f"  trained   {arm.model.name}, at this site by itself (not where it is held out); {rounds} rounds, "
        f"{_plural(seeds, 'seed')}",
        "  leaves    when it is done: its loss, steps and validation means round by round, up to "
        f"{_plural(sum(declared.numbers.values()), 'number')}",
        "  comes in  nothing",
        "  stays     the model",
        "",
    ]
    return lines, seeds * declared.nbytes, 0


def _told(agreed: Agreed) -> tuple[list[str], int]:
    """Lines on what is told for the report, and its bytes."""
    study = agreed.study
    about, scores = facts.declared(study), declared_scores(study)
    models = len({(unit.arm, unit.seed) for unit in agreed.all_units})
    lines = [
        'For the report (evaluation.release = "scores")',
        "  leaves    before round 1, of this site's images: how many of each class and part, how many patients, scale",
        f"            and mean colour; up to {_plural(sum(about.numbers.values()), 'number')}",
        f"            of each finished model ({models} in all), of this site's test images: scores with their",
        "            intervals, right and wrong answers class by class, and the curves of certainty; up to",
        f"            {_plural(sum(scores.numbers.values()), 'number')}, and {len(scores.rows)} rows of scores over "
        f"{study.evaluation.resamples:,} resamples; {_size(scores.nbytes)}",
        "  note      where a class has one or two test images, these numbers say of each whether it was recognised.",
        "",
    ]
    return lines, about.nbytes + models * scores.nbytes


def _uploaded(network: Network) -> list[str]:
    """What leaves after each round of training."""
    declared, sums = network.declaration, network.sums
    tensors, purpose = _plural(len(declared.tensors), "tensor"), declared.purpose
    if sums is None:
        return [
            f"  leaves    after each round {tensors}, {_size(network.coding.nbytes)}: {purpose}",
            f"            with it the number of training images, and {', '.join(sorted(declared.metrics))}",
        ]
    return [
        f"  leaves    after each round {tensors}, {_size(network.upload_bytes)}: {purpose}",
        f"  secure    the coordinator sees the sum over the sites only: tensors, number of training images, "
        f"{', '.join(sorted(declared.metrics))} leave under masks",
        f"            any {sums.threshold} of the {len(sums.sites)} sites can lift the masks of the sum together, and "
        f"those of one site if all {sums.threshold} work against it",
        f"            in the clear: keys of the round, and three powers of two: the largest change of a weight "
        f"(at most {sums.config.largest:g}), of anything else, and the number of training images",
    ]


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _size(count: int) -> str:
    units = ("bytes", "kB", "MB", "GB", "TB")
    step = min(len(units) - 1, int(math.log10(count) / 3)) if count else 0
    return f"{count} bytes" if step == 0 else f"{count / 1000**step:.3g} {units[step]}"
