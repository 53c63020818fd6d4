"""segmentation_WBC (Zheng 2018, doi:10.1016/j.micron.2018.01.010): two labs, labels beside the folders.

``Dataset 1/001.bmp`` with its mask ``001.png``, and ``Class Labels of Dataset 1.csv`` beside the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from morphfed.core.errors import DataError
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source

_FOLDER = re.compile(r"Dataset (\d)", re.IGNORECASE)


@SOURCES.register("segmentation_wbc")
class SegmentationWBC(Source):
    """One of the two data sets: its own folder, or the parent of both with the option ``dataset``."""

    name = "segmentation_wbc"
    title = "segmentation_WBC, Dataset 1 (Tecom) or Dataset 2 (CellaVision)"
    layout = "it is a 'Dataset N' folder with 'Class Labels of Dataset N.csv' beside it"
    options: ClassVar[Mapping[str, str]] = {"dataset": "1 or 2, where the folder holds both"}
    mask_values: ClassVar[Mapping[str, int]] = {"nucleus": 255, "cytoplasm": 128}

    def detect(self, folder: Folder) -> float:
        """0.95 where a data set with its table is there."""
        return 0.95 if _datasets(folder.path) else 0.0

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every numbered BMP in the table; masks are never images."""
        images, table = _chosen(folder.path, options.get("dataset"))
        labels = _read(table)
        taken: set[int] = set()
        masks = {file.stem: file for file in folder.images if file.suffix.lower() == ".png" and file.parent == images}
        for file in folder.images:
            if file.parent != images:
                yield Skipped(file, f"not in {images.name}")
            elif file.suffix.lower() == ".png":
                yield Skipped(file, "mask of nucleus and cytoplasm")
            elif not file.stem.isdigit() or int(file.stem) not in labels:
                yield Skipped(file, f"not listed in {table.name}")
            else:
                taken.add(int(file.stem))
                yield Record(file, labels[int(file.stem)], mask=masks.get(file.stem))
        for number in sorted(set(labels) - taken):
            yield Note(f"{table.name} lists image {number}, which does not exist; its row is kept")
            yield Record(images / f"{number:03d}.bmp", labels[number])


def _datasets(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Number → folder of images and its table, in ``folder`` itself or directly below."""
    found = {}
    for images in [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]:
        match = _FOLDER.fullmatch(images.name)
        for place in (images.parent, images) if match else ():
            table = place / f"Class Labels of Dataset {match[1]}.csv" if match else None
            if match and table and table.is_file():
                found[match[1]] = (images, table)
    return found


def _chosen(folder: Path, dataset: str | None) -> tuple[Path, Path]:
    found = _datasets(folder)
    if not found:
        raise DataError(
            f"{folder} has no 'Dataset N' folder with 'Class Labels of Dataset N.csv' beside it.",
            fix="keep the folder and its table side by side, as they were published.",
        )
    if dataset is None and len(found) > 1:
        raise DataError(
            f"{folder} holds {len(found)} data sets of different laboratories, which are different sites.",
            fix=f"name one folder, such as '{folder / 'Dataset 1'}', or give the option dataset=1.",
        )
    number = dataset or next(iter(found))
    if str(number) not in found:
        raise DataError(f"{folder} has no data set {number}.", fix=f"give dataset={' or '.join(found)}.")
    return found[str(number)]


def _read(table: Path) -> dict[int, str]:
    import pandas as pd

    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    labels: dict[int, str] = {}
    for line, (number, label) in enumerate(zip(rows.iloc[:, 0], rows.iloc[:, 1], strict=True), start=2):
        if not number.strip().isdigit() or not label.strip():
            raise DataError(
                f"{table}, row {line}: '{number},{label}' is not an image number and a class.",
                fix="restore the published table.",
            )
        labels[int(number)] = label.strip()
    return labels
