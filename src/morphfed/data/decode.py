"""Image files → RGB arrays. Every file a site may hold is read here, and here only.

Rules, in the order in which they are applied:

* The format is told by the content, not by the suffix.
* Grey is replicated, a palette is expanded, transparency is laid over white (the background of a bright-field
  image), CMYK goes through Pillow's conversion, an EXIF orientation is applied when the file carries one.
* More than 8 bits a sample are scaled linearly to 0–255. Full scale is the declared ``MaxSampleValue``, else
  the smallest of 8, 10, 12, 14 or 16 bits that holds the largest value: cameras store 12 bits in 16-bit files
  without saying so. A percentile stretch is not used, for it would hide a site's exposure.
* Of a file with several frames the first is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from morphfed.core.errors import DataError

MAX_PIXELS = 80_000_000
"""Largest picture that is decoded whole; below Pillow's own limit, so that Pillow never warns first."""

_REPLACE = "restore the file from its source, or remove its row from the manifest."
_HARMLESS = "extraneous bytes"  # libjpeg: bytes skipped between segments; the picture is complete
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODE_NAMES = {"1": "bilevel", "L": "grey", "LA": "grey with transparency", "P": "palette", "RGBA": "RGBA"}


@dataclass(frozen=True)
class ImageFacts:
    """What a file's header says.

    Attributes:
        width: pixels, after the EXIF orientation.
        height: pixels, after the EXIF orientation.
        mode: Pillow's mode, such as ``RGB``, ``L``, ``RGBA``, ``P``, ``I;16``.
        format: ``JPEG``, ``PNG``, ``BMP``, ``TIFF``, …
        bits: bits a sample.
        converted: what decoding has to do to give 8-bit RGB ("grey to RGB"), or None when nothing.
    """

    width: int
    height: int
    mode: str
    format: str
    bits: int
    converted: str | None


def decode(path: Path | str, *, min_side: int | None = None) -> NDArray[np.uint8]:
    """Read an image file as 8-bit RGB.

    Args:
        path: the file; any format that Pillow reads.
        min_side: if given, a JPEG may come back smaller than stored (decoded at a reduced scale, several
            times faster) as long as neither side falls below this many pixels. Other formats ignore it.

    Returns:
        Array (height, width, 3), contiguous.

    Raises:
        DataError: the file is missing, empty, truncated, damaged, no image, or too large to decode whole.
    """
    return decode_bytes(read_bytes(path), path, min_side=min_side)


def read_bytes(path: Path | str) -> bytes:
    """Read a file's bytes.

    Raises:
        DataError: missing, a folder, unreadable or empty.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as cause:
        raise DataError(f"{path} does not exist; an image file was expected.", fix="correct the path.") from cause
    except OSError as cause:
        raise DataError(f"{path} cannot be read: {cause.strerror}.", fix="check its permissions.") from cause
    if not content:
        raise DataError(f"{path} is empty (0 bytes); an image was expected.", fix=_REPLACE)
    return content


def decode_bytes(content: bytes, path: Path | str, *, min_side: int | None = None) -> NDArray[np.uint8]:
    """Like :func:`decode`, for bytes already read; ``path`` is what errors call them."""
    image = _open(content, path)
    turn = _TRANSPOSE.get(_orientation(image))
    if image.format == "JPEG" and image.mode in ("RGB", "L") and turn is None:
        return _jpeg(content, path, min_side)
    if image.format == "TIFF" and image.mode == "RGB" and _bits(image) > 8:
        array = _deep_rgb_tiff(content, path)
        return array if turn is None else np.ascontiguousarray(Image.fromarray(array).transpose(turn))
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as cause:  # what Pillow's plugins raise
        raise DataError(f"{path} is truncated or damaged: {cause}.", fix=_REPLACE) from cause
    rgb = _to_rgb(image, path)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return np.array(rgb, dtype=np.uint8)


def decode_mask(content: bytes, path: Path | str) -> NDArray[np.int64]:
    """The values of a mask as they are stored, ``(height, width)``: grey levels, or the indices of a palette.

    Raises:
        DataError: no image, damaged, or coloured: its channels differ.
    """
    image = _open(content, path)
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as cause:
        raise DataError(f"{path} is truncated or damaged: {cause}.", fix=_REPLACE) from cause
    turn = _TRANSPOSE.get(_orientation(image))
    values = np.asarray(image if turn is None else image.transpose(turn))
    if values.ndim == 3:
        channels = values[..., : {"LA": 1, "RGBA": 3}.get(image.mode, values.shape[2])]
        if (channels != channels[..., :1]).any():
            raise DataError(
                f"{path} is a coloured picture; a mask has one value a pixel.",
                fix="store masks as grey or palette PNG, one value for each structure.",
            )
        values = channels[..., 0]
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != np.bool_:
        raise DataError(f"{path} holds fractions; a mask has whole numbers.", fix="store masks as 8-bit PNG.")
    return values.astype(np.int64)


def probe(path: Path | str) -> ImageFacts:
    """Read an image file's header only: a truncated body goes unnoticed.

    Raises:
        DataError: the file is missing, empty, no image, or too large to decode whole.
    """
    return probe_bytes(read_bytes(path), path)


def probe_bytes(content: bytes, path: Path | str) -> ImageFacts:
    """Like :func:`probe`, for bytes already read; ``path`` is what errors call them."""
    image = _open(content, path)
    orientation, bits = _orientation(image), _bits(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    return ImageFacts(width, height, image.mode, str(image.format), bits, _conversion(image, orientation, bits))


def _conversion(image: Image.Image, orientation: int, bits: int) -> str | None:
    done = []
    if image.mode != "RGB" or bits > 8:
        name = "grey" if image.mode in ("I", "F") or image.mode.startswith("I;16") else image.mode
        name = _MODE_NAMES.get(image.mode, name)
        done.append(f"{bits}-bit {name} to 8-bit RGB" if bits > 8 else f"{name} to RGB")
    if orientation in _TRANSPOSE:
        done.append("EXIF orientation applied")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        done.append(f"first of {frames} frames")
    return ", ".join(done) or None


def _open(content: bytes, path: Path | str) -> Image.Image:
    try:
        image = Image.open(BytesIO(content))
    except UnidentifiedImageError as cause:
        raise DataError(f"{path} is not an image: {_describe(content)}.", fix=_REPLACE) from cause
    except Image.DecompressionBombError as cause:
        raise _too_large(path, str(cause)) from cause
    except (OSError, ValueError, SyntaxError) as cause:
        raise DataError(f"{path} has a damaged header: {cause}.", fix=_REPLACE) from cause
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} × {image.height} pixels")
    return image


def _too_large(path: Path | str, size: str) -> DataError:
    return DataError(
        f"{path} is too large to decode whole ({size}; the limit is {MAX_PIXELS / 1e6:.0f} million pixels).",
        fix="cut whole slides and large fields into single-cell images first.",
    )


def _describe(content: bytes) -> str:
    start = content[:512]
    if start.lstrip()[:1] == b"<":
        return "it holds markup, perhaps a web page saved in place of the download"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; the image itself was never downloaded"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return f"it holds text that begins with {start[:24].decode('utf-8', 'replace')!r}"
    return f"its first bytes ({start[:4].hex(' ')}) belong to no known image format"


def _orientation(image: Image.Image) -> int:
    if image.format not in ("JPEG", "TIFF", "PNG", "WEBP", "MPO"):
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (
        ValueError,
        TypeError,
        SyntaxError,
        OSError,
    ):  # a damaged EXIF block says nothing about the pixels
        return 1


def _bits(image: Image.Image) -> int:
    if image.format == "TIFF":
        declared = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
        return int(max(declared) if isinstance(declared, tuple) else declared)
    if image.mode.startswith("I;16"):
        return 16
    return {"1": 1, "I": 32, "F": 32}.get(image.mode, 8)


def _jpeg(content: bytes, path: Path | str, min_side: int | None) -> NDArray[np.uint8]:
    side = min_side or 0
    try:
        array = simplejpeg.decode_jpeg(content, min_height=side, min_width=side)
    except ValueError as cause:
        if _HARMLESS not in str(cause):
            raise DataError(f"{path} is a truncated or damaged JPEG: {cause}.", fix=_REPLACE) from cause
        array = simplejpeg.decode_jpeg(content, min_height=side, min_width=side, strict=False)
    return np.asarray(array, dtype=np.uint8)


def _to_rgb(image: Image.Image, path: Path | str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        return Image.fromarray(_to_8_bits(grey, _declared_maximum(image), path)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _deep_rgb_tiff(content: bytes, path: Path | str) -> NDArray[np.uint8]:
    # Pillow keeps the high byte only, which turns 12 bits stored in 16 into a black picture.
    import tifffile

    try:
        with tifffile.TiffFile(BytesIO(content)) as file:
            page = file.pages.first
            samples, planar = page.asarray(), int(page.planarconfig) == 2
            tag = page.tags.get(281)
            declared = float(np.max(tag.value)) if tag is not None else None
    except (ValueError, OSError, IndexError, KeyError) as cause:
        raise DataError(
            f"{path}: this deep-colour TIFF cannot be decoded: {cause}.",
            fix="save it with 8 bits a sample or without compression.",
        ) from cause
    if planar:
        samples = np.moveaxis(samples, 0, -1)
    return np.ascontiguousarray(_to_8_bits(samples[..., :3], declared, path))


def _declared_maximum(image: Image.Image) -> float | None:
    if image.format != "TIFF":
        return None
    value = image.tag_v2.get(281)  # type: ignore[attr-defined]
    return float(max(value) if isinstance(value, tuple) else value) if value else None


def _to_8_bits(samples: NDArray[np.generic], declared: float | None, path: Path | str) -> NDArray[np.uint8]:
    values = samples.astype(np.float64)
    top = float(values.max(initial=0.0))
    if not np.isfinite(values).all() or values.min(initial=0.0) < 0 or top > 65535:
        raise DataError(
            f"{path} holds values outside 0–65535; an intensity image was expected.",
            fix="export it as an 8-bit or 16-bit image.",
        )
    if declared is not None and declared >= top and declared > 0:
        full = declared
    elif np.issubdtype(samples.dtype, np.floating) and top <= 1.0:
        full = 1.0
    else:
        full = next(float(2**bits - 1) for bits in (8, 10, 12, 14, 16) if top < 2**bits)
    return np.rint(values * (255.0 / full)).astype(np.uint8)
