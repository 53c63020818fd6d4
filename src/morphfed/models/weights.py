"""Weights in and out, as safetensors only: a file that can execute code is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from morphfed.core.errors import ModelError, StorageError
from morphfed.core.files import writing
from morphfed.models.foreign import plain_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors atomically. The same tensors and metadata give the same bytes.

    Raises:
        StorageError: the disk is full or the folder read-only.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with writing(path) as temporary:
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
        try:
            save_file(content, temporary, metadata=dict(sorted((metadata or {}).items())))
        except SafetensorError as cause:  # the library wraps the operating system's error
            message = str(cause)
            if "No space" in message or "os error 28" in message:
                raise OSError(28, "No space left on device") from cause
            raise OSError(message) from cause


def load(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        StorageError: missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except FileNotFoundError as cause:
        raise StorageError(f"{path} does not exist.", fix="check the path.") from cause
    except (SafetensorError, OSError) as cause:
        raise StorageError(
            f"{path} is damaged or not a safetensors file: {cause}.", fix="restore the file, or remove it."
        ) from cause


def load_pretrained(
    model: nn.Module,
    path: Path,
    *,
    head: frozenset[str],
    adapt: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
) -> list[str]:
    """Load a backbone's weights; the classifier keeps its fresh weights unless its shapes fit.

    Args:
        model: receives the weights.
        path: a ``.safetensors`` file with the model's own key names, or as self-supervised training leaves them
            (``models.foreign.plain_names``).
        head: keys of the classifier, the only ones that may be missing or of another shape.
        adapt: converts the file's tensors to this model (position embeddings of another image size).

    Returns:
        Keys that kept their fresh values.

    Raises:
        ModelError: the file is missing, not safetensors, or does not fit; names the keys.
    """
    if path.suffix != ".safetensors":
        raise ModelError(
            f"Weights {path}: only .safetensors files are loaded, because other formats can execute code.",
            fix=f"convert it once, which runs none of it: morphfed models convert {path.name}",
        )
    if not path.is_file():
        raise ModelError(f"Weights file {path} does not exist.", fix="check model.weights in the study file.")
    try:
        given = load(path)
    except StorageError as cause:
        raise ModelError(cause.message, fix="download the weights again.") from cause
    given = plain_names(given)
    if adapt is not None:
        given = adapt(given, model)
    own = model.state_dict()
    fits = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    counters = {k for k in own if k.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(fits) - head - counters)
    unknown = sorted(set(given) - set(own) - head)
    if missing or unknown:
        raise ModelError(
            f"Weights {path} do not fit this model: {_some(missing)} missing or of another shape, "
            f"{_some(unknown)} unknown.",
            fix="name the architecture that the file was made for in model.name.",
        )
    model.load_state_dict(fits, strict=False)
    return sorted(set(own) - set(fits))


def _some(keys: list[str]) -> str:
    return f"{len(keys)} keys ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})" if keys else "none"
