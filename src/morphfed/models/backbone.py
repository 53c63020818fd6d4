"""Backbones by name: any of timm's, torchvision's with the prefix ``torchvision/``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, field_validator

from morphfed.core.config import Config
from morphfed.core.errors import ConfigError, ModelError, did_you_mean
from morphfed.core.seeding import derive
from morphfed.models import tuning
from morphfed.models.norm import Norm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

TORCHVISION = "torchvision/"
UNET = "unet/"
"""Prefix of networks that draw masks: a U-Net with any of timm's convolutional networks as its encoder."""
MIL = "mil/"
"""Prefix of networks that take bags of features: one of ``models.mil``'s heads."""


class ModelConfig(Config):
    """Which network, and from which weights it starts."""

    name: str = Field(
        "resnet34",
        description="a timm model, or torchvision/NAME; for masks unet/NAME, a timm encoder; for bags mil/HEAD",
    )
    weights: str = Field("none", description="'pretrained' (from the hub's cache), 'none', or a .safetensors file")
    norm: Norm = Field("batch", description="batch: as is; group: batch norms become group norms; local: stay at sites")
    dropout: float | None = Field(None, ge=0, lt=1, description="before the classifier; empty: the network's default")
    decoder: tuple[int, ...] = Field(
        (256, 128, 64, 32, 16), min_length=3, max_length=5, description="channels of a U-Net's decoder, deepest first"
    )
    tune: str = Field("full", description="what is trained and travels: full, head, last-N (blocks and head) or lora")
    lora_rank: int = Field(8, ge=1, le=256, description="r, rank of each layer's update; with tune = 'lora'")
    lora_alpha: float = Field(16.0, gt=0, description="α; an update counts α / r times; with tune = 'lora'")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of a MIL head, such as { hidden = [256], attention = 128 }"
    )
    dim: int | None = Field(None, ge=1, description="numbers of an instance's features; empty: as the bags have")

    @field_validator("tune")
    @classmethod
    def _known_mode(cls, value: str) -> str:
        if not re.fullmatch(r"full|head|lora|last-[1-9]\d*", value):
            raise ValueError("must be 'full', 'head', 'lora' or 'last-N', for example 'last-2'")
        return value


@dataclass(frozen=True)
class Backbone:
    """A network ready to train.

    Attributes:
        module: maps float ``(N, 3, S, S)``, normalised, to logits ``(N, classes)``, a U-Net to ``(N, classes, S, S)``;
            what is not trained has no ``requires_grad``. A MIL head is called bag by bag (``tasks.mil``).
        mean, std: per-channel normalisation of RGB in [0, 1].
        head: state-dict keys of the classifier.
        fresh: keys that did not come from the weights file (all of them with ``weights = "none"``).
    """

    module: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    head: frozenset[str]
    fresh: tuple[str, ...]


def build(config: ModelConfig, *, classes: int, image_size: int, seed: int, folder: Path | None = None) -> Backbone:
    """Build a network and fill it with weights.

    Args:
        config: which.
        classes: outputs; of masks the background counts as one.
        image_size: side of the input in pixels (transformers resize their position embedding to it).
        seed: of the fresh weights; the same seed gives the same bytes.
        folder: against which a relative weights path is resolved (the study's).

    Raises:
        ConfigError: no such model, or the image does not suit it, or it has not the blocks that ``tune`` names.
        ModelError: the weights are missing or do not fit.
        MissingExtraError: ``tune = "lora"`` or a U-Net without its library.
    """
    import torch

    from morphfed.models import unet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.name.startswith(MIL):
            return _of_bags(config, classes, folder)
        if draws_masks(config):
            module, mean, std, head = unet.make(config, classes)
        elif config.name.startswith(TORCHVISION):
            module, mean, std, head = _torchvision(config, classes)
        else:
            module, mean, std, head = timm_model(config, classes, image_size)
    if draws_masks(config):
        fresh = unet.fill_encoder(module, config, image_size, folder)
    else:
        fresh = fill(module, config, head, folder)
    if config.norm == "group":
        from morphfed.models.norm import batch_to_group

        batch_to_group(module)
    _try_forward(module, config, image_size)
    if config.tune != tuning.FULL:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "tuning"))
            tuning.apply(module, config, head)
    return Backbone(module, mean, std, head, tuple(fresh))


def _of_bags(config: ModelConfig, classes: int, folder: Path | None) -> Backbone:
    """A MIL head; features come as they are, so there is no normalisation of colours."""
    from morphfed.models import bags

    module, head, fresh = bags.make(config, classes, folder)
    return Backbone(module, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), head, tuple(fresh))


def draws_masks(config: ModelConfig) -> bool:
    """Whether the network gives a class for every pixel."""
    return config.name.startswith(UNET)


def fill(module: nn.Module, config: ModelConfig, head: frozenset[str], folder: Path | None) -> list[str]:
    """Give a classifier the weights that ``config`` names; return the keys that stay fresh.

    Raises:
        ModelError: the weights are missing or do not fit.
    """
    if config.weights == "pretrained":
        return _from_hub(module, config, head)
    if config.weights == "none":
        return sorted(module.state_dict())
    path = Path(config.weights).expanduser()
    return _from_file(module, path if path.is_absolute() or folder is None else folder / path, head)


def timm_model(config: ModelConfig, classes: int, image_size: int) -> tuple[Any, Any, Any, frozenset[str]]:
    """One of timm's classifiers, its normalisation (mean, std) and its head's keys.

    Raises:
        ConfigError: timm has no such model, or the image does not suit it.
    """
    import timm

    known = timm.list_models()
    if config.name.split(".")[0] not in known:
        raise ConfigError(
            f"model.name = '{config.name}': timm has no such model.{did_you_mean(config.name, known)}",
            fix="`morphfed list models` prints the names; torchvision's start with 'torchvision/'.",
        )
    options: dict[str, Any] = {"num_classes": classes}
    if config.dropout is not None:
        options["drop_rate"] = config.dropout
    try:
        module = timm.create_model(config.name, pretrained=False, img_size=image_size, **options)
    except TypeError:  # convolutional networks take any size and have no such argument
        module = timm.create_model(config.name, pretrained=False, **options)
    _refuse_cut_patches(module, config.name, image_size)
    data = timm.data.resolve_model_data_config(module)
    names = module.pretrained_cfg.get("classifier") or "head"
    prefixes = (names,) if isinstance(names, str) else tuple(names)
    return module, tuple(data["mean"]), tuple(data["std"]), _keys_under(module, prefixes)


def _refuse_cut_patches(module: nn.Module, name: str, image_size: int) -> None:
    """A transformer drops the pixels beyond its last whole patch without a word."""
    from torch import nn

    embedding = getattr(module, "patch_embed", None)
    patches = getattr(embedding, "proj", None)
    # Where patches overlap, or the image is padded to whole ones, nothing is dropped.
    if not isinstance(patches, nn.Conv2d) or patches.stride != patches.kernel_size:
        return
    if getattr(embedding, "dynamic_img_pad", False):
        return
    side = patches.stride[0]
    below = image_size // side * side
    if image_size != below:
        near = f"{below} or {below + side}" if below else str(side)
        raise ConfigError(
            f"model.name = '{name}' sees patches of {side} px: of {image_size} px it would use {below}.",
            fix=f"set data.image_size to a multiple of {side}: {near}.",
        )


def _torchvision(config: ModelConfig, classes: int) -> tuple[Any, Any, Any, frozenset[str]]:
    from torchvision import models

    name = config.name.removeprefix(TORCHVISION)
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(
            f"model.name = '{config.name}': torchvision has no such model.{did_you_mean(name, known)}",
            fix="`morphfed list models torchvision` prints the names.",
        )
    options = {} if config.dropout is None else {"dropout": config.dropout}
    try:
        module = models.get_model(name, weights=None, num_classes=classes, **options)
    except TypeError as cause:
        raise ConfigError(
            f"model.dropout: '{config.name}' has no dropout before its classifier.",
            fix="remove model.dropout.",
        ) from cause
    prefixes = [n for n in ("classifier", "fc", "head", "heads") if hasattr(module, n)]
    head = _keys_under(module, tuple(prefixes))
    last = [k.rsplit(".", 1)[0] for k in head if module.state_dict()[k].shape[:1] == (classes,)]
    return module, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), _keys_under(module, tuple(last)) or head


def _keys_under(module: nn.Module, prefixes: Sequence[str]) -> frozenset[str]:
    return frozenset(k for k in module.state_dict() if any(k == p or k.startswith(p + ".") for p in prefixes))


def _from_file(module: nn.Module, path: Path, head: frozenset[str]) -> list[str]:
    from morphfed.models.weights import load_pretrained

    return load_pretrained(module, path, head=head, adapt=_timm_filter(module))


def _timm_filter(module: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None:
    """timm's own conversion of a state dict: position embeddings resized, old key names renamed."""
    import sys

    found = getattr(sys.modules.get(type(module).__module__), "checkpoint_filter_fn", None)
    return cast("Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None", found)


def _from_hub(module: nn.Module, config: ModelConfig, head: frozenset[str]) -> list[str]:
    """Fetch weights through the hub's cache; offline this ends with the file to fetch and where to put it."""
    if config.name.startswith(TORCHVISION):
        raise ModelError(
            f"model.weights = 'pretrained': torchvision publishes {config.name} as a pickle, which is not loaded.",
            fix="convert it once to safetensors on a machine with internet and give the file's path in model.weights.",
        )
    import timm

    source = timm.create_model(config.name, pretrained=False, num_classes=0).pretrained_cfg
    repository = source.get("hf_hub_id")
    if not repository:
        raise ModelError(
            f"model.weights = 'pretrained': timm lists no hub weights for '{config.name}'.",
            fix="choose another model, or give a .safetensors file in model.weights.",
        )
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(repository, "model.safetensors")
    try:
        _reach_hub(needed=not isinstance(cached, str))
        path = cached if isinstance(cached, str) else hf_hub_download(repository, "model.safetensors")
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as cause:
        raise ModelError(
            f"model.weights = 'pretrained': 'model.safetensors' of '{repository}' is not in this machine's cache and "
            "the hub cannot be reached.",
            fix=f"on a machine with internet fetch model.safetensors of '{repository}' from the Hugging Face hub, copy "
            "it here, and set model.weights to its path; or set model.weights = 'none'.",
        ) from cause
    return _from_file(module, Path(path), head)


def _reach_hub(*, needed: bool) -> None:
    """Fail within seconds where the hub's own client would retry for half a minute."""
    if not needed:
        return
    import socket
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("offline mode")
    address = urlsplit(constants.ENDPOINT)
    socket.create_connection((address.hostname, address.port or 443), timeout=5).close()


def _try_forward(module: nn.Module, config: ModelConfig, image_size: int) -> None:
    """One empty image through the network, so that a size that it cannot take fails here and not in round 1."""
    import torch

    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            out = module(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as cause:
        raise ConfigError(
            f"model.name = '{config.name}' cannot take images of {image_size} px: {str(cause).splitlines()[0]}.",
            fix="choose another data.image_size (transformers: a multiple of their patch) or another model.",
        ) from cause
    finally:
        module.train(was)
    if draws_masks(config) and tuple(out.shape[2:]) != (image_size, image_size):
        raise ConfigError(
            f"model.name = '{config.name}' draws masks of {out.shape[3]} px for images of {image_size} px.",
            fix="set data.image_size to a multiple of 32.",
        )
    if out.ndim != 2 and not draws_masks(config):
        raise ConfigError(f"model.name = '{config.name}' does not return logits.", fix="choose a classifier.")
