"""``torch.compile`` for the training step: when it is used, and what keeps it from compiling again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from morphfed.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

WORTH_TRYING = 60.0
"""Seconds of plain training of a study below which compiling is not even tried: it takes tens of seconds itself."""


class Compiled:
    """Compiled forward (and backward) passes of a network, made once for all its sites.

    The network itself is not changed: state-dict keys, hooks and copies are those of the plain one. The batch's size is
    marked as varying, so that sites and last batches of other sizes meet the same code.
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._call: Callable[[Tensor], Tensor] | None = None

    def of(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The compiled network; compiled when it is first called."""
        if self._call is None or self._model is not model:
            torch.compiler.reset()  # another network before this one must not use up the limit of recompilations
            self._model, self._call = model, torch.compile(model)
        compiled = self._call

        def forward(inputs: Tensor) -> Tensor:
            if len(inputs) > 1:  # torch makes code of its own for a batch of one
                torch._dynamo.maybe_mark_dynamic(inputs, 0)
            return compiled(inputs)

        return forward


def pays(*, steps: int, units: int, plain: float, compiled: float, compiling: float) -> bool:
    """Whether compiling repays itself.

    Args:
        steps: training steps of the network in the whole study.
        units: that train it; each compiles it, at the most at full cost (torch keeps code on disk and reuses it).
        plain, compiled: seconds of a step.
        compiling: seconds until the first compiled step is done.
    """
    return steps * (plain - compiled) > units * compiling


def worth_trying(*, steps: int, plain: float) -> bool:
    """Whether ``steps`` of ``plain`` seconds are enough that compiling could pay at all."""
    return steps * plain > WORTH_TRYING


def measure(model: nn.Module, *, plain: float, **how: Any) -> tuple[float, float]:
    """Compile a network and time it.

    Args:
        model: on its device; its running statistics move.
        plain: seconds of a plain step, which the first compiled one would take without compiling.
        how: of ``training.precision.step_seconds``.

    Returns:
        Seconds of a compiled step, and of compiling.

    Raises:
        RuntimeError: it cannot be compiled.
    """
    from morphfed.training.precision import step_seconds

    start = time.perf_counter()
    forward = Compiled().of(model)
    step_seconds(model, forward=forward, repeats=0, **how)
    compiling = max(0.0, time.perf_counter() - start - plain)
    return step_seconds(model, forward=forward, **how), compiling


def refuse_without_compiler(device: torch.device) -> None:
    """Compile something small.

    Raises:
        ConfigError: torch cannot compile for this device here; says why.
    """
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except RuntimeError as cause:  # what torch's compiler raises derives from it
        why = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ConfigError(
            f"compute.compile = 'on': torch cannot compile for {device} here: {why}",
            fix="install a C++ compiler (CPU) or Triton (GPU), or set compute.compile = 'off'.",
        ) from cause
