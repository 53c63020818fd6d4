"""Rules that need all uploads of a round at once: the coordinator holds K models until the round ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field

from morphfed.algorithms.base import AlgorithmConfig, CoordinatorHalf
from morphfed.algorithms.mean import RunningMean
from morphfed.core.types import Tensors, Upload
from morphfed.models.layout import Layout

Statistics = Literal["mean", "same"]


class GatheringConfig(AlgorithmConfig):
    """Keys that these rules share."""

    statistics: Statistics = Field(
        "mean",
        description="running means and variances. mean: averaged, n_k / n, as in FedAvg; same: by the rule for weights",
    )


class Gathering(CoordinatorHalf):
    """Collects the uploads of a round and hands them to :meth:`aggregate` at its end.

    Running statistics are no weights: by default they are averaged over the sites in proportion to their images.
    ``statistics = "same"`` puts them under the rule instead, for federations that fear a hostile site.

    Args:
        initial: the global model's travelling tensors before round 1.
        layout: what its keys are.
        statistics: see above.
    """

    def __init__(self, initial: Tensors, layout: Layout, statistics: Statistics) -> None:
        self._model = {name: tensor.clone() for name, tensor in initial.items()}
        self._ruled = [n for n in initial if statistics == "same" or n in layout.parameters]
        self._averaged = [n for n in initial if n not in set(self._ruled)]
        self._sites: list[str] = []
        self._uploads: list[Tensors] = []
        self._mean = RunningMean()

    @abstractmethod
    def aggregate(self, models: list[Tensors], sites: list[str]) -> Tensors:
        """Combine the uploads of one round.

        Args:
            models: at least one; all with the same names and shapes. They may be overwritten.
            sites: whose they are.

        Returns:
            The same names.

        Raises:
            FederationError: too few uploads for this rule.
        """

    def download(self, site: str) -> Tensors:
        """The global model, the same for every site."""
        return self._model

    def begin_round(self, round_number: int, cohort: Iterable[str]) -> None:
        """Forget what an interrupted round had gathered."""
        self._sites, self._uploads, self._mean = [], [], RunningMean()

    @torch.no_grad()
    def fold(self, upload: Upload) -> None:
        """Keep a copy of one site's weights; average its statistics at once."""
        self._sites.append(upload.site)
        self._uploads.append({name: upload.tensors[name].clone() for name in self._ruled})
        if self._averaged:
            self._mean.add({name: upload.tensors[name] for name in self._averaged}, upload.weight)

    @torch.no_grad()
    def end_round(self) -> None:
        """The rule's result becomes the global model."""
        if not self._uploads:
            return
        found = self.aggregate(self._uploads, self._sites) | (self._mean.result() if self._averaged else {})
        self._model = {name: found[name] for name in self._model}
        self._sites, self._uploads, self._mean = [], [], RunningMean()

    def model(self) -> Tensors:
        """The global model."""
        return self._model

    def state(self) -> Tensors:
        """The global model is all that outlives a round."""
        return self._model

    def load_state(self, tensors: Tensors) -> None:
        """Take over a saved global model."""
        self._model = {name: tensors[name].to(old.device, copy=True) for name, old in self._model.items()}
