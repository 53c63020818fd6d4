"""One site's training loop, and prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from morphfed.core.errors import TrainingError
from morphfed.core.seeding import derive, numpy_stream, torch_stream
from morphfed.data.augment import Augment
from morphfed.models.norm import frozen_norms
from morphfed.tasks.base import Loss, Task
from morphfed.tasks.classification import CLASSIFICATION
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet, MaskSet
from morphfed.training.features import FeatureSet
from morphfed.training.optimise import learning_rate

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Views = Literal[1, 8]
"""Copies of a picture that a prediction is averaged over."""

_PREDICTED = 128
"""Pictures that are predicted at once."""

AfterBackward = Callable[[nn.Module], None]
"""Changes gradients between ``backward`` and the clipping, for example adds a proximal term's gradient."""

ExtraLoss = Callable[["Tensor", "Tensor"], "Tensor"]
"""A term added to the task's loss, from the batch: what the network takes (images ``(n, 3, S, S)``, normalised, or
stored features ``(n, width)``), and logits ``(n, C)`` (``(n, C, S, S)`` of masks)."""


@dataclass(frozen=True)
class FitReport:
    """What a site did in one round.

    Attributes:
        loss: mean training loss over the round's images, without terms that an algorithm adds.
        steps: optimiser steps.
        images: images seen.
    """

    loss: float
    steps: int
    images: int

    def __add__(self, other: FitReport) -> FitReport:
        """Two trainings as one: steps and images summed, the loss their mean over all images."""
        images = self.images + other.images
        loss = (self.loss * self.images + other.loss * other.images) / images
        return FitReport(loss, self.steps + other.steps, images)


def _views(images: Tensor, count: Views) -> Iterator[Tensor]:
    """The pictures as they are; with 8, all that a square can be turned and mirrored into."""
    yield images
    if count == 1:
        return
    yield images.flip(3)
    for quarter in (1, 2, 3):
        turned = torch.rot90(images, quarter, (2, 3))
        yield turned
        yield turned.flip(3)


def _train_mode(model: nn.Module) -> None:
    model.train()
    for layer in frozen_norms(model):
        layer.eval()


class Trainer:
    """Trains and evaluates one network; it keeps no state of a site.

    Args:
        config: how (``precision`` must be resolved: fp32 or bf16).
        mean, std: normalisation of RGB in [0, 1].
        device: where the network is.
        seed: of the study; order and augmentation of a site depend on it, the site and the round only.
        task: what the network is trained to say.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device,
        seed: int,
        task: Task = CLASSIFICATION,
    ) -> None:
        self.config, self.device, self.seed, self.task = config, device, seed, task
        self._augment = Augment(config.augment)
        self._mean = torch.tensor(mean, device=device).reshape(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).reshape(1, 3, 1, 1)

    def fit(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: ImageSet,
        *,
        site: str,
        round_number: int,
        rounds: int,
        after_backward: AfterBackward | None = None,
        extra_loss: ExtraLoss | None = None,
        epochs: int | None = None,
        slot: str = "model",
        class_counts: NDArray[np.int64] | None = None,
    ) -> FitReport:
        """Train for ``local_epochs`` passes; parameters without ``requires_grad`` stay, and so do their norms.

        Args:
            model: changed in place.
            optimizer: over the model's parameters.
            data: the site's training part, at least one image.
            site: the site's name, for its random streams and for messages.
            round_number: from 1.
            rounds: in all; places this round on the learning-rate schedule.
            after_backward: an algorithm's change to the gradients.
            extra_loss: an algorithm's further term.
            epochs: passes, in place of ``local_epochs``.
            slot: one of several trainings of a site in the same round; each has random streams of its own.
            class_counts: int64 ``(C,)`` for the loss; None: those of ``data``.

        Raises:
            TrainingError: the loss is not finite; names site, round and step.
        """
        config = self.config
        criterion = self._criterion(data, class_counts)
        batches = -(-len(data) // config.batch_size)
        passes = config.local_epochs if epochs is None else epochs
        total_steps = rounds * passes * batches
        step = (round_number - 1) * passes * batches
        stream = site if slot == "model" else f"{site}/{slot}"
        loss_sum = torch.zeros((), device=self.device)
        trained = [p for p in model.parameters() if p.requires_grad]
        _train_mode(model)
        # Layers that draw (dropout) use the global generator: give each site and round its own state of it.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive(self.seed, "dropout", stream, round_number))
            for images, labels in self._batches(data, stream, round_number, passes):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step / total_steps)
                with self._autocast():
                    logits = model(images)
                loss = criterion(logits.float(), labels)
                objective = loss if extra_loss is None else loss + extra_loss(images, logits)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(objective)
                if after_backward is not None:
                    after_backward(model)
                if config.clip > 0:
                    nn.utils.clip_grad_norm_(trained, config.clip)
                optimizer.step()
                step += 1
                loss_sum += loss.detach() * len(labels)
                self._check(loss_sum, site, round_number, step)
        images_seen = passes * len(data)
        mean_loss = float(loss_sum) / images_seen
        self._check(loss_sum, site, round_number, step, final=True)
        return FitReport(mean_loss, passes * batches, images_seen)

    def _check(self, loss_sum: Tensor, site: str, round_number: int, step: int, *, final: bool = False) -> None:
        # Reading a GPU tensor waits for the device, so there it is read once, at the end.
        if (final or self.device.type == "cpu") and not bool(torch.isfinite(loss_sum)):
            raise TrainingError(
                f"Site '{site}', round {round_number}: the training loss stopped being finite at step {step}.",
                fix="lower train.lr, set train.clip = 1.0, or use train.precision = 'fp32'.",
            )

    def _batches(self, data: ImageSet, stream: str, round_number: int, passes: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of nearly equal size: no batch of one image, which batch normalisation cannot take."""
        generator = torch_stream(self.seed, "augment", stream, round_number)
        for epoch in range(passes):
            order = numpy_stream(self.seed, "order", stream, round_number, epoch).permutation(len(data))
            for where in np.array_split(order, -(-len(data) // self.config.batch_size)):
                inputs, labels = self._training_batch(data, where, generator)
                yield inputs, labels.to(self.device, non_blocking=True)

    def _training_batch(
        self, data: ImageSet, where: NDArray[np.int64], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        if isinstance(data, FeatureSet):
            features, labels = data.sample(where, generator)
            return features.to(self.device, non_blocking=True), labels
        pixels, targets = data.batch(where)
        if isinstance(data, MaskSet):
            masks = targets.to(self.device, non_blocking=True)
            images, masks = self._augment.with_masks(self._float(pixels), masks, generator)
            return self._normalise(images), masks
        return self._normalise(self._augment(self._float(pixels), generator)), targets

    def _inputs(self, data: ImageSet, where: NDArray[np.int64]) -> Tensor:
        """What the network takes, without augmentation: normalised images, or stored features."""
        batch = data.batch(where)[0]
        if isinstance(data, FeatureSet):
            return batch.to(self.device, non_blocking=True)
        return self._normalise(self._float(batch))

    def _seen(self, data: ImageSet, where: NDArray[np.int64], views: Views) -> Iterator[Tensor]:
        """What the network takes, in each of ``views``; of features those that are stored."""
        if not isinstance(data, FeatureSet):
            yield from _views(self._inputs(data, where), views)
        elif views == 1:
            yield self._inputs(data, where)
        else:
            for number in range(views):
                yield data.view(where, number).to(self.device, non_blocking=True)

    def _float(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device, non_blocking=True).float().div_(255.0)

    def _normalise(self, images: Tensor) -> Tensor:
        """In place. Where the channels lie side by side, whole rows of pixels are taken at once.

        The values are the same to the bit; broadcasting over an innermost axis of three is eight times slower.
        """
        if images.is_contiguous(memory_format=torch.channels_last):
            width = images.shape[3]
            rows = images.permute(0, 2, 3, 1).view(-1, 3 * width)
            rows.sub_(self._mean.flatten().repeat(width)).div_(self._std.flatten().repeat(width))
        else:
            images.sub_(self._mean).div_(self._std)
        return images.contiguous(memory_format=torch.channels_last) if self.config.channels_last else images

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def predict(
        self, model: nn.Module, data: ImageSet, *, views: Views = 1, batch_size: int = _PREDICTED
    ) -> NDArray[np.float32]:
        """Class probabilities, float32 ``(N, C)``, in the order of ``data``; of masks see :meth:`answers`."""
        return self.answers(model, data, views=views, batch_size=batch_size)

    def answers(
        self, model: nn.Module, data: ImageSet, *, views: Views = 1, batch_size: int = _PREDICTED
    ) -> NDArray[Any]:
        """The task's answer to each image, ``(N, ...)``, in the order of ``data``.

        Args:
            model: put into evaluation mode.
            data: what is predicted.
            views: 8: mean over the picture's four right-angle turns, each also mirrored; a cell has no upright.
            batch_size: pictures at once.
        """
        found = [self.task.answer(p) for _, p in self._probabilities(model, data, views, batch_size)]
        return np.concatenate(found) if found else self.task.nothing(data.classes)

    @torch.no_grad()
    def _probabilities(
        self, model: nn.Module, data: ImageSet, views: Views, batch_size: int
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Rows of ``data`` and their probabilities ``(n, C, ...)``, batch by batch."""
        model.eval()
        for start in range(0, len(data), batch_size):
            where = np.arange(start, min(start + batch_size, len(data)))
            total: Tensor | None = None
            for number, inputs in enumerate(self._seen(data, where, views)):
                with self._autocast():
                    logits = model(inputs)
                seen = self.task.upright(torch.softmax(logits.float(), dim=1), number)
                total = seen if total is None else total + seen
            assert total is not None
            yield where, total / views

    def _criterion(self, data: ImageSet, class_counts: NDArray[np.int64] | None) -> Loss:
        counts = data.class_counts if class_counts is None else class_counts
        return self.task.criterion(self.config, torch.from_numpy(counts))

    def loss(self, model: nn.Module, data: ImageSet, class_counts: NDArray[np.int64] | None = None) -> float:
        """Mean training loss of ``model`` over ``data``, without augmentation and in evaluation mode.

        Args:
            model: put into evaluation mode.
            data: the site's training part.
            class_counts: as in :meth:`fit`.
        """
        batches = (
            (p.clamp(min=1e-12).log().cpu(), data.batch(where)[1])
            for where, p in self._probabilities(model, data, 1, _PREDICTED)
        )
        return self.task.mean_loss(self._criterion(data, class_counts), batches)

    @torch.no_grad()
    def restimate_norms(self, model: nn.Module, data: ImageSet, *, batch_size: int = _PREDICTED) -> None:
        """Set running statistics of batch norms to the mean over ``data`` (AdaBN, Li et al. 2017); labels unused."""
        from morphfed.models.norm import batch_norms

        layers = [layer for _, layer in batch_norms(model)]
        if not layers or len(data) == 0:
            return
        model.eval()
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()  # type: ignore[operator]
            layer.momentum = None  # type: ignore[assignment]  # None: cumulative mean over batches
            layer.train()
        for where in np.array_split(np.arange(len(data)), -(-len(data) // batch_size)):
            model(self._inputs(data, where))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.eval()
