"""Server optimisers: the mean change of the sites' weights is taken for a gradient step.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive federated optimization. ICLR 2021, algorithms
1 and 2: ``Δ_t = Σ_k p_k (w_k - w^t)``, ``m_t = β₁ m_{t-1} + (1 - β₁) Δ_t``, a second moment ``v_t``, and
``w^{t+1} = w^t + η m_t / (√v_t + τ)``. There is no bias correction.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field

from morphfed.algorithms.fedavg import FedAvgConfig
from morphfed.algorithms.mean import Averaging, Weighting
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout

FIRST, SECOND = "server/m/", "server/v/"


class AdaptiveConfig(FedAvgConfig):
    """Keys of the adaptive server optimisers."""

    eta: float = Field(0.01, gt=0, description="η, the server's rate; about the largest change of a weight a round")
    beta1: float = Field(0.9, ge=0, lt=1, description="β₁, decay of the first moment")
    tau: float = Field(1e-3, gt=0, description="τ, degree of adaptivity: smaller adapts more; v starts at τ²")


class ServerOptimiser(Averaging):
    """Averages the uploads, then moves the global weights by a step of an optimiser.

    Running statistics are no weights: they are averaged and never see the optimiser. Moments are float32 (float64 for
    float64 weights); the model keeps the dtypes that came in.

    Args:
        initial: the global model's travelling tensors before round 1.
        layout: what its keys are.
        weighting: p_k.
    """

    moments: tuple[str, ...] = ()
    """Prefixes of the moments that the rule keeps."""

    def __init__(self, initial: Tensors, layout: Layout, *, weighting: Weighting) -> None:
        super().__init__(initial, weighting=weighting)
        self._names = [name for name in initial if name in layout.parameters]
        wide = {n: torch.float64 if initial[n].dtype == torch.float64 else torch.float32 for n in self._names}
        self._moments: Tensors = {
            prefix + name: torch.full_like(initial[name], self.start(prefix), dtype=wide[name])
            for prefix in self.moments
            for name in self._names
        }

    def start(self, prefix: str) -> float:
        """What a moment holds before round 1."""
        return 0.0

    @abstractmethod
    def step(self, change: list[torch.Tensor], moments: dict[str, list[torch.Tensor]]) -> list[torch.Tensor]:
        """One step.

        Args:
            change: Δ_t, tensor by tensor; may be overwritten.
            moments: by prefix, in the same order; updated in place.

        Returns:
            What is added to the weights, tensor by tensor.
        """

    @torch.no_grad()
    def end_round(self) -> None:
        """The server's step from the last global model; statistics take the mean."""
        if self._mean.empty:
            return
        before = [self._model[name] for name in self._names]
        mean = self._mean.result(wide=True)
        change = [mean[name] - old.to(mean[name].dtype) for name, old in zip(self._names, before, strict=True)]
        super().end_round()
        moments = {prefix: [self._moments[prefix + name] for name in self._names] for prefix in self.moments}
        for name, old, step in zip(self._names, before, self.step(change, moments), strict=True):
            self._model[name] = (old.to(step.dtype) + step).to(old.dtype)

    def state(self) -> Tensors:
        """The global model and the moments."""
        return {**self._model, **self._moments}

    def load_state(self, tensors: Tensors) -> None:
        """Take over a saved model and its moments."""
        super().load_state(tensors)
        self._moments = {name: tensors[name].to(old.device, copy=True) for name, old in self._moments.items()}


class Adaptive(ServerOptimiser):
    """What FedAdagrad, FedAdam and FedYogi share; they differ in :meth:`second`.

    Args:
        initial, layout: see :class:`ServerOptimiser`.
        config: η, β₁, τ and the weighting.
    """

    moments = (FIRST, SECOND)

    def __init__(self, initial: Tensors, layout: Layout, config: AdaptiveConfig) -> None:
        self._eta, self._beta1, self._tau = config.eta, config.beta1, config.tau
        super().__init__(initial, layout, weighting=config.weighting)

    def start(self, prefix: str) -> float:
        """``v_{-1} = τ²``, the smallest that the paper allows."""
        return self._tau**2 if prefix == SECOND else 0.0

    @abstractmethod
    def second(self, v: list[torch.Tensor], square: list[torch.Tensor]) -> None:
        """Update ``v`` in place from ``square = Δ_t²``, which may be overwritten."""

    def step(self, change: list[torch.Tensor], moments: dict[str, list[torch.Tensor]]) -> list[torch.Tensor]:
        """``η m_t / (√v_t + τ)``."""
        m, v = moments[FIRST], moments[SECOND]
        torch._foreach_lerp_(m, change, 1.0 - self._beta1)
        self.second(v, list(torch._foreach_mul(change, change)))
        scale = torch._foreach_sqrt(v)
        torch._foreach_add_(scale, self._tau)
        result = torch._foreach_div(m, scale)
        torch._foreach_mul_(result, self._eta)
        return list(result)
