"""A split that somebody published, taken from their table image by image, for results that are to be compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from morphfed.core.errors import DataError
from morphfed.data.manifest import SPLITS, Manifest
from morphfed.data.sources._rows import read_rows
from morphfed.data.sources.base import split_of

IMAGE_COLUMNS = ("image", "image_id", "isic_id", "img", "path", "file", "filename")
PART_COLUMNS = ("part", "split", "fold", "set", "subset")

_FIX = "a published split is a table with the columns image and part, and site where two sites have images of one name."


def take_published(manifest: Manifest, table: Path) -> tuple[Manifest, list[str]]:
    """Give the images that ``table`` lists the part that it says; leave the others of the same sites out.

    An image is found by its file's name, with or without suffix. A site of which no image is listed keeps its rows as
    they are, to be split as usual.

    Args:
        manifest: any number of sites.
        table: with the columns image and part, and site if names alone do not tell images apart.

    Returns:
        The manifest, and sentences that start with the name of a site.

    Raises:
        DataError: the table cannot be used, names an image in two parts, or a name that two images have, or no image of
            the manifest; names the row.
    """
    parts = _read(table)
    frame = manifest.frame
    names = [(str(site), Path(path)) for site, path in zip(frame["site"], frame["path"], strict=True)]
    found = [_part_of(parts, site, path) for site, path in names]
    keys = [key for key, _ in found]
    twice = Counter(key for key in keys if key is not None)
    for (site, path), key in zip(names, keys, strict=True):
        if key is not None and twice[key] > 1:
            raise DataError(
                f"{table} names '{key[1]}', which {twice[key]} images are called: {path} at {site}.", fix=_FIX
            )
    if not twice:
        raise DataError(f"{table} lists none of the images of {', '.join(manifest.sites)}.", fix=_FIX)
    listed_sites = {site for (site, _), key in zip(names, keys, strict=True) if key is not None}
    taken = [key is not None or site not in listed_sites for (site, _), key in zip(names, keys, strict=True)]
    given = [part or own for (_, part), own in zip(found, frame["split"], strict=True)]
    notes = _notes(manifest.sites, [site for site, _ in names], [part for _, part in found], table)
    if absent := len(parts) - len(twice):
        notes.append(f"{table.name} lists {absent:,} images that are not there")
    return Manifest(frame.assign(split=given)[taken], manifest.root), notes


def _notes(sites: Sequence[str], of: Sequence[str], parts: Sequence[str | None], table: Path) -> list[str]:
    counts: dict[str, Counter[str | None]] = defaultdict(Counter)
    for site, part in zip(of, parts, strict=True):
        counts[site][part] += 1
    notes = []
    for site in sites:
        here = counts[site]
        if set(here) == {None}:
            notes.append(f"{site}: {table.name} lists none of its images; it is split as usual")
            continue
        said = ", ".join(f"{part} {here[part]:,}" for part in SPLITS)
        notes.append(f"{site}: published split of {table.name}, not checked for independence: {said}")
        if here[None]:
            notes.append(f"{site}: {here[None]:,} images are not in {table.name} and are left out")
    return notes


Key = tuple[str, str]
"""Site, empty where the table names none, and the image's name as the table writes it."""


def _part_of(parts: Mapping[Key, str], site: str, path: Path) -> tuple[Key | None, str | None]:
    keys = ((place, name) for place in (site, "") for name in (path.as_posix(), path.name, path.stem))
    key = next((key for key in keys if key in parts), None)
    return key, None if key is None else parts[key]


def _read(table: Path) -> dict[Key, str]:
    if not table.is_file():
        raise DataError(f"{table} does not exist; data.split.leaky_published names it.", fix="correct the path.")
    rows = read_rows(table, ())
    columns = {name.casefold(): name for name in (rows[0][1] if rows else {})}
    image = next((columns[name] for name in IMAGE_COLUMNS if name in columns), None)
    part = next((columns[name] for name in PART_COLUMNS if name in columns), None)
    if image is None or part is None:
        has = ", ".join(map(repr, columns.values())) or "no rows"
        raise DataError(f"{table} has no column '{'part' if image else 'image'}': it has {has}.", fix=_FIX)
    found: dict[Key, str] = {}
    for line, row in rows:
        split = split_of(row[part])
        if not row[image] or split is None:
            raise DataError(
                f"{table}, row {line}: image '{row[image]}' in part '{row[part]}'; an image and one of "
                f"{', '.join(SPLITS)} were expected.",
                fix="correct the row.",
            )
        key = (row.get(columns.get("site", ""), ""), row[image].replace("\\", "/"))
        if found.setdefault(key, split) != split:
            raise DataError(
                f"{table}, row {line}: '{row[image]}' is in {split} and in {found[key]}.",
                fix="keep one of the two rows.",
            )
    return found
