"""Every image read once: bytes hashed, pixels decoded whole, looks measured."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from morphfed.core.errors import DataError
from morphfed.core.progress import Reporter, tracked
from morphfed.data.decode import ImageFacts, decode_bytes, probe_bytes, read_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

PALETTE = 5
"""Bins of a palette, from the darkest fifth of the pixels to the brightest."""

_LOOK_SIDE = 128  # looks are measured on a picture reduced to about this size: the measures are coarse anyway
_FOCUS_SIDE = 512  # cameras oversample: a larger picture holds no finer detail worth judging
_HASH_SIDE = 16  # 256 bits; 64 bits give false pairs, for all single-cell pictures are a blob on a plain ground


@dataclass(frozen=True)
class Measured:
    """What one file holds.

    Attributes:
        exists: the file is there.
        problem: why it cannot be read, or None.
        sha256: of its bytes, or None when there are none.
        facts: its header, or None when unreadable.
        looks: cleanvision's raw measures by name, empty when unreadable.
        phash: (256,) bits of the perceptual hash, or None.
        mean: (3,) mean colour, 0–1.
        variance: (3,) variance of the colour over the picture's pixels.
        palette: (5, 3) mean colour of the pixels' five brightness fifths, dark to bright.
    """

    exists: bool
    problem: str | None = None
    sha256: str | None = None
    facts: ImageFacts | None = None
    looks: dict[str, float] = field(default_factory=dict)
    phash: NDArray[np.bool_] | None = None
    mean: NDArray[np.float64] | None = None
    variance: NDArray[np.float64] | None = None
    palette: NDArray[np.float64] | None = None


def measure_all(files: list[Path], report: Reporter, *, jobs: int | None = None) -> list[Measured]:
    """Measure files, in their order, in threads (decoding and hashing leave the interpreter's lock)."""
    properties = _properties()
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        found: Iterator[Measured] = pool.map(lambda file: measure(file, properties), files)
        return list(tracked(found, report, "check", "reading images", total=len(files)))


def measure(path: Path, properties: list[Any] | None = None) -> Measured:
    """Measure one file; a file that cannot be used is described, not raised."""
    if not path.exists():
        return Measured(exists=False, problem="the file does not exist")
    digest = None
    try:
        content = read_bytes(path)
        digest = hashlib.sha256(content).hexdigest()
        facts, pixels = probe_bytes(content, path), decode_bytes(content, path)
    except DataError as cause:
        return Measured(exists=True, problem=cause.message.replace(f"{path} ", "", 1), sha256=digest)
    return _looks(pixels, digest, facts, _properties() if properties is None else properties)


def _properties() -> list[Any]:
    # The measures alone, not cleanvision's Imagelab: that decodes every image three times and prints.
    from cleanvision.issue_managers import image_property as cleanvision

    return [
        cleanvision.BrightnessProperty("dark"),
        cleanvision.EntropyProperty(),
        cleanvision.BlurrinessProperty(),
    ]


def _looks(pixels: NDArray[np.uint8], digest: str, facts: ImageFacts, properties: list[Any]) -> Measured:
    picture = _reduced(pixels)
    looks: dict[str, float] = {}
    for measure_of in properties:
        looks |= {name: float(value) for name, value in measure_of.calculate(picture).items()}
    # Channels first: reductions along the long axis are several times faster.
    colours = np.ascontiguousarray(np.asarray(picture, np.float32).reshape(-1, 3).T) / 255
    looks["focus"] = _focus(pixels)
    looks["chroma"] = float((colours.max(axis=0) - colours.min(axis=0)).max())
    by_brightness = colours[:, np.argsort(colours.sum(axis=0))]
    bins = np.linspace(0, colours.shape[1], PALETTE + 1).astype(int)
    fifths = [by_brightness[:, a : max(b, a + 1)].mean(axis=1) for a, b in pairwise(bins)]
    return Measured(
        exists=True,
        sha256=digest,
        facts=facts,
        looks=looks,
        phash=_phash(picture),
        mean=colours.mean(axis=1, dtype=np.float64),
        variance=colours.var(axis=1, dtype=np.float64),
        palette=np.array(fifths, np.float64),
    )


def _reduced(pixels: NDArray[np.uint8]) -> Image:
    from PIL import Image

    picture = Image.fromarray(pixels)
    return picture.reduce(max(1, round(max(picture.size) / _LOOK_SIDE)))


def _phash(picture: Image) -> NDArray[np.bool_]:
    import imagehash

    return np.asarray(imagehash.phash(picture, hash_size=_HASH_SIDE).hash, bool).ravel()


def hash_all(files: list[Path], report: Reporter, *, jobs: int | None = None) -> list[NDArray[np.bool_] | None]:
    """Perceptual hash of each file, ``(256,)`` bits, None for one that cannot be read; in their order."""

    def hashed(path: Path) -> NDArray[np.bool_] | None:
        try:
            return _phash(_reduced(decode_bytes(read_bytes(path), path)))
        except DataError:
            return None  # the cache names it and counts it

    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        return list(tracked(pool.map(hashed, files), report, "split", "looking for copies", total=len(files)))


def _focus(pixels: NDArray[np.uint8]) -> float:
    """Log of the Laplacian's variance over the picture's own: falls with blur, not with a pale stain."""
    from scipy.ndimage import laplace

    step = max(1, max(pixels.shape[:2]) // _FOCUS_SIDE)
    green = pixels[::step, ::step, 1].astype(np.float32) if step > 1 else pixels[..., 1].astype(np.float32)
    return float(np.log((laplace(green).var() + 1e-6) / (green.var() + 1e-6)))
