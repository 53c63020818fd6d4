"""ISIC 2017 (Codella 2018, arXiv:1710.05006), part 3: melanoma, seborrheic keratosis, nevus; 2,000 training images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from morphfed.core.errors import ConfigError, DataError, did_you_mean
from morphfed.data.sources._isic import parted
from morphfed.data.sources._rows import read_rows
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source

PUBLISHED: Mapping[str, int] = {"training": 2000, "validation": 150, "test": 600}
"""Part of the challenge → images."""

_SPLITS = {"training": "train", "validation": "validation", "test": "test"}
_TABLE = re.compile(r"ISIC-2017_(?P<part>Training|Validation|Test)\w*GroundTruth.*", re.IGNORECASE)
_COLUMNS = ("image_id", "melanoma", "seborrheic_keratosis")
_LABELS = {("1", "0"): "melanoma", ("0", "1"): "seborrheic_keratosis", ("0", "0"): "nevus"}


@SOURCES.register("isic2017")
class ISIC2017(Source):
    """``ISIC-2017_Training_Data/ISIC_0000000.jpg`` and ``ISIC-2017_Training_Part3_GroundTruth.csv``.

    The training images are taken, as published federations do; the option ``parts`` adds the others, each with its own
    split. Superpixels are left out; masks of part 1 are found. Neither lesions nor patients are known.
    """

    name = "isic2017"
    title = "ISIC 2017, part 3: melanoma, seborrheic keratosis, nevus"
    layout = "it has the ground truth of ISIC 2017, part 3, and the pictures that it lists"
    nuclei = False
    mask_values: ClassVar[Mapping[str, int]] = {"lesion": 255}
    options: ClassVar[Mapping[str, str]] = {
        "parts": "of the challenge, separated by ';': training (the default), validation, test; of several, each keeps "
        "its own split"
    }

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of pictures, less superpixels, that the ground truth lists."""
        listed = {row["image_id"] for table in _tables(folder).values() for _, row in read_rows(table, _COLUMNS)}
        pictures = [image for image in parted(folder.images)[0] if not _superpixels(image)]
        return 0.95 * sum(image.stem in listed for image in pictures) / max(1, len(pictures))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every picture of the parts asked for.

        Raises:
            DataError: no ground truth, or a row that is of two classes; names the row.
            ConfigError: no such part.
        """
        tables = _tables(folder)
        parts = _parts(options.get("parts", "training"), tables, folder)
        yield from (Skipped(table, "another table") for table in folder.tables if table not in tables.values())
        labels = {part: _labels(table) for part, table in tables.items()}
        of = {image: part for part, named in labels.items() for image in named}
        pictures, masks = parted(folder.images)
        taken = Counter[str]()
        seen: set[str] = set()
        for image in pictures:
            part = of.get(image.stem)
            if _superpixels(image):
                yield Skipped(image, "superpixels, not a picture")
            elif part is None:
                yield Skipped(image, "not listed in the ground truth")
            elif part not in parts:
                yield Skipped(image, f"of the {part} part")
            elif image.stem in seen:
                yield Skipped(image, "a second file of the same image")
            else:
                seen.add(image.stem)
                taken[part] += 1
                split = _SPLITS[part] if len(parts) > 1 else None
                yield Record(image, labels[part][image.stem], mask=masks.get(image.stem), split=split)
        yield from (Skipped(m, "mask of no picture that is taken") for i, m in sorted(masks.items()) if i not in seen)
        for part in parts:
            yield Note(f"{taken[part]:,} of the {PUBLISHED[part]:,} published images of the {part} part")
            if absent := len(labels[part]) - taken[part]:
                yield Note(f"{tables[part].name} lists {absent:,} images that are not there")
        yield Note("ISIC 2017 names no lesions: two pictures of one may lie on both sides of a split")


def _superpixels(image: Path) -> bool:
    return image.stem.casefold().endswith("_superpixels")


def _tables(folder: Folder) -> dict[str, Path]:
    """Part → its ground truth, of the tables that have the columns."""
    found: dict[str, Path] = {}
    for table in folder.tables:
        match = _TABLE.fullmatch(table.stem)
        if match is not None:
            try:
                read_rows(table, _COLUMNS)
            except DataError:  # of another part of the challenge
                continue
            found.setdefault(match["part"].casefold(), table)
    return found


def _parts(text: str, tables: Mapping[str, Path], folder: Folder) -> list[str]:
    parts = [word.strip().casefold() for word in text.split(";") if word.strip()]
    for part in parts:
        if part not in PUBLISHED:
            raise ConfigError(
                f"parts = '{text}': '{part}' is no part of ISIC 2017.{did_you_mean(part, PUBLISHED)}",
                fix=f"choose from: {', '.join(PUBLISHED)}.",
            )
        if part not in tables:
            raise DataError(
                f"{folder.path} has no ISIC-2017_{part.capitalize()}_Part3_GroundTruth.csv with the columns "
                f"{', '.join(_COLUMNS)}.",
                fix="put the ground truth of part 3 beside the folder of pictures.",
            )
    return list(dict.fromkeys(parts))


def _labels(table: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line, row in read_rows(table, _COLUMNS):
        said = (row["melanoma"].removesuffix(".0"), row["seborrheic_keratosis"].removesuffix(".0"))
        if said not in _LABELS:
            raise DataError(
                f"{table}, row {line}: melanoma {row['melanoma']!r} and seborrheic_keratosis "
                f"{row['seborrheic_keratosis']!r}; 0 or 1 was expected, and not both 1.",
                fix="restore the published table.",
            )
        found[row["image_id"]] = _LABELS[said]
    return found
