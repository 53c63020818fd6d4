"""Names that all sets of the ISIC archive share, and masks beside their pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from morphfed.data.sources.base import IMAGE_SUFFIXES

IMAGE_ID = re.compile(r"ISIC_\d{7}(?:_downsampled)?")
"""Stem of a picture."""

_MASK = re.compile(r"(?P<id>ISIC_\d{7})_(?:segmentation|expert|mask)", re.IGNORECASE)
_MASK_FOLDER = re.compile(r"masks?|HAM10000_segmentations?\w*|ISIC-2017_\w+_Part1_GroundTruth", re.IGNORECASE)


def mask_id(image: Path) -> str | None:
    """The picture that a mask belongs to, or None where the file is no mask."""
    named = _MASK.fullmatch(image.stem)
    if named is not None:
        return named["id"]
    inside = _MASK_FOLDER.fullmatch(image.parent.name) and IMAGE_ID.fullmatch(image.stem)
    return image.stem if inside else None


def parted(images: Iterable[Path]) -> tuple[list[Path], dict[str, Path]]:
    """Pictures, and id → mask."""
    pictures: list[Path] = []
    masks: dict[str, Path] = {}
    for image in images:
        belongs_to = mask_id(image)
        if belongs_to is None:
            pictures.append(image)
        else:
            masks.setdefault(belongs_to, image)
    return pictures, masks


def masks_beside(folder: Path) -> dict[str, Path]:
    """Masks in a folder of masks that lies beside ``folder``, by the id of their picture."""
    try:
        places = [p for p in folder.absolute().parent.iterdir() if _MASK_FOLDER.fullmatch(p.name) and p.is_dir()]
    except OSError:  # a folder that only lets its children be read has nothing to find
        return {}
    files = (f for place in sorted(places) for f in sorted(place.iterdir()) if f.suffix.lower() in IMAGE_SUFFIXES)
    return parted(files)[1]
