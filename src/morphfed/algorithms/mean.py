"""The weighted mean of models, folded in one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import torch

from morphfed.algorithms.base import SummingHalf
from morphfed.algorithms.base import Weighting as Weighting
from morphfed.core.types import Tensors, Upload

if TYPE_CHECKING:
    from torch import Tensor


class RunningMean:
    """Weighted mean of named tensors in memory of one model, whatever the number of sites.

    After uploads ``x_1 … x_k`` with weights ``w_1 … w_k`` it holds ``Σ w_i x_i / Σ w_i``, by
    ``m ← m + (w_k / W_k)(x_k - m)`` with ``W_k = Σ_{i≤k} w_i``. The mean of one model is that model, bit for bit.
    Sums run in float32 (float64 stays float64); :meth:`result` has the dtypes that came in.

    Args:
        memory: tensors that nobody needs any more. Those that fit are overwritten with the sums: the first touch of
            new memory takes several times as long as the arithmetic.
    """

    def __init__(self, memory: Tensors | None = None) -> None:
        self._memory = memory or {}
        self._mean: Tensors = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._weight = 0.0

    @torch.no_grad()
    def add(self, tensors: Tensors, weight: float) -> None:
        """Fold one model in.

        Args:
            tensors: floating-point tensors, the same names and shapes at every call; they are not kept.
            weight: > 0.
        """
        if not tensors:
            return
        self._weight += weight
        if not self._mean:
            self._dtypes = {name: t.dtype for name, t in tensors.items()}
            self._mean = {name: _room(self._memory.get(name), t) for name, t in tensors.items()}
            torch._foreach_copy_(list(self._mean.values()), list(tensors.values()))
            return
        mean = list(self._mean.values())
        new = [tensors[name].to(m.dtype) for name, m in self._mean.items()]
        torch._foreach_lerp_(mean, new, weight / self._weight)

    def result(self, *, wide: bool = False) -> Tensors:
        """The mean so far, in the dtypes of the uploads; ``wide`` leaves it in those of the sums."""
        return {name: m if wide else m.to(self._dtypes[name]) for name, m in self._mean.items()}

    @property
    def empty(self) -> bool:
        """Whether nothing has been folded in."""
        return not self._mean


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _room(old: Tensor | None, like: Tensor) -> Tensor:
    """Memory for the sums of tensors like ``like``: that of ``old`` where it fits, else new."""
    wide = _wide(like.dtype)
    if old is not None and (old.shape, old.stride(), old.dtype, old.device) == (
        like.shape,
        like.stride(),
        wide,
        like.device,
    ):
        return old
    return torch.empty_like(like, dtype=wide)


class Averaging(SummingHalf):
    """The global model is the weighted mean of the uploads (McMahan et al. 2017, algorithm 1).

    Args:
        initial: the global model's travelling tensors before round 1.
        weighting: ``images`` (n_k / n) or ``uniform`` (1 / K).
    """

    def __init__(self, initial: Tensors, *, weighting: Weighting) -> None:
        self._model = {name: tensor.clone() for name, tensor in initial.items()}
        self._before: Tensors = {}
        self._weighting = weighting
        self._mean = RunningMean()

    def download(self, site: str) -> Tensors:
        """The global model, the same for every site."""
        return self._model

    def begin_round(self, round_number: int, cohort: Iterable[str]) -> None:
        """Forget the last round's sum; this round's takes the memory of the model before the last."""
        self._mean = RunningMean(self._before)

    def fold(self, upload: Upload) -> None:
        """Add one site's model to the mean."""
        self._mean.add(upload.tensors, upload.weight if self._weighting == "images" else 1.0)

    def fold_mean(self, mean: Tensors, weight: float, sites: Collection[str]) -> None:
        """Add the mean of several sites' models."""
        self._mean.add(mean, weight)

    def end_round(self) -> None:
        """The mean becomes the global model."""
        if not self._mean.empty:
            # An accelerator's allocator keeps freed memory at hand anyway.
            self._before = {name: t for name, t in self._model.items() if t.device.type == "cpu"}
            self._model = self._mean.result()
            self._mean = RunningMean()

    def model(self) -> Tensors:
        """The global model."""
        return self._model

    def state(self) -> Tensors:
        """The global model is all there is."""
        return self._model

    def load_state(self, tensors: Tensors) -> None:
        """Take over a saved global model."""
        self._model = {name: tensors[name].to(old.device, copy=True) for name, old in self._model.items()}
