"""U-Nets (Ronneberger et al. 2015) with an encoder of timm: segmentation-models-pytorch puts them together.

Weights are those of the encoder as a classifier, in timm's own layout; the decoder and the head start fresh.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphfed.core.errors import ConfigError, MissingExtraError, ModelError
from morphfed.models.backbone import UNET, ModelConfig, fill, timm_model

if TYPE_CHECKING:
    from torch import nn

ENCODER = "encoder.model."
HEAD = "segmentation_head."


def make(config: ModelConfig, classes: int) -> tuple[Any, Any, Any, frozenset[str]]:
    """A U-Net with fresh weights, its normalisation (mean, std) and the keys of its last convolution.

    Args:
        config: ``name`` (``unet/ENCODER``) and ``decoder``.
        classes: outputs of each pixel, the background among them.

    Raises:
        ConfigError: timm has no such encoder, or it does not halve its input step by step.
        MissingExtraError: the library is not installed.
    """
    import timm

    try:
        import segmentation_models_pytorch as smp
    except ImportError as cause:
        raise MissingExtraError(
            f"model.name = '{config.name}' needs the library segmentation-models-pytorch, which is not installed.",
            fix="pip install 'morphfed[segmentation]'.",
        ) from cause
    if config.dropout is not None:
        raise ConfigError(f"model.dropout: '{config.name}' has no dropout.", fix="remove model.dropout.")
    encoder = _encoder(config)
    depth = len(config.decoder)
    try:
        module = smp.Unet(
            f"tu-{encoder.name}",
            encoder_weights=None,
            encoder_depth=depth,
            decoder_channels=config.decoder,
            classes=classes,
        )
    except (ValueError, RuntimeError, TypeError, AttributeError) as cause:
        if encoder.name.split(".")[0] not in timm.list_models():
            timm_model(encoder, 1, 32)  # says which names are like it
        raise ConfigError(
            f"model.name = '{config.name}': '{encoder.name}' cannot be the encoder of a U-Net: "
            f"{str(cause).splitlines()[0].rstrip('.')}.",
            fix="choose a convolutional network, such as unet/resnet18 or unet/mobilenetv2_100.",
        ) from cause
    head = frozenset(key for key in module.state_dict() if key.startswith(HEAD))
    shown = timm.data.resolve_model_data_config(timm.get_pretrained_cfg(encoder.name).to_dict())
    return module, tuple(shown["mean"]), tuple(shown["std"]), head


def fill_encoder(module: nn.Module, config: ModelConfig, image_size: int, folder: Path | None) -> list[str]:
    """Give the encoder the weights that ``config`` names; return the keys that stay fresh.

    Args:
        module: of :func:`make`.
        config: ``weights``: of the encoder as a classifier.
        image_size: side of the input in pixels.
        folder: against which a relative path is resolved.

    Raises:
        ModelError: the weights are missing or do not fit the encoder.
    """
    own = module.state_dict()
    if config.weights == "none":
        return sorted(own)
    encoder = _encoder(config)
    # Checked, renamed and converted as for the classifier; one output, so that any file's classifier is passed over.
    donor, _, _, head = timm_model(encoder, 1, image_size)
    left = set(fill(donor, encoder, head, folder))
    given = {_flat(key): tensor for key, tensor in donor.state_dict().items() if key not in left}
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    wanted = {key: _flat(key.removeprefix(ENCODER)) for key in own if key.startswith(ENCODER)}
    lacking = [
        k
        for k, name in wanted.items()
        if k not in counters and (name not in given or given[name].shape != own[k].shape)
    ]
    if lacking:
        raise ModelError(
            f"The weights of '{encoder.name}' do not fill the encoder: {len(lacking)} keys ({lacking[0]}, …).",
            fix="set model.weights = 'none', or choose another encoder.",
        )
    module.load_state_dict({k: given[name] for k, name in wanted.items() if name in given}, strict=False)
    return sorted(set(own) - {k for k, name in wanted.items() if name in given})


def _encoder(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"name": config.name.removeprefix(UNET)})


def _flat(key: str) -> str:
    """A key as timm's feature networks may write it: ``stages.0.blocks`` there is ``stages_0.blocks``."""
    return key.replace(".", "_")
