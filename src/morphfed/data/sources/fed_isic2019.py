"""Fed-ISIC 2019 as FLamby lays it out (du Terrail 2022, arXiv:2210.04620): 23,247 images of six centres."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from morphfed.core.errors import ConfigError, DataError, did_you_mean
from morphfed.data.sources._rows import read_rows
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source

CENTRES: Mapping[str, int] = {
    "bcn": 12413,
    "vidir_molemax": 3954,
    "vidir_modern": 3363,
    "rosendahl": 2259,
    "msk": 819,
    "vienna_dias": 439,
}
"""Centre, in the order of its published number 0 … 5 → published images."""

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
"""Label of the published number 0 … 7."""

_SPLIT_TABLES = ("train_test_split", "train_test_split.csv", "train_test_folds.csv")
_SPLIT_COLUMNS = ("image", "target", "center", "fold")
_METADATA = "ISIC_2019_Training_Metadata.csv"
_TRUTH = "ISIC_2019_Training_GroundTruth.csv"
_PREPROCESSED = "ISIC_2019_Training_Input_preprocessed"
_YES = {"yes", "true", "1"}
_NO = {"no", "false", "0"}


@dataclass(frozen=True)
class _Row:
    """One row of the split table."""

    label: str
    centre: str
    split: str


@SOURCES.register("fed_isic2019")
class FedISIC2019(Source):
    """``ISIC_2019_Training_Input[_preprocessed]/….jpg``, the two tables of ISIC 2019 and FLamby's ``train_test_split``.

    The option ``centre`` chooses the site. Lesions come from the metadata, and splits keep them together. FLamby's own
    split into train and test is by picture and tears lesions apart; it is taken only with ``leaky_published_split``.
    """

    name = "fed_isic2019"
    title = "Fed-ISIC 2019 (FLamby), one of its six centres"
    layout = "it has train_test_split with the columns image, target, center and fold, and the pictures that it lists"
    nuclei = False
    options: ClassVar[Mapping[str, str]] = {
        "centre": f"number or name: {', '.join(f'{i} = {name}' for i, name in enumerate(CENTRES))}",
        "leaky_published_split": "yes: FLamby's train and test, with pictures of one lesion on both sides; default no",
    }

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of pictures that the split table lists."""
        tables = _tables(folder)
        try:
            listed = {row["image"] for table in tables[:1] for _, row in read_rows(table, _SPLIT_COLUMNS)}
        except DataError:  # somebody else's table
            return 0.0
        return 0.95 * sum(image.stem in listed for image in folder.images) / max(1, len(folder.images))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every picture of the chosen centre.

        Raises:
            DataError: no split table, a row of it that cannot be read, no centre chosen, or none of its pictures here.
            ConfigError: no such centre, or another answer than yes or no.
        """
        tables = _tables(folder)
        if not tables:
            raise DataError(
                f"{folder.path} has no train_test_split, which says the centre of every picture.",
                fix="put the file of that name from FLamby's fed_isic2019 beside the folder of pictures.",
            )
        keep = _answer(options.get("leaky_published_split", "no"))
        rows = _rows(tables[0])
        centre = _centre(options.get("centre"), rows, folder)
        truth, lesions = _truth(folder), _lesions(folder)
        for table in folder.tables:
            if table not in tables[:1] and table.name not in (_METADATA, _TRUTH):
                yield Skipped(table, "another table")
        seen: set[str] = set()
        for image in sorted(folder.images, key=lambda i: (i.parent.name != _PREPROCESSED, i)):
            row = rows.get(image.stem)
            if row is None:
                yield Skipped(image, f"not listed in {tables[0].name}")
            elif row.centre != centre:
                yield Skipped(image, f"of another centre ({row.centre})")
            elif image.stem in seen:
                yield Skipped(image, "a second file of the same image; the preprocessed one is taken")
            elif truth.get(image.stem, row.label) != row.label:
                yield Skipped(image, f"{truth[image.stem]} in {_TRUTH}, {row.label} in {tables[0].name}")
            else:
                seen.add(image.stem)
                yield Record(image, row.label, lesion=lesions.get(image.stem), split=row.split if keep else None)
        here = sum(row.centre == centre for row in rows.values())
        yield Note(f"{len(seen):,} of the {CENTRES[centre]:,} published images of {centre}")
        if absent := here - len(seen):
            yield Note(f"{tables[0].name} lists {absent:,} images of {centre} that are not there or not taken")
        if not lesions:
            yield Note(f"{_METADATA} is not there, so lesions are not known: two pictures of one may lie on both sides")


def _tables(folder: Folder) -> list[Path]:
    places = {p.name: p for p in [*(s.path for s in folder.skipped), *folder.tables] if p.name in _SPLIT_TABLES}
    return [places[name] for name in _SPLIT_TABLES if name in places]


def _answer(text: str) -> bool:
    if text.casefold() not in _YES | _NO:
        raise ConfigError(f"leaky_published_split = '{text}' is neither yes nor no.", fix="write yes or no.")
    return text.casefold() in _YES


def _rows(table: Path) -> dict[str, _Row]:
    """Image → what the split table says."""
    names = list(CENTRES)
    found = {}
    for line, row in read_rows(table, _SPLIT_COLUMNS):
        target, centre = row["target"].removesuffix(".0"), row["center"].removesuffix(".0")
        known = target in map(str, range(len(CLASSES))) and centre in map(str, range(len(names)))
        if not known or row["fold"] not in ("train", "test"):
            raise DataError(
                f"{table}, row {line}: target {row['target']!r}, center {row['center']!r}, fold {row['fold']!r}; "
                "0 … 7, 0 … 5 and train or test were expected.",
                fix="restore the published table.",
            )
        found[row["image"]] = _Row(CLASSES[int(target)], names[int(centre)], row["fold"])
    return found


def _centre(asked: str | None, rows: Mapping[str, _Row], folder: Folder) -> str:
    names = list(CENTRES)
    stems = {image.stem for image in folder.images}
    here = Counter(row.centre for image, row in rows.items() if image in stems)
    counted = ", ".join(f"{name} {here[name]:,}" for name in names if here[name]) or "none"
    if asked is None:
        if len(here) == 1:
            return next(iter(here))
        raise DataError(
            f"{folder.path} holds {len(here)} centres ({counted}), which are different sites.",
            fix=f"give each a site with the option centre = {names[0]} …",
        )
    name = names[int(asked)] if asked in map(str, range(len(names))) else asked.casefold()
    if name not in CENTRES:
        raise ConfigError(
            f"centre = '{asked}' is no centre of Fed-ISIC 2019.{did_you_mean(name, CENTRES)}",
            fix=f"choose one of: {', '.join(names)}, or 0 … {len(names) - 1}.",
        )
    if not here[name]:
        raise DataError(
            f"{folder.path} has no image of the centre {name}; it has: {counted}.", fix="choose one that is there."
        )
    return name


def _truth(folder: Folder) -> dict[str, str]:
    """Image → the one column that is 1 in the ground truth of ISIC 2019, where that table is there."""
    found: dict[str, str] = {}
    for table in folder.tables:
        if table.name == _TRUTH:
            for line, row in read_rows(table, ("image", *CLASSES)):
                said = [name for name in (*CLASSES, "UNK") if row.get(name, "0").removesuffix(".0") == "1"]
                if len(said) != 1:
                    raise DataError(
                        f"{table}, row {line}: {len(said)} columns are 1; exactly one was expected.",
                        fix="restore the published table.",
                    )
                found[row["image"]] = said[0]
    return found


def _lesions(folder: Folder) -> dict[str, str]:
    tables = [table for table in folder.tables if table.name == _METADATA]
    rows = [row for table in tables[:1] for _, row in read_rows(table, ("image", "lesion_id"))]
    return {row["image"]: row["lesion_id"] for row in rows if row["lesion_id"]}
