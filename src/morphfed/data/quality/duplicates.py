"""Checks of independence: the same picture or the same patient where two were counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphfed.data.quality.context import Context, plural
from morphfed.data.quality.findings import Finding, Level, examples

NEAR_BITS = 48
"""Two pictures whose 256-bit perceptual hashes differ in more bits than this show different cells.

On 3,601 cells of four laboratories every pair up to 42 bits was the same cell photographed or cropped twice;
of 6.5 million other pairs the nearest differed in 60.
"""

SURE_BITS = 20
"""Two pictures that differ in at most this many bits show the same cell, whatever lies around them."""

_CROWD = 10
_ALONE = 0.45
# Lone round cells on a plain ground all resemble each other: 48 bits apart is then nothing special. So a pair
# must also be nearer than 0.45 × the distance to the tenth nearest picture. Among the real pairs that ratio
# was at most 0.43; among 170 false ones (synthetic lymphocytes without red cells around) at least 0.50.

_ROWS = 512  # rows compared at once: bounds the memory at 512 × n distances

_WAYS: tuple[tuple[str, str, Level, Level], ...] = (
    # where the copies lie, ending of the code, level of exact copies, level of near ones
    ("at two sites", "-across-sites", "error", "warning"),
    ("in two splits", "-across-splits", "error", "warning"),
    ("under two labels", "-two-labels", "error", "warning"),
    ("inside the site", "", "warning", "warning"),
)


def exact_duplicates(context: Context) -> Iterator[Finding]:
    """Files of the same bytes."""
    frame = context.frame
    groups = [list(rows) for rows in frame[frame["digest"].notna()].groupby("digest").groups.values() if len(rows) > 1]
    yield from _findings(context, "duplicate", "the same file", groups)


def near_duplicates(context: Context) -> Iterator[Finding]:
    """Pictures of different bytes that show the same cell: saved, cropped or photographed again."""
    rows = [row for row, m in enumerate(context.measured) if m.phash is not None]
    first_of: dict[str, int] = {}
    for row in rows:  # exact copies are reported above; one of them stands for all here
        first_of.setdefault(str(context.measured[row].sha256), row)
    unique = sorted(first_of.values())
    if len(unique) < 2:
        return
    bits = np.array([context.measured[row].phash for row in unique])
    groups = [[unique[i] for i in group] for group in near_groups(bits)]
    yield from _findings(context, "near-duplicate", "nearly the same picture", groups)


def twins(hashes: Sequence[NDArray[np.bool_] | None]) -> list[str | None]:
    """For each picture the name of the group of near-duplicates that it is in, or None where it has none.

    Args:
        hashes: perceptual hash of each picture (``measure.hash_all``); None: not readable, so without a twin.
    """
    readable = [i for i, bits in enumerate(hashes) if bits is not None]
    names: list[str | None] = [None] * len(hashes)
    if len(readable) < 2:
        return names
    for number, group in enumerate(near_groups(np.array([hashes[i] for i in readable]))):
        for k in group:
            names[readable[k]] = f"copies-{number}"
    return names


def near_groups(bits: NDArray[np.bool_]) -> list[list[int]]:
    """Groups of rows that chains of near pairs connect.

    Args:
        bits: (n, k) hashes.

    Returns:
        Indices of each group of two or more, in rising order.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(bits)
    signs = np.where(bits, 1, -1).astype(np.float32)
    i, j, distance = _near_pairs(signs)
    near = distance <= np.maximum(SURE_BITS, _ALONE * _crowd_distance(signs, i, j))
    i, j = i[near], j[near]
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(count, count))
    _, names = connected_components(graph, directed=False)
    order = np.argsort(names, kind="stable")
    cuts = [0, *(np.flatnonzero(np.diff(names[order])) + 1), count]
    return [[int(k) for k in order[a:b]] for a, b in pairwise(cuts) if b - a > 1]


def _near_pairs(signs: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """All pairs i < j at most ``NEAR_BITS`` apart, with their distance."""
    found = []
    for start in range(0, len(signs), _ROWS):
        distance = _hamming(signs[start : start + _ROWS], signs[start:])
        a, b = np.nonzero(distance <= NEAR_BITS)
        kept = a < b
        found.append((a[kept] + start, b[kept] + start, distance[a[kept], b[kept]]))
    i, j, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return i, j, distance


def _crowd_distance(signs: NDArray[np.float32], i: NDArray[np.intp], j: NDArray[np.intp]) -> NDArray[np.float32]:
    """For each pair, how far the tenth nearest picture is from the one of the two that has it nearer."""
    width = signs.shape[1]
    crowd = np.full(len(signs), width, np.float32)  # in a set of a few pictures nothing is a crowd
    if len(signs) > _CROWD:
        rows = np.union1d(i, j)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            crowd[part] = np.partition(_hamming(signs[part], signs), _CROWD, axis=1)[:, _CROWD]  # 0th is itself
    return np.asarray(np.minimum(crowd[i], crowd[j]), np.float32)


def _hamming(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((left.shape[1] - left @ right.T) / 2, np.float32)


def patients_in_two_splits(context: Context) -> Iterator[Finding]:
    """Patients whose images lie in more than one split of a site."""
    yield from _in_two_splits(context, "patient", context.frame["split"].notna())


def lesions_in_two_splits(context: Context) -> Iterator[Finding]:
    """Lesions whose images lie in more than one split of a site, where no patient is known."""
    if "lesion" in context.frame.columns:
        yield from _in_two_splits(context, "lesion", context.frame["split"].notna() & context.frame["patient"].isna())


def _in_two_splits(context: Context, kind: str, usable: pd.Series[bool]) -> Iterator[Finding]:
    for site, rows in context.by_site():
        splits = rows[usable.loc[rows.index] & rows[kind].notna()].groupby(kind)["split"].unique()
        torn = splits[splits.map(len) > 1]
        if len(torn):
            yield Finding(
                f"{kind}-across-splits", "error", site, len(torn),
                f"{len(torn)} of {len(splits)} {kind}s have images in more than one split: the test is not "
                f"of unseen {kind}s",
                examples([f"{owner}: {', '.join(sorted(found))}" for owner, found in torn.items()]),
                f"clear the column 'split' and let morphfed split by {kind}.",
            )  # fmt: skip


def lesions_at_two_sites(context: Context) -> Iterator[Finding]:
    """Lesions with images at more than one site, as where one clinic's device was replaced by another."""
    if "lesion" not in context.frame.columns:
        return
    known = context.frame[context.frame["lesion"].notna()]
    sites = known.groupby("lesion")["site"].unique()
    torn = sites[sites.map(len) > 1]
    if len(torn):
        yield Finding(
            "lesion-across-sites", "warning", None, len(torn),
            f"{plural(len(torn), 'lesion')} with images at two sites: neither is a test of unseen lesions for a model "
            "that trained at the other",
            examples([f"{lesion}: {', '.join(sorted(found))}" for lesion, found in torn.items()]),
            "leave these lesions out of one of the sites where one is held out.",
        )  # fmt: skip


def _findings(context: Context, code: str, what: str, groups: list[list[int]]) -> Iterator[Finding]:
    """One finding a way and site; a group is counted once, under the gravest way that applies."""
    sorted_out: dict[tuple[int, str | None], list[list[int]]] = {}
    for group in groups:
        rows = context.frame.loc[group]
        way = _way(rows)
        site = None if way == 0 else str(rows["site"].iloc[0])
        sorted_out.setdefault((way, site), []).append(group)
    for (way, site), found in sorted_out.items():
        where, ending, exact, near = _WAYS[way]
        extra = sum(len(group) - 1 for group in found)
        paths = [" = ".join(context.frame.loc[group, "path"]) for group in found]
        yield Finding(
            code + ending, exact if code == "duplicate" else near, site, extra,
            f"{plural(extra, 'image')} too many: {what} {where}, in {plural(len(found), 'group')}",
            examples(paths),
            _fix(ending),
        )  # fmt: skip


def _way(rows: pd.DataFrame) -> int:
    if rows["site"].nunique() > 1:
        return 0
    if rows["split"].nunique() > 1:  # null splits are not counted
        return 1
    return 2 if rows["source_label"].nunique() > 1 else 3


def _fix(ending: str) -> str:
    if ending == "-two-labels":
        return "look at them, keep the right row and remove the other from the manifest."
    if ending == "-across-sites":
        return "keep each picture at one site: a held-out site must not be seen in training."
    return "keep one row of each group, or give the group one patient id so that a split keeps it together."


CHECKS = (exact_duplicates, near_duplicates, patients_in_two_splits, lesions_in_two_splits, lesions_at_two_sites)
