"""One site's training loop, and prediction.

On a GPU the loop never waits for the device: batches come from ``training.feed``, losses add up on the device, and what
the host must know is read once, at the end of a fit or a prediction.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
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
from morphfed.training import feed
from morphfed.training.compiling import Compiled
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet, MaskSet
from morphfed.training.features import FeatureSet
from morphfed.training.optimise import learning_rate
from morphfed.training.transfer import DEPTH

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Views = Literal[1, 8]
"""Copies of a picture that a prediction is averaged over."""

_PREDICTED = 128
"""Pictures that are predicted at once."""

AfterBackward = Callable[[nn.Module], None]
"""Changes gradients between ``backward`` and the clipping, for example adds a proximal term's gradient."""

Coupling = Callable[["Tensor", "list[Tensor]"], "list[Tensor]"]
"""Terms added to the losses of several networks, from what they take and their logits ``(n, C)``."""

BeforeEpoch = Callable[[int, int], None]
"""Called before each pass over the training part with its number, from 0, and how many there are."""

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


@dataclass(frozen=True)
class Learner:
    """A network in training.

    Attributes:
        model: changed in place.
        optimizer: over its parameters.
        loss: in place of ``train.loss``.
        after_backward: changes its gradients in each step.
        compiles: whether it may run through ``torch.compile``; not where an algorithm looks into the network.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss | None = None
    after_backward: AfterBackward | None = None
    compiles: bool = True


@dataclass(frozen=True)
class _Piece:
    """What goes through the networks at once: a whole batch, or a part of one that is too large for that.

    Attributes:
        inputs: what the networks take.
        targets: what they are to say.
        share: of the batch; 1 where it is whole.
    """

    inputs: Any
    targets: Tensor
    share: float


def _begin(learners: Sequence[Learner], rate: float) -> None:
    for learner in learners:
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        learner.optimizer.zero_grad(set_to_none=True)


def _add_gradients(terms: Sequence[Tensor], share: float) -> None:
    """Of the sum of all terms; those of a batch's pieces add up to the batch's, because every term is a mean."""
    total = functools.reduce(operator.add, terms)
    torch.autograd.backward(total if share == 1.0 else total * share)


def _step(learners: Sequence[Learner], clip: float) -> None:
    for learner in learners:
        for parameter in learner.model.parameters():
            # What a batch did not ask for (CLAM's classifiers of the other classes) has slope 0, and is still pulled by
            # an algorithm's own term.
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if learner.after_backward is not None:
            learner.after_backward(learner.model)
        if clip > 0:
            nn.utils.clip_grad_norm_([p for p in learner.model.parameters() if p.requires_grad], clip)
        learner.optimizer.step()


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


def _parts(data: ImageSet, most: int) -> Iterator[NDArray[np.int64]]:
    """All of a set in order, in parts that a network can take at once, at most ``most`` of it."""
    for start in range(0, len(data), most):
        yield from data.pieces(np.arange(start, min(start + most, len(data))))


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
        compiled: train through ``torch.compile``, except where an algorithm looks into the network (``extra_loss``).
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
        compiled: bool = False,
        task: Task = CLASSIFICATION,
    ) -> None:
        self.config, self.device, self.seed, self.task = config, device, seed, task
        # A CPU has its results at once: it looks at the loss in every step, and nothing is prepared ahead of it.
        self._waits = device.type == "cpu"
        self._compiled = Compiled() if compiled else None
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
        loss: Loss | None = None,
    ) -> FitReport:
        """Train for ``local_epochs`` passes or ``local_steps`` steps.

        Parameters without ``requires_grad`` stay, and so do their norms.

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
            loss: in place of ``train.loss``.

        Raises:
            TrainingError: the loss is not finite; names site, round and step.
        """

        def coupling(images: Tensor, logits: list[Tensor]) -> list[Tensor]:
            return [] if extra_loss is None else [extra_loss(images, logits[0])]

        return self.fit_together(
            [Learner(model, optimizer, loss, after_backward, compiles=extra_loss is None)],
            data,
            site=site,
            round_number=round_number,
            rounds=rounds,
            coupling=coupling,
            epochs=epochs,
            slot=slot,
            class_counts=class_counts,
        )

    def fit_together(
        self,
        learners: Sequence[Learner],
        data: ImageSet,
        *,
        site: str,
        round_number: int,
        rounds: int,
        coupling: Coupling,
        before_epoch: BeforeEpoch | None = None,
        epochs: int | None = None,
        slot: str = "model",
        class_counts: NDArray[np.int64] | None = None,
    ) -> FitReport:
        """Train several networks on the same batches, each with its own optimiser; :meth:`fit` is the case of one.

        Args:
            learners: at least one; their networks share no parameter.
            data, site, round_number, rounds, epochs, slot, class_counts: as in :meth:`fit`.
            coupling: further terms, from the batch and all logits.
            before_epoch: may put the networks into evaluation mode.

        Returns:
            Steps and images summed over the networks.

        Raises:
            TrainingError: a loss is not finite; names site, round and step.
        """
        config = self.config
        criterion = self._criterion(data, class_counts)
        steps = config.steps(len(data), passes=config.local_epochs if epochs is None else epochs, sites=data.sites)
        total_steps = rounds * steps
        step = (round_number - 1) * steps
        passes = -(-steps // -(-len(data) // config.batch_size))
        seen = 0
        stream = site if slot == "model" else f"{site}/{slot}"
        loss_sum = torch.zeros((), device=self.device)

        def start(epoch: int) -> None:
            if before_epoch is not None:
                before_epoch(epoch, passes)
            for learner in learners:
                _train_mode(learner.model)

        forwards = [self._forward(learner) for learner in learners]
        # Layers that draw (dropout) use the global generator: give each site and round its own state of it.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive(self.seed, "dropout", stream, round_number))
            for pieces in islice(self._batches(data, stream, round_number, passes, start), steps):
                _begin(learners, learning_rate(config, step / total_steps))
                for piece in pieces:
                    with self._autocast():
                        answers = [self.task.respond(forward, piece.inputs) for forward in forwards]
                    losses = [
                        self.task.loss(answer, piece.targets, learner.loss or criterion)
                        for learner, answer in zip(learners, answers, strict=True)
                    ]
                    terms = coupling(piece.inputs, [self.task.logits(answer) for answer in answers])
                    _add_gradients([*losses, *terms], piece.share)
                    for loss in losses:
                        loss_sum += loss.detach() * len(piece.targets)
                    seen += len(piece.targets)
                _step(learners, config.clip)
                step += 1
                if self._waits:
                    self._check(float(loss_sum), site, round_number, step)
        total = float(loss_sum)  # the one place where the host waits
        self._check(total, site, round_number, step)
        models = len(learners)
        return FitReport(total / (seen * models), steps * models, seen * models)

    def _forward(self, learner: Learner) -> Callable[[Tensor], Tensor]:
        if self._compiled is None or not learner.compiles:
            return learner.model
        return self._compiled.of(learner.model)

    def _check(self, loss_sum: float, site: str, round_number: int, step: int) -> None:
        if math.isfinite(loss_sum):
            return
        when = f"at step {step}" if self._waits else f"at or before step {step}"
        raise TrainingError(
            f"Site '{site}', round {round_number}: the training loss stopped being finite {when}.",
            fix="lower train.lr, set train.clip = 1.0, or use train.precision = 'fp32'.",
        )

    def _batches(
        self, data: ImageSet, stream: str, round_number: int, passes: int, start: Callable[[int], None] | None = None
    ) -> Iterator[Iterator[_Piece]]:
        """Batches of nearly equal size: no batch of one image, which batch normalisation cannot take.

        Each is handed out in its pieces, which are read as they are asked for; all must be, before the next batch.
        """
        generator = torch_stream(self.seed, "augment", stream, round_number)
        augment = self._augment if data.pictures else None
        for epoch in range(passes):
            if start is not None:
                start(epoch)
            order = numpy_stream(self.seed, "order", stream, round_number, epoch).permutation(len(data))
            parts = np.array_split(order, -(-len(data) // self.config.batch_size))
            depth = 0 if self._waits else DEPTH
            pieces = [data.pieces(part) for part in parts]
            whole = feed.batches(
                data, [p for own in pieces for p in own], generator, augment, device=self.device, depth=depth
            )
            for part, own in zip(parts, pieces, strict=True):
                yield (self._piece(data, batch, len(part)) for batch in islice(whole, len(own)))

    def _piece(self, data: ImageSet, batch: feed.Batch, whole: int) -> _Piece:
        inputs, targets, draws = batch
        if draws is not None:
            inputs, targets = self._augmented(data, inputs, targets, draws)
        return _Piece(inputs, targets, len(targets) / whole)

    def _augmented(self, data: ImageSet, pixels: Tensor, targets: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Perturbed and normalised; masks move with their pictures."""
        if isinstance(data, MaskSet):
            images, targets = self._augment.with_masks(self._float(pixels), targets, draws)
        else:
            images = self._augment.apply(self._float(pixels), draws)
        return self._normalise(images), targets

    def _inputs(self, data: ImageSet, rows: NDArray[np.int64]) -> Tensor:
        """What the network takes of rows of the store, without augmentation: normalised images, or features."""
        batch = feed.read(data, rows, self.device)
        return self._normalise(self._float(batch)) if data.pictures else batch

    def _seen(self, data: ImageSet, where: NDArray[np.int64], views: Views) -> Iterator[Tensor]:
        """What the network takes, in each of ``views``; of features those that are stored."""
        if data.pictures:
            yield from _views(self._inputs(data, data.rows[where]), views)
        elif views == 1:
            yield self._inputs(data, data.rows[where])
        else:
            assert isinstance(data, FeatureSet)
            for number in range(views):
                yield self._inputs(data, data.views[where, number])

    @staticmethod
    def _float(pixels: Tensor) -> Tensor:
        return pixels.float().div_(255.0)

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

    def predict_logs(
        self, model: nn.Module, data: ImageSet, *, views: Views = 1, batch_size: int = _PREDICTED
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Class probabilities as :meth:`predict` has them, and their logarithms ``(N, C)``.

        The logarithms come from the logits in float64: a probability of 1 - 1e-20 differs from one of 1 - 1e-30.
        """
        kept: list[Tensor] = []
        found = [p for _, p in self._probabilities(model, data, views, batch_size, kept)]
        if not found:
            nothing = self.task.nothing(data.classes).cpu().numpy()
            return nothing, nothing.astype(np.float64)
        logs = torch.cat(kept, dim=1).cpu().double().log_softmax(dim=2)
        return torch.cat(found).cpu().numpy(), (logs.logsumexp(dim=0) - math.log(views)).numpy()

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
        answers: NDArray[Any] = (torch.cat(found) if found else self.task.nothing(data.classes)).cpu().numpy()
        return answers

    @torch.no_grad()
    def _probabilities(
        self, model: nn.Module, data: ImageSet, views: Views, batch_size: int, kept: list[Tensor] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Rows of ``data`` and their probabilities ``(n, C, ...)``, batch by batch; ``kept`` takes each batch's logits
        ``(views, n, C)``."""
        model.eval()
        for where in _parts(data, batch_size):
            total: Tensor | None = None
            seen_logits = []
            for number, inputs in enumerate(self._seen(data, where, views)):
                with self._autocast():
                    logits = self.task.logits(self.task.respond(model, inputs))
                if kept is not None:
                    seen_logits.append(logits.float())
                seen = self.task.upright(self.task.probabilities(logits.float()), number)
                total = seen if total is None else total + seen
            assert total is not None
            if kept is not None:
                kept.append(torch.stack(seen_logits))
            yield where, total / views

    def _criterion(self, data: ImageSet, class_counts: NDArray[np.int64] | None) -> Loss:
        counts = torch.from_numpy(data.class_counts if class_counts is None else class_counts)
        return self.task.criterion(self.config, counts, data.used_parents, device=self.device)

    def loss(self, model: nn.Module, data: ImageSet, class_counts: NDArray[np.int64] | None = None) -> float:
        """Mean training loss of ``model`` over ``data``, without augmentation and in evaluation mode.

        Args:
            model: put into evaluation mode.
            data: the site's training part.
            class_counts: as in :meth:`fit`.
        """
        batches = (
            (p.clamp(min=1e-12).log(), feed.targets(data, where, self.device))
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
            for piece in data.pieces(where):
                self.task.respond(model, self._inputs(data, data.rows[piece]))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.eval()
