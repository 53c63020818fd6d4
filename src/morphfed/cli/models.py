"""``morphfed models``: weights from elsewhere, and models for elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import cyclopts

app = cyclopts.App(name="models", help="Convert published weights, and saved models for use elsewhere.")


@app.command
def convert(source: Path, target: Path | None = None, /, *, force: bool = False) -> int:
    """Make a .safetensors file of a .pth file, without running any code that is in it.

    Key names are taken out of their wrapping (DINOv2, DinoBloom).

    Args:
        source: the .pth file.
        target: the file to write; default beside it, with the suffix .safetensors.
        force: replace an existing file.
    """
    from morphfed.models.foreign import convert as write

    out = target or source.with_suffix(".safetensors")
    _refuse_existing(out, force=force)
    tensors = write(source, out)
    numbers = sum(t.numel() for t in tensors.values())
    sys.stdout.write(f"wrote {out}: {len(tensors)} tensors, {numbers / 1e6:.2f} M numbers\n")
    sys.stdout.write(f'in a study:\n  [model]\n  weights = "{out}"\n')
    return 0


@app.command
def merge(source: Path, target: Path, /, *, force: bool = False) -> int:
    """Add a model's low-rank updates (LoRA) to its weights, so that timm or torchvision alone can load it.

    Args:
        source: best.safetensors or last.safetensors of a unit.
        target: the file to write.
        force: replace an existing file.
    """
    from morphfed.models.saved import merge as write

    _refuse_existing(target, force=force)
    merged = write(source, target)
    sys.stdout.write(f"wrote {target}: {merged} low-rank updates merged\n")
    return 0


def _refuse_existing(target: Path, *, force: bool) -> None:
    from morphfed.core.errors import StorageError

    if target.exists() and not force:
        raise StorageError(f"{target} exists.", fix="name another file, or replace it with --force.")
