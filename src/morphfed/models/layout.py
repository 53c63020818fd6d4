"""What the keys of a network's state dict are: weights, running statistics, normalisation, classifier.

Found by module type and by what autograd trains, never by a key's spelling. Algorithms decide by these sets what
travels, and which tensors a server optimiser, a median or noise may touch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morphfed.models.norm import frozen_norms, norm_keys

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Layout:
    """Floating-point state-dict keys of a network by kind.

    Integer buffers (counters, index tables) are in none of them: they are no weights, and are part of the
    architecture. Neither are weights that are not trained, nor the statistics of layers that are not.

    Attributes:
        order: every key that training changes, in the order of the state dict.
        parameters: trained weights.
        statistics: buffers that training changes: running means and variances.
        norms: keys of normalisation layers, weights and statistics.
        head: keys of the classifier.
        matrices: weights of convolutions and linear layers: what can be read as a matrix of inputs and outputs.
        attention: keys of what weighs or mixes the instances of a bag; empty where the network sees no bags.
    """

    order: tuple[str, ...]
    parameters: frozenset[str]
    statistics: frozenset[str]
    norms: frozenset[str]
    head: frozenset[str]
    matrices: frozenset[str] = frozenset()
    attention: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module, head: Iterable[str] = (), attention: Iterable[str] = ()) -> Layout:
        """Sort the keys of ``model``.

        Args:
            model: the network, with what is not trained frozen.
            head: its classifier's (``models.backbone.Backbone.head``).
            attention: those of its attention over the instances of a bag, beside what MIL heads in it have.
        """
        state = model.state_dict()
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        fixed = {name for name, _ in model.named_parameters()} - trained
        frozen = set(frozen_norms(model))
        still = {f"{n}.{k}" if n else k for n, m in model.named_modules() if m in frozen for k in m.state_dict()}
        order = tuple(k for k, t in state.items() if t.is_floating_point() and k not in fixed and k not in still)
        parameters = frozenset(k for k in order if k in trained)
        return cls(
            order=order,
            parameters=parameters,
            statistics=frozenset(order) - parameters,
            norms=norm_keys(model) & frozenset(order),
            head=frozenset(head) & frozenset(order),
            matrices=_matrix_keys(model) & frozenset(order),
            attention=(frozenset(attention) | _attention_keys(model)) & frozenset(order),
        )

    def without(self, keys: Iterable[str]) -> tuple[str, ...]:
        """``order`` less ``keys``."""
        stay = frozenset(keys)
        return tuple(name for name in self.order if name not in stay)


def _matrix_keys(model: nn.Module) -> frozenset[str]:
    from torch.nn import Conv1d, Conv2d, Conv3d, Linear

    kinds = (Conv1d, Conv2d, Conv3d, Linear)
    found = (name for name, module in model.named_modules() if isinstance(module, kinds))
    return frozenset(f"{name}.weight" if name else "weight" for name in found)


def _attention_keys(model: nn.Module) -> frozenset[str]:
    from morphfed.models.mil.base import MilHead, part_keys

    heads = ((name, module) for name, module in model.named_modules() if isinstance(module, MilHead))
    return frozenset(f"{name}.{key}" if name else key for name, m in heads for key in part_keys(m, "attention"))


def head_module(model: nn.Module, layout: Layout) -> nn.Module:
    """The classifier: the module that holds the first of ``layout.head``.

    Raises:
        ValueError: the layout names no head.
    """
    first = next((name for name in layout.order if name in layout.head), None)
    if first is None:
        raise ValueError("this network's classifier is not known")
    return model.get_submodule(first.rpartition(".")[0])
