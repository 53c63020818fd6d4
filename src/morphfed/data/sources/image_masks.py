"""Images in one folder, their masks in another: ``images/…/a.jpg`` and ``masks/…/a.png``, or ``masks/…/a_mask.png``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source, patient_of, split_of
from morphfed.data.sources.folders import class_folder

_IMAGES = re.compile(r"images?|imgs?|pictures", re.IGNORECASE)
_MASKS = re.compile(r"masks?|labels?|labelmaps?|annotations?|ground[ _-]?truth|gt", re.IGNORECASE)
_ENDING = re.compile(r"[ _.-](mask|label|seg|segmentation|gt)$", re.IGNORECASE)
LABEL = "image"


@SOURCES.register("image_masks")
class ImageMasks(Source):
    """Below both folders the paths are the same but for the suffix, and for an ending such as ``_mask``."""

    name = "image_masks"
    title = "images and their masks in two folders side by side"
    layout = "it has a folder of images and one of masks with the same names"
    options: ClassVar[Mapping[str, str]] = {
        "images": "name of the images' folder, where it is none of image, images, img, imgs, pictures",
        "masks": "name of the masks' folder, where it is none of mask, masks, label, labels, annotations, gt",
    }

    def detect(self, folder: Folder) -> float:
        """0.85 × the share of images that have a mask; 0 without both folders."""
        images, masks = _sorted(folder, {})
        return 0.85 * sum(key in masks for key in images) / max(1, len(images)) if masks else 0.0

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every image, with or without a mask; its label is the class folder's name, if there is one."""
        images, masks = _sorted(folder, options)
        known = {file for found in (images, masks) for files in found.values() for file in files}
        for table in folder.tables:
            yield Skipped(table, "table, not an image")
        for file in folder.images:
            if file not in known:
                yield Skipped(file, "in neither the images' folder nor the masks'")
        for key, (file, *others) in images.items():
            found = masks.get(key, [])
            if len(found) > 1:
                names = " and ".join(f.name for f in found)
                yield Note(f"{file.name} has {len(found)} masks ({names}); the first is taken")
            parts = folder.parts(file)
            split = next((s for part in parts if (s := split_of(part))), None)
            label = class_folder(key[:-1], ()) or LABEL
            yield Record(file, label, patient=patient_of(parts), split=split, mask=found[0] if found else None)
            for other in others:
                yield Skipped(other, "another image has this name with another suffix")
        for key, files in masks.items():
            for file in files[1:] if key in images else files:
                yield Skipped(file, "mask of an image that has another" if key in images else "mask without an image")
        yield Note(f"{sum(key in masks for key in images)} of {len(images)} images have a mask of the same name")


_Found = dict[tuple[str, ...], list[Path]]


def _sorted(folder: Folder, options: Mapping[str, str]) -> tuple[_Found, _Found]:
    """Images and masks by what their paths have in common: the folders but the telling one, and the plain name."""
    images: _Found = {}
    masks: _Found = {}
    for file in folder.images:
        parts = folder.parts(file)
        for kind, pattern in (("masks", _MASKS), ("images", _IMAGES)):
            at = next((i for i, p in enumerate(parts) if _is(p, options.get(kind), pattern)), None)
            if at is None:
                continue
            rest = (*parts[:at], *parts[at + 1 :])
            if kind == "images":
                images.setdefault((*rest, file.stem.casefold()), []).append(file)
            else:
                masks.setdefault((*rest, _ENDING.sub("", file.stem).casefold()), []).append(file)
            break
    return images, masks


def _is(part: str, asked: str | None, usual: re.Pattern[str]) -> bool:
    return part.casefold() == asked.casefold() if asked else bool(usual.fullmatch(part))
