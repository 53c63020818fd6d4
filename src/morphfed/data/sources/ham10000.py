"""HAM10000 (Tschandl 2018, doi:10.1038/sdata.2018.161): 10,015 dermoscopic JPEG of four acquisition sites."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from morphfed.core.errors import ConfigError, DataError, did_you_mean
from morphfed.data.sources._isic import IMAGE_ID, masks_beside, parted
from morphfed.data.sources._rows import read_rows
from morphfed.data.sources.base import SOURCES, Folder, Note, Record, Skipped, Source

SITES: Mapping[str, int] = {"rosendahl": 2259, "vidir_modern": 3363, "vidir_molemax": 3954, "vienna_dias": 439}
"""Acquisition site, as the column ``dataset`` writes it → published images."""

DIAGNOSES = frozenset({"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"})

_TABLE = re.compile(r"HAM10000_metadata(\.csv|\.tab|\.tsv|\.txt)?", re.IGNORECASE)
_COLUMNS = ("lesion_id", "image_id", "dx")
_ALL = "all"


@dataclass(frozen=True)
class _Entry:
    """One picture before its site is chosen."""

    path: Path
    label: str
    site: str | None
    lesion: str | None = None


@SOURCES.register("ham10000")
class HAM10000(Source):
    """``HAM10000_images_part_1/ISIC_0027419.jpg`` … and ``HAM10000_metadata``; or folders ``SITE/DIAGNOSIS/``.

    The set was taken at four places with different devices, which are four sites: the option ``dataset`` chooses one.
    A lesion was photographed up to six times; its id groups the pictures. Patients are not known. The copy that leaves
    out the column ``dataset`` cannot tell sites. Masks are found in the same folder or in one of masks beside it.
    """

    name = "ham10000"
    title = "HAM10000, one of its four acquisition sites"
    layout = "its pictures are listed in HAM10000_metadata, or lie in folders of an acquisition site and a diagnosis"
    nuclei = False
    mask_values: ClassVar[Mapping[str, int]] = {"lesion": 255}
    options: ClassVar[Mapping[str, str]] = {
        "dataset": f"acquisition site: {', '.join(SITES)}; or {_ALL}, to take the four as one site"
    }

    def detect(self, folder: Folder) -> float:
        """0.95 × the share of pictures that the table lists, or that lie in folders of a site and a diagnosis."""
        pictures, _ = parted(folder.images)
        try:
            listed = {row["image_id"] for table in _tables(folder) for _, row in read_rows(table, _COLUMNS)}
        except DataError:  # somebody else's table
            listed = set()
        fitting = sum(image.stem in listed or _in_folders(folder, image) is not None for image in pictures)
        return 0.95 * fitting / max(1, len(pictures))

    def records(self, folder: Folder, options: Mapping[str, str]) -> Iterator[Record | Skipped | Note]:
        """One record for every picture of the chosen site; what is of another is counted.

        Raises:
            DataError: several sites and none chosen, a site without pictures, or a table without the sites.
            ConfigError: no such site.
        """
        pictures, masks = parted(folder.images)
        masks = masks_beside(folder.path) | masks
        tables = _tables(folder)
        yield from (Skipped(table, "another table") for table in folder.tables if table not in tables)
        entries: list[_Entry] = []
        absent = 0
        for item in _listed(tables[0], folder, pictures) if tables else _placed(folder, pictures):
            if isinstance(item, _Entry):
                entries.append(item)
            elif isinstance(item, Skipped):
                yield item
            else:
                absent += 1
        site = _chosen(entries, options.get("dataset"), folder, bool(tables))
        taken = [entry for entry in entries if site is None or entry.site == site]
        used: set[str] = set()
        for entry in entries:
            if site is not None and entry.site != site:
                yield Skipped(entry.path, f"of another acquisition site ({entry.site or 'not said'})")
                continue
            used.add(entry.path.stem)
            yield Record(entry.path, entry.label, lesion=entry.lesion, mask=masks.get(entry.path.stem))
        inside = (m for i, m in sorted(masks.items()) if m.is_relative_to(folder.path) and i not in used)
        yield from (Skipped(mask, "mask of no picture that is taken") for mask in inside)
        yield from map(Note, _said(site, taken, absent, bool(tables)))


def _said(site: str | None, taken: list[_Entry], absent: int, listed: bool) -> Iterator[str]:
    if site is not None:
        yield f"{len(taken):,} of the {SITES[site]:,} published images of {site}"
    elif listed:
        yield f"{len(taken):,} of the {sum(SITES.values()):,} published images; its acquisition sites are mixed"
    if absent:
        yield f"HAM10000_metadata lists {absent:,} images that are not there"
    if not any(entry.lesion for entry in taken):
        yield "HAM10000_metadata is not there, so lesions are not known: two pictures of one may lie on both sides"


def _tables(folder: Folder) -> list[Path]:
    """The metadata; the published file has no suffix or ``.tab``, so it is among what is no table."""
    places = [*folder.tables, *(skipped.path for skipped in folder.skipped)]
    return sorted(place for place in places if _TABLE.fullmatch(place.name))


def _in_folders(folder: Folder, image: Path) -> tuple[str, str] | None:
    """Site and diagnosis from the names of folders; None unless both are named and the file is an ISIC picture."""
    parts = (folder.path.absolute().name, *folder.parts(image))
    site = next((part for part in reversed(parts) if part in SITES), None)
    if site is None or parts[-1] not in DIAGNOSES or not IMAGE_ID.fullmatch(image.stem):
        return None
    return site, parts[-1]


def _placed(folder: Folder, pictures: list[Path]) -> Iterator[_Entry | Skipped]:
    for image in pictures:
        place = _in_folders(folder, image)
        if place is None:
            yield Skipped(image, "not in folders of an acquisition site and a diagnosis")
        else:
            yield _Entry(image, place[1], place[0])


def _listed(table: Path, folder: Folder, pictures: list[Path]) -> Iterator[_Entry | Skipped | None]:
    """Pictures that the table lists; None for a row without one."""
    there: dict[str, list[Path]] = defaultdict(list)
    for image in pictures:
        there[image.stem].append(image)
    rows = [row for _, row in read_rows(table, _COLUMNS)]
    said: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        said[row["image_id"]].add(row["dx"])
    for row in {row["image_id"]: row for row in rows}.values():
        files = there.pop(row["image_id"], [])
        if not files:
            yield None
            continue
        yield from (Skipped(copy, "a second file of the same image") for copy in files[1:])
        if len(said[row["image_id"]]) > 1:
            yield Skipped(files[0], f"different diagnoses in {table.name}")
        elif not row["dx"]:
            yield Skipped(files[0], f"no diagnosis in {table.name}")
        else:
            place = _in_folders(folder, files[0])
            site = row.get("dataset") or (place[0] if place else None)
            yield _Entry(files[0], row["dx"], site, row["lesion_id"] or None)
    yield from (Skipped(image, f"not listed in {table.name}") for images in there.values() for image in images)


def _chosen(entries: list[_Entry], asked: str | None, folder: Folder, listed: bool) -> str | None:
    """The site to take; None: all of them."""
    found = Counter(entry.site for entry in entries)
    counted = ", ".join(f"{site} {n:,}" for site, n in sorted(found.items(), key=lambda item: str(item[0])) if site)
    if asked == _ALL:
        return None
    if asked is None:
        named = [site for site in found if site is not None]
        if len(named) > 1:
            raise DataError(
                f"{folder.path} holds {len(named)} acquisition sites ({counted}), which are different sites.",
                fix=f"give each a site with the option dataset = {named[0]} …; {_ALL} takes them as one.",
            )
        return named[0] if named else None
    if asked not in SITES:
        raise ConfigError(
            f"dataset = '{asked}' is no acquisition site of HAM10000.{did_you_mean(asked, SITES)}",
            fix=f"choose one of: {', '.join(SITES)}, {_ALL}.",
        )
    if listed and set(found) == {None}:
        raise DataError(
            f"{folder.path}: HAM10000_metadata does not say the acquisition sites: it has no column 'dataset'.",
            fix="fetch HAM10000_metadata from where the set is published (doi:10.7910/DVN/DBW86T).",
        )
    if not found[asked]:
        raise DataError(
            f"{folder.path} has no image of the acquisition site {asked}; it has: {counted or 'none'}.",
            fix="choose one that is there.",
        )
    return asked
