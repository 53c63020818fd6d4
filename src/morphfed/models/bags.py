"""Bags as a network takes them, and the networks that take them: ``model.name = "mil/HEAD"``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from morphfed.core.errors import ConfigError, ModelError
from morphfed.models.backbone import MIL, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from morphfed.models.mil import MilHead


@dataclass(frozen=True)
class Bags:
    """Several bags, one behind the other.

    Attributes:
        features: ``(M, D)``, instances of all bags.
        sizes: instances of each, summing to M.
    """

    features: Tensor
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Tensor]:
        """Each bag ``(N, D)``, a view."""
        return iter(torch.split(self.features, list(self.sizes)))

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Bags:
        """The same bags on a device."""
        return Bags(self.features.to(device, non_blocking=non_blocking), self.sizes)

    def pin_memory(self) -> Bags:
        """The same bags in memory that a GPU copies from by itself."""
        return Bags(self.features.pin_memory(), self.sizes)


def takes_bags(config: ModelConfig) -> bool:
    """Whether the network takes bags of features, and no pictures."""
    return config.name.startswith(MIL)


def make(config: ModelConfig, classes: int, folder: Path | None) -> tuple[MilHead, frozenset[str], list[str]]:
    """A head with its weights, the keys of its classifier, and the keys that stay fresh.

    Args:
        config: ``name``, ``dim``, ``options``, ``dropout``, ``weights``.
        classes: outputs.
        folder: against which a relative weights path is resolved.

    Raises:
        ConfigError: no such head or option, or the width of the features is not known.
        ModelError: the weights are missing or do not fit.
    """
    from morphfed.models.mil import build_head, part_keys

    if config.dim is None:
        raise ConfigError(
            f"model.name = '{config.name}': the width of the features is not known.",
            fix="name a site with bags, or set model.dim.",
        )
    options: dict[str, Any] = dict(config.options)
    if config.dropout is not None:
        options["dropout"] = config.dropout
    head = build_head(config.name.removeprefix(MIL), config.dim, classes, **options)
    return head, frozenset(part_keys(head, "classifier")), _fill(head, config, folder)


def _fill(head: MilHead, config: ModelConfig, folder: Path | None) -> list[str]:
    if config.weights == "none":
        return sorted(head.state_dict())
    if config.weights == "pretrained":
        raise ModelError(
            f"model.weights = 'pretrained': there are no published weights of '{config.name}'.",
            fix="set model.weights = 'none', or give a .safetensors file.",
        )
    from morphfed.models.mil import part_keys
    from morphfed.models.weights import load_pretrained

    path = Path(config.weights).expanduser()
    path = path if path.is_absolute() or folder is None else folder / path
    return load_pretrained(head, path, head=frozenset(part_keys(head, "classifier")), adapt=None)
