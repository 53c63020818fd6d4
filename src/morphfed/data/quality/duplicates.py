"""Checks of independence: the same picture or the same patient where two were counted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphfed.data.quality.context import Context, plural
from morphfed.data.quality.findings import Finding, Level, examples

NEAR_BITS = 48
"""Two pictures whose 256-bit perceptual hashes differ in at most this many bits show the same cell.

Measured on 3,601 cells of four laboratories: every pair up to 44 bits was the same cell photographed
or cropped twice; of 6.5 million pairs of different cells the nearest differed in 60.
"""

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
    groups = [
        list(rows)
        for rows in frame[frame["digest"].notna()].groupby("digest").groups.values()
        if len(rows) > 1
    ]
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


def near_groups(bits: NDArray[np.bool_], limit: int = NEAR_BITS) -> list[list[int]]:
    """Groups of rows that chains of Hamming distances of at most ``limit`` connect.

    Args:
        bits: (n, k) hashes.
        limit: bits.

    Returns:
        Indices of each group of two or more, in rising order.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    signs = np.where(bits, 1, -1).astype(np.float32)
    count, width = signs.shape
    left, right = [], []
    for start in range(0, count, _ROWS):
        distance = (width - signs[start : start + _ROWS] @ signs[start:].T) / 2
        a, b = np.nonzero(distance <= limit)
        left.append(a[a < b] + start)
        right.append(b[a < b] + start)
    i, j = np.concatenate(left), np.concatenate(right)
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(count, count))
    _, names = connected_components(graph, directed=False)
    order = np.argsort(names, kind="stable")
    cuts = [0, *(np.flatnonzero(np.diff(names[order])) + 1), count]
    return [[int(k) for k in order[a:b]] for a, b in pairwise(cuts) if b - a > 1]


def patients_in_two_splits(context: Context) -> Iterator[Finding]:
    """Patients whose images lie in more than one split of a site."""
    for site, rows in context.by_site():
        known = rows[rows["patient"].notna() & rows["split"].notna()]
        splits = known.groupby("patient")["split"].unique()
        torn = splits[splits.map(len) > 1]
        if len(torn):
            yield Finding(
                "patient-across-splits", "error", site, len(torn),
                f"{len(torn)} of {len(splits)} patients have images in more than one split: the test is not "
                "of unseen patients",
                examples([f"{patient}: {', '.join(sorted(found))}" for patient, found in torn.items()]),
                "clear the column 'split' and let morphfed split by patient.",
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


CHECKS = (exact_duplicates, near_duplicates, patients_in_two_splits)
