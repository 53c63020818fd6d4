"""Models that a run saved: built again from their file, and made free of adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from morphfed.core.errors import ModelError
from morphfed.models import weights
from morphfed.models.backbone import Backbone, ModelConfig, build
from morphfed.models.tuning import FULL, merge_lora

CARD = "morphfed"
"""Key of the card in a file's metadata: architecture, classes, image_size, mean, std, what it was trained on."""


def read_card(path: Path) -> dict[str, Any]:
    """The card of a saved model.

    Raises:
        ModelError: the file is missing, damaged, or no model that morphfed saved.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as cause:
        raise ModelError(f"{path} does not exist.", fix="check the path.") from cause
    except (SafetensorError, OSError) as cause:
        raise ModelError(f"{path} is damaged or not a safetensors file: {cause}.", fix="restore the file.") from cause
    if CARD not in metadata:
        raise ModelError(
            f"{path} carries no morphfed card.", fix="name best.safetensors or last.safetensors of a run's unit."
        )
    card: dict[str, Any] = json.loads(metadata[CARD])
    return card


def restore(path: Path) -> tuple[Backbone, dict[str, Any]]:
    """Build the network that a file describes and fill it; return it with its card.

    Raises:
        ModelError: the file is no saved model, or does not fit the architecture on its card.
        MissingExtraError: a model with low-rank updates without their library.
    """
    card = read_card(path)
    config = ModelConfig.model_validate(card["architecture"])
    found = build(config, classes=len(card["classes"]), image_size=card["image_size"], seed=0)
    try:
        found.module.load_state_dict(weights.load(path))
    except RuntimeError as cause:
        raise ModelError(
            f"{path} does not fit the '{config.name}' on its card.",
            fix="name the whole model, not the part of it that a site keeps.",
        ) from cause
    found.module.eval()
    return found, card


def merge(source: Path, target: Path) -> int:
    """Write a saved model with its low-rank updates added to its weights; return how many layers had one.

    The result has the key names of the plain architecture, so timm or torchvision alone can load it.

    Raises:
        ModelError, MissingExtraError: see :func:`restore`.
        StorageError: the target cannot be written.
    """
    found, card = restore(source)
    merged = merge_lora(found.module)
    card["architecture"]["tune"] = FULL
    weights.save(target, found.module.state_dict(), {CARD: json.dumps(card, sort_keys=True)})
    return merged
