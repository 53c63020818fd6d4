"""A study whose backbone is frozen: its images become features once, and the rounds train the head alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from morphfed.core.progress import Reporter, silent
from morphfed.core.seeding import derive
from morphfed.data.cache import ImageStore
from morphfed.experiment.prepare import UNKNOWN
from morphfed.experiment.tasks import study_task
from morphfed.models.backbone import Backbone, build
from morphfed.models.features import Cut, HeadOnly, cut_before_classifier, features_of, fingerprint
from morphfed.models.tuning import HEAD
from morphfed.training.features import Compute, FeatureSet, FeatureStore, views_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from morphfed.experiment.prepare import Prepared
    from morphfed.experiment.resolve import Resolved
    from morphfed.experiment.study import Arm, Study
    from morphfed.training.dataset import ImageSet

Sets = Mapping[str, Mapping[str, "ImageSet"]]


@dataclass(frozen=True)
class OnFeatures:
    """What a unit trains on in place of images.

    Attributes:
        model: the classifier alone; it shares its weights with the whole network.
        prepared: the same images, handed out as features.
        note: what the report says about it.
    """

    model: nn.Module
    prepared: Prepared
    note: str


def wants_features(arm: Arm) -> bool:
    """Whether the arm trains nothing but a head, and lets its features be kept."""
    return arm.model.tune == HEAD and arm.train.feature_cache


def on_features(
    backbone: Backbone, arm: Arm, prepared: Prepared, study: Study, *, report: Reporter = silent
) -> OnFeatures | None:
    """Replace images by stored features, computing those that are missing; None where the arm needs the images.

    Raises:
        StorageError: the cache cannot be written.
    """
    if (cut := cut_of(backbone, arm, study)) is None:
        return None
    training, judging = views_of(arm.train.augment), tuple(range(study.evaluation.views))
    strange = {site: {UNKNOWN: images} for site, (images, _) in prepared.unknown.items()}
    everything = {site: {**parts, **strange.get(site, {})} for site, parts in prepared.sets.items()}
    store = _filled(backbone, cut, everything, training, judging, report)
    found: dict[str, dict[str, ImageSet]] = {
        site: {
            part: _as_features(data, store, training if part == "train" else judging) for part, data in parts.items()
        }
        for site, parts in prepared.sets.items()
    }
    unknown: dict[str, tuple[ImageSet, NDArray[np.str_]]] = {
        site: (_as_features(images, store, judging), kinds) for site, (images, kinds) in prepared.unknown.items()
    }
    kept = replace(prepared, sets=found, unknown=unknown)
    return OnFeatures(HeadOnly(backbone.module, cut), kept, describe(len(training)))


def cut_of(backbone: Backbone, arm: Arm, study: Study) -> Cut | None:
    """Where the network is cut into frozen features and a head; None where the arm needs the images."""
    if not wants_features(arm) or study.evaluation.adapt != "none":  # adaptation moves norms, which features hold
        return None
    return cut_before_classifier(backbone, image_size=study.data.image_size)


def describe(views: int) -> str:
    """What training on stored features leaves out of ``train.augment``, for the plan and the report.

    Args:
        views: of each training image.
    """
    ways = {4: "mirrored, or turned by right angles", 8: "mirrored and turned by right angles"}
    seen = "each image as it is" if views == 1 else f"each training image in {views} views ({ways[views]})"
    return f"features of the frozen backbone were computed once, of {seen}; no other augmentation was applied"


NOT_CUT = (
    "its classifier is no linear layer of a feature vector, so features are not kept: the frozen backbone runs at "
    "every step, with all augmentation"
)
"""What the plan says of a network that :func:`on_features` returns None for."""


def precompute(arms: Iterable[Arm], resolved: Resolved, prepared: Prepared, *, report: Reporter = silent) -> None:
    """Fill the cache for all arms with all of the machine's threads, before units share it in processes of their own.

    Raises:
        StorageError: the cache cannot be written.
    """
    wanted = {f"{arm.model}|{views_of(arm.train.augment)}": arm for arm in arms if wants_features(arm)}
    before = torch.get_num_threads()
    torch.set_num_threads(resolved.threads * resolved.jobs)
    try:
        for arm in wanted.values():
            backbone = _backbone(arm, resolved)
            on_features(backbone, arm, prepared, resolved.study, report=report)
    finally:
        torch.set_num_threads(before)


def _backbone(arm: Arm, resolved: Resolved) -> Backbone:
    study = resolved.study
    found = build(
        arm.model,
        classes=study_task(study).outputs(study),
        image_size=study.data.image_size,
        seed=derive(study.seeds[0], "weights"),  # all but the head comes from the weights file, whatever the seed
        folder=resolved.folder,
    )
    return replace(found, module=found.module.to(torch.device(study.compute.device)))


def _filled(
    backbone: Backbone,
    cut: Cut,
    sets: Sets,
    training: tuple[int, ...],
    judging: tuple[int, ...],
    report: Reporter,
) -> FeatureStore:
    images = next(data.store for parts in sets.values() for data in parts.values())
    assert isinstance(images, ImageStore)
    store = FeatureStore(images, backbone=fingerprint(backbone), width=cut.width)
    rows: dict[bool, list[NDArray[np.int64]]] = {True: [], False: []}
    for parts in sets.values():
        for split, data in parts.items():
            rows[split == "train"].append(data.rows)
    compute = computing(backbone, cut)
    store.ensure(np.concatenate(rows[True]), training, compute, report=report)
    store.ensure(np.concatenate(rows[False]), judging, compute, report=report)
    return store


def computing(backbone: Backbone, cut: Cut) -> Compute:
    """Features of uint8 pictures; always fp32, so that they do not depend on an arm's precision."""
    device = next(backbone.module.parameters()).device
    mean = torch.tensor(backbone.mean, device=device).reshape(1, 3, 1, 1)
    std = torch.tensor(backbone.std, device=device).reshape(1, 3, 1, 1)

    def compute(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device).float().div_(255.0)
        images = images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
        found: NDArray[np.float32] = features_of(backbone.module, cut, images).float().cpu().numpy()
        return found

    return compute


def _as_features(data: ImageSet, store: FeatureStore, views: tuple[int, ...]) -> FeatureSet:
    places = store.places(data.rows, views)
    return FeatureSet(
        store=store,
        rows=places[:, 0],  # view 0 comes first
        labels=data.labels,
        classes=data.classes,
        ids=data.ids,
        clusters=data.clusters,
        parents=data.parents,
        views=places,
    )
