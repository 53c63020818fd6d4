"""A network without its classifier, as an encoder of tiles: any of timm's, with weights from a file or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morphfed.core.errors import ConfigError, ModelError
from morphfed.models.backbone import TORCHVISION, UNET, Backbone, ModelConfig, fill, timm_model
from morphfed.models.features import fingerprint

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Encoder:
    """An encoder in evaluation mode.

    Attributes:
        name: as timm calls it.
        module: normalised images ``(B, 3, S, S)`` → features ``(B, D)``.
        mean, std: normalisation of RGB in [0, 1].
        image_size: S.
        interpolation: with which tiles are resized to S, ``bilinear`` or ``bicubic``.
        width: D.
        fingerprint: identifies layers, weights and normalisation.
    """

    name: str
    module: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    interpolation: str
    width: int
    fingerprint: str


def build_encoder(name: str, weights: str = "pretrained", *, image_size: int | None = None, seed: int = 0) -> Encoder:
    """Build an encoder.

    Args:
        name: of a timm model.
        weights: ``pretrained`` (from the hub's cache), a ``.safetensors`` file, or ``none`` (random).
        image_size: S; None: what the network was trained with.
        seed: of random weights.

    Raises:
        ConfigError: timm has no such model, it does not take this size, or it gives no vector.
        ModelError: the weights are missing or do not fit.
    """
    import torch

    if name.startswith((TORCHVISION, UNET)):
        raise ConfigError(f"Encoder '{name}': encoders are timm's.", fix="`morphfed list models` prints their names.")
    config = ModelConfig(name=name, weights=weights)
    size = image_size or _native_size(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, mean, std, _ = timm_model(config, 0, size)
    missing = fill(module, config, _classifier_keys(module), None)
    if weights != "none" and missing:
        raise ModelError(
            f"Weights {weights} leave {len(missing)} tensors of '{name}' empty ({missing[0]}, …).",
            fix="name the architecture that the file was made for with --encoder.",
        )
    module.eval().requires_grad_(requires_grad=False)
    width = _width(module, name, size)
    import timm

    how = timm.data.resolve_model_data_config(module)["interpolation"]
    mark = fingerprint(Backbone(module, mean, std, frozenset(), ()))
    return Encoder(name, module, mean, std, size, how, width, mark)


def _native_size(config: ModelConfig) -> int:
    import timm

    found = timm.get_pretrained_cfg(config.name) if timm.is_model(config.name) else None
    return int(found.input_size[-1]) if found is not None else 224


def _classifier_keys(module: Any) -> frozenset[str]:
    """Keys of the classifier that a file may hold and that this network does without."""
    names = module.pretrained_cfg.get("classifier") or "head"
    several = (names,) if isinstance(names, str) else tuple(names)
    return frozenset(f"{name}.{kind}" for name in several for kind in ("weight", "bias"))


def _width(module: nn.Module, name: str, size: int) -> int:
    import torch

    try:
        with torch.no_grad():
            out = module(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as cause:
        raise ConfigError(
            f"Encoder '{name}' cannot take images of {size} px: {str(cause).splitlines()[0]}.",
            fix="choose another --image-size, or leave it out.",
        ) from cause
    if out.ndim != 2:
        raise ConfigError(f"Encoder '{name}' gives {tuple(out.shape)}, not a vector.", fix="choose another encoder.")
    return int(out.shape[1])
