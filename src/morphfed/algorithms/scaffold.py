"""SCAFFOLD: control variates take the drift out of the sites' steps.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: stochastic controlled averaging for federated learning.
ICML 2020. Algorithm 1, with full participation:

* a site steps along ``g(y) - c_k + c`` instead of ``g(y)``;
* its new control variate ``c_k⁺`` is an estimate of its gradient; it uploads ``y`` and ``Δc_k = c_k⁺ - c_k``;
* the coordinator sets ``x ← x + η_g mean_S(y - x)`` and ``c ← c + (|S| / N) mean_S(Δc_k)``, all sites alike, where S
  are the sites whose uploads were accepted and N those that were asked.

``c_k⁺`` is here the mean of the raw minibatch gradients along the local path: of the site's loss, before the
correction, clipping, momentum and weight decay. With plain SGD at a constant rate, without clipping and decay, that
*is* the paper's option II, ``c_k - c + (x - y) / (K η)``, for then ``x - y = η Σ (g - c_k + c)``. With momentum, AdamW,
schedules or clipping option II has no meaning (x - y is no sum of gradients), and the mean still has one.

Control variates are of parameters. Running statistics are no descent direction: they have none and are averaged.
The theory is of SGD; an adaptive optimiser rescales the corrected gradient like any other. If an upload is rejected,
c lacks that site's Δc_k from then on, while the site goes on with its c_k⁺.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, cast

import torch
from pydantic import Field

from morphfed.algorithms.base import (
    ALGORITHMS,
    Algorithm,
    AlgorithmConfig,
    Answer,
    Facts,
    SiteHalf,
    SiteWork,
    Specs,
    SummingHalf,
    Sums,
)
from morphfed.algorithms.mean import RunningMean
from morphfed.core.types import Tensors, Upload
from morphfed.models.layout import Layout

if TYPE_CHECKING:
    from torch import nn

CONTROL = "control/"
"""Prefix of control variates, in downloads, uploads and the state of a site."""


class ScaffoldConfig(AlgorithmConfig):
    """Keys of SCAFFOLD."""

    server_lr: float = Field(1.0, gt=0, description="η_g, step of the coordinator along the mean update")


class ControlledSite(SiteHalf):
    """Train along corrected gradients, and renew the site's control variate."""

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """One round; uploads ``y`` and ``Δc_k``."""
        parameters = {n: p for n, p in work.model.named_parameters() if n in work.travels and p.requires_grad}
        own = [self._own(work, name, p) for name, p in parameters.items()]
        correction = [download[CONTROL + name] - c_k for name, c_k in zip(parameters, own, strict=True)]
        total = [torch.zeros_like(p) for p in parameters.values()]
        steps = 0

        @torch.no_grad()
        def correct(_: nn.Module) -> None:
            nonlocal steps
            gradients = [p.grad for p in parameters.values() if p.grad is not None]
            if len(gradients) != len(total):
                raise RuntimeError("every travelling parameter must have a gradient")
            torch._foreach_add_(total, gradients)
            torch._foreach_add_(gradients, correction)
            steps += 1

        report = work.fit(after_backward=correct)
        renewed = [t / steps for t in total]
        work.state.update({CONTROL + name: c for name, c in zip(parameters, renewed, strict=True)})
        change = {CONTROL + n: new - old for n, new, old in zip(parameters, renewed, own, strict=True)}
        return Answer({**work.current(), **change}, report)

    @staticmethod
    def _own(work: SiteWork, name: str, parameter: torch.Tensor) -> torch.Tensor:
        """c_k of one parameter; zero before the first round."""
        saved = work.state.get(CONTROL + name)
        return torch.zeros_like(parameter) if saved is None else saved.to(parameter.device)


class ControlledMean(SummingHalf):
    """The model and its control variate, both moved by unweighted means of what the sites found.

    Args:
        initial: the global model's travelling tensors before round 1.
        layout: tells parameters, which have control variates, from running statistics.
        server_lr: η_g > 0.
    """

    def __init__(self, initial: Tensors, layout: Layout, *, server_lr: float) -> None:
        self._model = {name: tensor.clone() for name, tensor in initial.items()}
        self._parameters = [name for name in initial if name in layout.parameters]
        self._control = {CONTROL + n: torch.zeros_like(self._model[n]) for n in self._parameters}
        self._server_lr = server_lr
        self._asked = 0
        self._accepted = 0
        self._sum = RunningMean()

    def download(self, site: str) -> Tensors:
        """``x`` and ``c``, the same for every site."""
        return {**self._model, **self._control}

    def begin_round(self, round_number: int, cohort: Iterable[str]) -> None:
        """Forget the last round's sums; N is the number of sites in ``cohort``."""
        self._asked, self._accepted, self._sum = len(tuple(cohort)), 0, RunningMean()

    def fold(self, upload: Upload) -> None:
        """Add one site's ``y`` and ``Δc_k`` to their means."""
        self._sum.add(upload.tensors, 1.0)
        self._accepted += 1

    def fold_mean(self, mean: Tensors, weight: float, sites: Collection[str]) -> None:
        """Take in the means of several sites; they are unweighted."""
        self._sum.add(mean, weight)
        self._accepted += len(sites)

    @torch.no_grad()
    def end_round(self) -> None:
        """Move the model and its control variate."""
        if self._sum.empty:
            return
        mean = self._sum.result()
        self._sum = RunningMean()
        for name in self._parameters:
            # lerp ends exactly at the mean for η_g = 1, where x + (mean - x) would round.
            self._model[name] = torch.lerp(self._model[name], mean[name], self._server_lr)
            control = CONTROL + name
            self._control[control] = self._control[control] + mean[control] * (self._accepted / self._asked)
        self._model |= {name: mean[name] for name in self._model if CONTROL + name not in self._control}

    def model(self) -> Tensors:
        """The global model, without the control variate."""
        return self._model

    def state(self) -> Tensors:
        """Model and control variate."""
        return {**self._model, **self._control}

    def load_state(self, tensors: Tensors) -> None:
        """Take over a saved model and control variate."""
        for mine in (self._model, self._control):
            mine.update({name: tensors[name].to(old.device, copy=True) for name, old in mine.items()})


def _uploads(config: AlgorithmConfig, layout: Layout, specs: Specs) -> Specs:
    """The model, and a change of control variate for each of its parameters."""
    return {**specs, **{CONTROL + name: spec for name, spec in specs.items() if name in layout.parameters}}


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> ControlledMean:
    return ControlledMean(initial, layout, server_lr=cast("ScaffoldConfig", config).server_lr)


ALGORITHMS.register("scaffold")(
    Algorithm(
        name="scaffold",
        title="averaging with control variates",
        paper="Karimireddy et al., ICML 2020",
        equation="y ← y - η (g_k(y) - c_k + c);  x ← x + η_g mean_S(y - x),  c ← c + (|S| / N) mean_S(Δc_k)",
        config=ScaffoldConfig,
        site=lambda config: ControlledSite(),
        coordinator=_coordinator,
        facts=Facts(
            travels="the model and a control variate of its size, both ways",
            stays="images, labels, optimiser state, the site's own control variate",
            memory="4 models, whatever the number of sites; each site keeps its control variate",
            cost="1 × local training, two more passes over the weights a step; twice the bytes",
        ),
        uploads=_uploads,
        changes=lambda specs: frozenset(name for name in specs if name.startswith(CONTROL)),
        sums=lambda config: Sums("uniform"),
    )
)
