"""Weights that others published: names as timm has them, and pickles made into safetensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphfed.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

NESTED = ("teacher", "model", "state_dict", "model_state_dict")
"""Keys below which checkpoints keep the weights; of a teacher and a student it is the teacher that is used."""

_WRAPPERS = re.compile(r"^(teacher\.|module\.|backbone\.|_orig_mod\.)+")
_PRETEXT = ("dino_head.", "ibot_head.")
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what training code put around a network's own key names.

    * ``teacher.``, ``module.``, ``backbone.``, ``_orig_mod.`` in front, where every key of the backbone has it;
    * ``dino_head.…`` and ``ibot_head.…``: heads of self-supervised training, without use afterwards (DINOv2,
      DinoBloom);
    * ``blocks.CHUNK.INDEX.…`` → ``blocks.INDEX.…``: DINOv2 trains with its blocks in chunks and numbers them through.

    Everything else keeps its name.
    """
    kept = {k: t for k, t in tensors.items() if not _WRAPPERS.sub("", k).startswith(_PRETEXT)}
    if kept and all(_WRAPPERS.match(k) for k in kept):
        kept = {_WRAPPERS.sub("", k): t for k, t in kept.items()}
    # A chunked network has digits in both places for every block; in timm's names a layer's name is in the second.
    return {_CHUNKED.sub(r"blocks.\1.", k): t for k, t in kept.items()} if _is_vit(kept) else kept


def _is_vit(tensors: Mapping[str, Tensor]) -> bool:
    return "cls_token" in tensors and "pos_embed" in tensors


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The weights in a ``.pth`` file, read without running any code that is in it.

    Raises:
        ModelError: missing, not such a file, holds more than tensors and plain values, or no weights.
    """
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as cause:
        raise ModelError(f"{path} does not exist.", fix="check the path.") from cause
    except pickle.UnpicklingError as cause:
        raise ModelError(
            f"{path} holds more than weights, or is damaged, and is not opened: {str(cause).splitlines()[0]}",
            fix="download it again; or have its makers publish the weights alone, best as .safetensors.",
        ) from cause
    except (OSError, RuntimeError, EOFError, ValueError) as cause:
        raise ModelError(f"{path} cannot be read as weights: {cause}.", fix="download it again.") from cause
    while isinstance(content, dict) and (inner := next((k for k in NESTED if isinstance(content.get(k), dict)), None)):
        content = content[inner]
    return _only_tensors(content, path)


def _only_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    import torch

    found = {str(k): t for k, t in content.items() if isinstance(t, torch.Tensor)} if isinstance(content, dict) else {}
    if not found:
        raise ModelError(
            f"{path} holds no named tensors.", fix="name a file that was written from a network's state_dict()."
        )
    return found


def convert(source: Path, target: Path) -> dict[str, Tensor]:
    """Write the weights of a ``.pth`` file as safetensors, under the network's own names; return them.

    Raises:
        ModelError: see :func:`read_pickle`.
        StorageError: the target cannot be written.
    """
    from morphfed.models.weights import save

    # Tensors that share memory (tied weights, views) are written out one by one.
    tensors = {name: t.detach().clone().contiguous() for name, t in plain_names(read_pickle(source)).items()}
    save(target, tensors, {"converted_from": source.name})
    return tensors
