"""BCCD (Shenggan 2017): whole fields with Pascal VOC boxes of white cells, red cells and platelets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from morphfed.core.errors import DataError
from morphfed.data.decode import decode
from morphfed.data.sources import Folder
from morphfed.data.sources._rows import read_rows
from morphfed.data.unpack.cells import Cell, Options, square

Box = tuple[str, tuple[float, float, float, float]]
WHITE = "WBC"
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def cells(source: Path, options: Options) -> Iterator[Cell | str]:
    """A square around every box; the field that it was cut from is the slide.

    A white cell's type stands in ``labels.csv`` (``Image,Category``) for the field as a whole: it is used where the
    field has one white cell and the table one type; every other white cell keeps the label WBC.

    Raises:
        DataError: no annotation, or one that is no VOC file; names it.
    """
    folder = Folder.scan(source)
    fields = {image.stem: image for image in folder.images}
    annotations = [s.path for s in folder.skipped if s.path.suffix.lower() == ".xml"]
    if not annotations:
        raise DataError(f"{source} holds no .xml annotation.", fix="name the folder that holds Annotations.")
    types = _types(folder)
    splits = _splits(folder)
    for annotation in sorted(annotations):
        image = fields.pop(annotation.stem, None)
        if image is None:
            yield "annotation without a field"
            continue
        yield from _cut(
            image, _boxes(annotation), types.get(annotation.stem), splits.get(annotation.stem, ""), options.margin
        )
    yield from ("field without an annotation" for _ in fields)


def _cut(image: Path, boxes: list[Box], kind: str | None, split: str, margin: float) -> Iterator[Cell | str]:
    try:
        pixels = decode(image)
    except DataError:
        yield "field that cannot be read"
        return
    alone = sum(name == WHITE for name, _ in boxes) == 1
    for number, (name, box) in enumerate(boxes):
        cut = square(pixels, box, margin)
        if cut is None:
            yield "box without area, or outside its field"
            continue
        label = kind if name == WHITE and alone and kind else name
        yield Cell(f"{image.stem}_box{number}", cut, label, slide=image.stem, split=split)


def _boxes(annotation: Path) -> list[Box]:
    try:
        found = ElementTree.parse(annotation).getroot().iter("object")
        return [((each.findtext("name") or "").strip(), _corners(each)) for each in found]
    except (ElementTree.ParseError, ValueError) as cause:
        raise DataError(f"{annotation} is no Pascal VOC annotation: {cause}.", fix="restore the file.") from cause


def _corners(each: ElementTree.Element) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(each.findtext(f"bndbox/{side}", "")) for side in _SIDES)
    return left, top, right, bottom


def _types(folder: Folder) -> dict[str, str]:
    """Field → the one type that the table names for it."""
    table = next((t for t in folder.tables if t.name == "labels.csv"), None)
    if table is None:
        return {}
    rows = read_rows(table, ("Image", "Category"))
    named = {f"BloodImage_{row['Image']:0>5}": row["Category"] for _, row in rows}
    return {field: kind for field, kind in named.items() if re.fullmatch(r"[A-Za-z]+", kind)}


def _splits(folder: Folder) -> dict[str, str]:
    """Field → split of ``ImageSets/Main/{train,val,test}.txt``, where these are there."""
    words = {"train.txt": "train", "val.txt": "validation", "test.txt": "test"}
    lists = [s.path for s in folder.skipped if s.path.parent.name == "Main" and s.path.name in words]
    return {
        line.split()[0]: words[file.name]
        for file in lists
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip()
    }
