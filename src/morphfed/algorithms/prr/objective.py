"""What a site minimises in a round, apart from its rule: the study's loss, or another that looks at features too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morphfed.algorithms.base import Answer, SiteHalf, SiteWork
from morphfed.core.types import Tensors

if TYPE_CHECKING:
    from torch import nn

    from morphfed.tasks.base import Loss


@dataclass
class Aim:
    """The losses of one round.

    Attributes:
        watched: of the network whose features are collected; None: the study's loss.
        other: of any other network.
        found: what goes up with the model, filled when the round's training is over.
    """

    watched: Loss | None
    other: Loss | None
    found: Tensors

    def by_slot(self, *, watched: str, others: Sequence[str]) -> dict[str, Loss]:
        """The losses by the slots of :attr:`SiteWork.fit_together`."""
        named = {watched: self.watched, **dict.fromkeys(others, self.other)}
        return {slot: loss for slot, loss in named.items() if loss is not None}

    def uploads(self) -> Tensors:
        """Further tensors to upload; complete once the context has ended."""
        return self.found


class Objective:
    """The study's loss."""

    @contextmanager
    def of(self, work: SiteWork, download: Tensors, watched: nn.Module) -> Iterator[Aim]:
        """The losses of a round, within which the site trains.

        Args:
            work: the site's round; private state may be read and renewed.
            download: what the site was sent.
            watched: the network whose features count: the one that the site uses.
        """
        yield Aim(None, None, {})


class PlainObjectiveSite(SiteHalf):
    """Train one model on an objective; upload it.

    Args:
        objective: what is minimised.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """One round."""
        with self._objective.of(work, download, work.model) as aim:
            report = work.fit(loss=aim.watched)
        return Answer({**work.current(), **aim.uploads()}, report)
