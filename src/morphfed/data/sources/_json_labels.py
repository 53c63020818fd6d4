"""``Train.json`` and ``Test.json``: {file name: 1 … 5}, beside the folders ``Train`` and ``Test``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from morphfed.core.errors import DataError
from morphfed.data.sources.base import Folder, Note, Record, Skipped, split_of

CODES = {"1", "2", "3", "4", "5"}


@dataclass(frozen=True)
class JsonLabels:
    """One such file and the folder of images that it labels.

    Attributes:
        file: the JSON file.
        images: folder of the same name beside it.
        labels: file name → code.
    """

    file: Path
    images: Path
    labels: dict[str, str]


def json_labels(folder: Folder) -> list[JsonLabels]:
    """The label files of a folder.

    Raises:
        DataError: one of them is no such mapping; names the entry.
    """
    named = [s.path for s in folder.skipped if s.path.name.casefold() in {"train.json", "test.json"}]
    return [JsonLabels(file, file.with_suffix(""), _read(file)) for file in named if file.with_suffix("").is_dir()]


def json_records(folder: Folder, files: list[JsonLabels]) -> Iterator[Record | Skipped | Note]:
    """One record for every listed image, with the file's own split; what is missing is counted."""
    listed = {entry.images / name: (label, entry) for entry in files for name, label in entry.labels.items()}
    for image in folder.images:
        if image in listed:
            label, entry = listed.pop(image)
            yield Record(image, label, split=split_of(entry.file.stem))
        else:
            yield Skipped(image, "not listed in Train.json or Test.json")
    for entry in files:
        if absent := sum(other is entry for _, other in listed.values()):
            yield Note(f"{entry.file.name} lists {absent} images that are not there")


def _read(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as cause:
        raise DataError(f"{file} cannot be read as JSON: {cause}.", fix="restore the published file.") from cause
    if not isinstance(content, dict):
        raise DataError(f"{file} is no object of file names and codes.", fix="restore the published file.")
    for name, code in content.items():
        if str(code) not in CODES:
            raise DataError(
                f"{file}: '{name}' has the code {code!r}; 1 … 5 was expected.", fix="restore the published file."
            )
    return {name: str(code) for name, code in content.items()}
