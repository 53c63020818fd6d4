"""C-NMC 2019 (Gupta and Gupta, ISBI challenge): malignant and normal B-lymphoid cells, 118 subjects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from morphfed.core.errors import DataError
from morphfed.data.sources._rows import read_rows
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source

_UID = re.compile(r"UID_(?P<subject>H?\d+)_\d+_\d+_(?P<label>all|hem)", re.IGNORECASE)
_FOLD = re.compile(r"fold_\d", re.IGNORECASE)
_TABLE = "C-NMC_test_prelim_phase_data_labels.csv"
_CODES = {"1": "all", "0": "hem"}


@SOURCES.register("cnmc")
class CNMC(Source):
    """``fold_0/all/UID_11_1_1_all.bmp`` of the training data, and the preliminary test set with its table.

    The subject is the second part of the name (``H10``: a healthy one) and becomes the patient. The folds are no split.
    The preliminary test set's files are numbered; their names as above stand in the table's ``Patient_ID``.
    """

    name = "cnmc"
    title = "C-NMC 2019: leukaemic and normal B-lymphoid cells"
    layout = "its images are fold_N/all and fold_N/hem with names UID_…, or its table of the preliminary test is there"
    whole = True

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of images in a fold with a published name or named by the table."""
        listed = _listed(folder)
        fitting = sum(image.name in listed or _in_fold(folder, image) for image in folder.images)
        return 0.95 * fitting / max(1, len(folder.images))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every named or listed image; the table's rows without a file are counted."""
        listed, taken = _listed(folder), set()
        for table in folder.tables:
            if table.name != _TABLE:
                yield Skipped(table, "table, not an image")
        for image in folder.images:
            name = _UID.fullmatch(image.stem)
            if name is not None:
                yield Record(image, name["label"].lower(), patient=name["subject"].upper())
            elif image.name in listed:
                taken.add(image.name)
                subject, label = listed[image.name]
                yield Record(image, label, patient=subject, split="test")
            else:
                yield Skipped(image, "neither named UID_SUBJECT_IMAGE_CELL_CLASS nor listed in the table")
        if absent := len(set(listed) - taken):
            yield Note(f"{_TABLE} lists {absent} images that are not there")


def _in_fold(folder: Folder, image: Path) -> bool:
    return any(map(_FOLD.fullmatch, folder.parts(image))) and _UID.fullmatch(image.stem) is not None


def _listed(folder: Folder) -> dict[str, tuple[str, str]]:
    """New name → subject and label of the preliminary test set."""
    found: dict[str, tuple[str, str]] = {}
    for table in folder.tables:
        if table.name != _TABLE:
            continue
        for line, row in read_rows(table, ("Patient_ID", "new_names", "labels")):
            name = _UID.fullmatch(Path(row["Patient_ID"]).stem)
            label = _CODES.get(row["labels"])
            if name is None or label is None:
                raise DataError(
                    f"{table}, row {line}: '{row['Patient_ID']}' with label '{row['labels']}'; a name as "
                    "UID_11_1_1_all.bmp and 0 or 1 were expected.",
                    fix="restore the published table.",
                )
            found[row["new_names"]] = (name["subject"].upper(), label)
    return found
