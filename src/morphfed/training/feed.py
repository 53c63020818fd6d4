"""Batches on their way to the device: drawn on the host, gathered where the images are.

On a GPU nothing here waits for the device. What crosses to it comes from pinned memory: an epoch's order and labels in
one copy where the images are resident, else each batch of pictures; and a batch's augmentation in one small tensor. A
thread does the host's part of the next batches meanwhile. On a CPU the same code runs without thread or copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from morphfed.training.resident import ResidentStore
from morphfed.training.transfer import ahead, pinned, send

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from morphfed.data.augment import Augment
    from morphfed.training.dataset import ImageSet

Batch = tuple["Tensor", "Tensor", "Tensor | None"]
"""On the device: images uint8 ``(n, 3, S, S)`` or features float32 ``(n, width)``; targets, labels int64 ``(n,)`` or
masks uint8 ``(n, S, S)``; the draws of ``Augment.draw``, or None where nothing is to be perturbed."""


def batches(
    data: ImageSet,
    parts: Sequence[NDArray[np.int64]],
    generator: Generator,
    augment: Augment | None,
    *,
    device: torch.device,
    depth: int,
) -> Iterator[Batch]:
    """One epoch.

    Args:
        data: the site's training part.
        parts: indices into it, one array a batch, in order.
        generator: CPU generator of the views and perturbations; drawn from batch by batch.
        augment: draws the perturbations; None: there are none.
        device: where the batches go.
        depth: of :func:`ahead`.
    """
    if isinstance(data.store, ResidentStore):
        return _resident(data, data.store, parts, generator, augment, device=device, depth=depth)
    return _hosted(data, parts, generator, augment, device=device, depth=depth)


def _hosted(
    data: ImageSet,
    parts: Sequence[NDArray[np.int64]],
    generator: Generator,
    augment: Augment | None,
    *,
    device: torch.device,
    depth: int,
) -> Iterator[Batch]:
    def prepare() -> Iterator[Batch]:
        for where in parts:
            inputs, targets = data.sample(where, generator)
            draws = None if augment is None else pinned(augment.draw(len(where), generator), device)
            yield pinned(inputs, device), pinned(targets, device), draws

    for inputs, targets, draws in ahead(prepare(), depth=depth, device=device):
        moved = None if draws is None else draws.to(device, non_blocking=True)
        yield inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True), moved


def _resident(
    data: ImageSet,
    store: ResidentStore,
    parts: Sequence[NDArray[np.int64]],
    generator: Generator,
    augment: Augment | None,
    *,
    device: torch.device,
    depth: int,
) -> Iterator[Batch]:
    rows = np.concatenate([data.pick(where, generator) for where in parts])
    epoch = send(torch.from_numpy(np.stack([store.places(rows), data.marks(np.concatenate(parts))])), device)

    def prepare() -> Iterator[Tensor | None]:
        for where in parts:
            yield None if augment is None else pinned(augment.draw(len(where), generator), device)

    start = 0
    for where, draws in zip(parts, ahead(prepare(), depth=depth, device=device), strict=True):
        places, marks = epoch[:, start : start + len(where)]
        start += len(where)
        moved = None if draws is None else draws.to(device, non_blocking=True)
        yield data.shaped(store.take(places)), data.marked(marks), moved


def read(data: ImageSet, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Rows of a set's store on the device, as a batch, without augmentation."""
    if isinstance(data.store, ResidentStore):
        return data.shaped(data.store.fetch(rows))
    return send(data.read(rows), device)


def targets(data: ImageSet, where: NDArray[np.int64], device: torch.device) -> Tensor:
    """What the network is to say of images of a set, on the device."""
    if isinstance(data.store, ResidentStore):
        return data.marked(send(torch.from_numpy(data.marks(where)), device))
    return send(data.targets(where), device)
