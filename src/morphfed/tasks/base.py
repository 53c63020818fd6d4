"""What the training loop asks of a task. Optimisers, rounds and what leaves a site are the same for all tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from morphfed.tasks.classification import LossConfig
    from morphfed.tasks.coarse import Parents
    from morphfed.tasks.segmentation import MaskLossConfig

Answer = Any
"""What a network says of a batch: logits, or in a task whose networks say more, what holds them."""

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Logits ``(N, C, ...)`` and integer targets ``(N, ...)`` → mean loss, a scalar."""


class Losses(Protocol):
    """The part of a training configuration that says what is minimised."""

    @property
    def loss(self) -> LossConfig:
        """Of classification."""
        ...

    @property
    def mask_loss(self) -> MaskLossConfig:
        """Of segmentation."""
        ...


class Task(ABC):
    """What a network is trained to say of a picture.

    Attributes:
        name: as a study writes it.
        validation: names of the means over a validation part that may leave a site after a round.
    """

    name: ClassVar[str]
    validation: ClassVar[frozenset[str]]

    def respond(self, network: Callable[[Any], Any], inputs: Any) -> Answer:
        """What a network says of a batch: here its logits ``(n, C, ...)``.

        Args:
            network: called with ``inputs``; the module itself, or the same compiled.
            inputs: a batch as the training part hands it out.
        """
        return network(inputs)

    def logits(self, answer: Answer) -> Tensor:
        """The logits ``(n, C, ...)`` of an answer."""
        logits: Tensor = answer
        return logits

    def loss(self, answer: Answer, targets: Tensor, criterion: Loss) -> Tensor:
        """What is minimised for a batch, a scalar: the criterion of the logits, in float32."""
        return criterion(self.logits(answer).float(), targets)

    @abstractmethod
    def criterion(
        self, losses: Losses, class_counts: Tensor, parents: Parents = (), *, device: torch.device | None = None
    ) -> Loss:
        """The loss of one site.

        Args:
            losses: the site's training configuration.
            class_counts: integer ``(C,)``, how often each output's class occurs in the site's training part (or at all
                sites).
            parents: coarser labels that may occur (:mod:`morphfed.tasks.coarse`); only classes have some.
            device: where the logits will be, so that no step has to bring weights there.
        """

    @abstractmethod
    def mean_loss(self, criterion: Loss, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Mean loss over images.

        Args:
            criterion: of :meth:`criterion`.
            batches: log-probabilities ``(n, C, ...)`` and targets ``(n, ...)``; every loss here is one of logits up to
                a constant per image or pixel, and log p is such a logit.
        """

    @abstractmethod
    def answer(self, probabilities: Tensor) -> Tensor:
        """What is kept of a batch's probabilities ``(n, C, ...)``: ``(n, ...)``, on the same device."""

    @abstractmethod
    def nothing(self, classes: int) -> Tensor:
        """The answers to no image at all."""

    @abstractmethod
    def upright(self, probabilities: Tensor, view: int) -> Tensor:
        """The probabilities of a turned or mirrored picture as those of the picture itself.

        Args:
            probabilities: ``(n, C, ...)``.
            view: number of the view; 0 is the picture itself, odd ones are mirrored after ``view // 2`` quarter turns.
        """
