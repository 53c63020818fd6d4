"""LeukemiaAttri (Rehman 2024, MICCAI): whole fields with COCO boxes of 14 classes, a sub-set for each microscope."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from morphfed.core.errors import DataError
from morphfed.data.decode import decode
from morphfed.data.sources import Folder
from morphfed.data.sources.base import split_of
from morphfed.data.unpack.cells import Cell, Options, square


def cells(source: Path, options: Options) -> Iterator[Cell | str]:
    """A square around every box of one sub-set, such as ``H_100X_C1``; the field is the slide.

    Read are ``train.json`` and ``test.json``, wherever below; each names its split. The patient is the part of a
    field's name before the first underscore. Twelve sub-sets show the same cells: never use two of them as two sites.

    Raises:
        DataError: no COCO file, several for one split, or one that lacks a key; names it.
    """
    folder = Folder.scan(source)
    named = {"train.json", "test.json"}
    files = [s.path for s in folder.skipped if s.path.name.casefold() in named]
    if not files:
        raise DataError(
            f"{source} has no json_labels/train.json or test.json.",
            fix="name one sub-set's folder, such as H_100X_C1; its YOLO labels alone are not read.",
        )
    for name in sorted(named):
        if len(same := [file for file in files if file.name.casefold() == name]) > 1:
            shown = ", ".join(file.relative_to(source).as_posix() for file in same)
            raise DataError(f"{source} has {len(same)} files {name}: {shown}.", fix="name one sub-set's folder.")
    for file in sorted(files):
        yield from _of_split(folder, file, options.margin)


def _of_split(folder: Folder, file: Path, margin: float) -> Iterator[Cell | str]:
    split = split_of(file.stem) or ""
    boxes, names = _coco(file)
    there: dict[str, list[Path]] = defaultdict(list)
    for image in folder.images:
        there[image.name].append(image)
    for field_name, found in sorted(boxes.items()):
        # The same name may occur below Images/train and Images/test.
        alike = [i for i in there[field_name] if split in map(split_of, folder.parts(i))] or there[field_name]
        if len(alike) != 1:
            yield from ("field that is not there, or there twice" for _ in found)
            continue
        try:
            pixels = decode(alike[0])
        except DataError:
            yield from ("field that cannot be read" for _ in found)
            continue
        stem = Path(field_name).stem
        patient = stem.split("_")[0] if "_" in stem else ""
        for number, (category, (x, y, width, height)) in enumerate(found):
            cut = square(pixels, (x, y, x + width, y + height), margin)
            if cut is None:
                yield "box without area, or outside its field"
            else:
                yield Cell(f"{split}_{stem}_box{number}", cut, names[category], patient, slide=stem, split=split)


def _coco(file: Path) -> tuple[dict[str, list[tuple[int, tuple[float, ...]]]], dict[int, str]]:
    """Field → its boxes as (category, (x, y, width, height)), and the categories' names."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8-sig"))
        names = {int(c["id"]): str(c["name"]).strip() for c in content["categories"]}
        fields = {i["id"]: Path(str(i["file_name"])).name for i in content["images"]}
        boxes: dict[str, list[tuple[int, tuple[float, ...]]]] = defaultdict(list)
        for found in content["annotations"]:
            box = tuple(float(v) for v in found["bbox"])
            if int(found["category_id"]) not in names or len(box) != 4:
                raise ValueError(f"annotation {found.get('id')} has an unknown category or no box of four numbers")
            boxes[fields[found["image_id"]]].append((int(found["category_id"]), box))
    except (ValueError, KeyError, TypeError) as cause:
        raise DataError(f"{file} is no COCO file: {cause}.", fix="restore the published file.") from cause
    return boxes, names
