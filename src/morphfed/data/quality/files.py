"""Checks of files: there, whole, unchanged, of one size and one mode."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from morphfed.data.quality.context import Context, tally
from morphfed.data.quality.findings import Finding, examples

_MAIN_SIZE = 0.6  # share of a site's images above which one size is "the" size and the rest another acquisition
_FEW_SIZES = 4  # other sizes a second camera may bring; more are crops around cells
_ODD_FACTOR = 2.0


def missing_files(context: Context) -> Iterator[Finding]:
    """Rows whose file is not there."""
    for site, rows in context.by_site():
        gone = [row for row in rows.index if not context.measured[row].exists]
        if gone:
            yield Finding(
                "missing-file", "error", site, len(gone),
                f"{len(gone)} of {len(rows)} files do not exist",
                examples(list(rows.loc[gone, "path"])),
                "mount or restore the folder; if the files moved, draft again with morphfed data init.",
            )  # fmt: skip


def unreadable_files(context: Context) -> Iterator[Finding]:
    """Files that are empty, truncated, damaged, or no image: every file is decoded to its last pixel."""
    for site, rows in context.by_site():
        bad = [row for row in rows.index if context.measured[row].exists and context.measured[row].problem]
        if bad:
            yield Finding(
                "unreadable", "error", site, len(bad),
                f"{len(bad)} of {len(rows)} files cannot be read as images",
                examples([f"{rows['path'][row]}: {context.measured[row].problem!s}" for row in bad]),
                "restore these files from their source, or remove their rows from the manifest.",
            )  # fmt: skip


def changed_files(context: Context) -> Iterator[Finding]:
    """Files whose bytes are no longer those that the manifest was drafted from."""
    for site, rows in context.by_site():
        known = rows[rows["sha256"].notna() & rows["digest"].notna()]
        changed = known[known["sha256"] != known["digest"]]
        if len(changed):
            yield Finding(
                "changed-file", "warning", site, len(changed),
                f"{len(changed)} files are not those that the manifest describes (another SHA-256)",
                examples(list(changed["path"])),
                "draft the manifest again with morphfed data init, or restore the files.",
            )  # fmt: skip


def conversions(context: Context) -> Iterator[Finding]:
    """Images that are not plain 8-bit RGB, and what decoding does to them."""
    for site, rows, measured in context.readable():
        done = pd.Series([m.facts.converted if m.facts else None for m in measured], index=rows.index, dtype=object)
        kinds = done.dropna()
        if len(kinds):
            mixed = len(kinds) < len(rows) or kinds.nunique() > 1
            yield Finding(
                "mixed-modes" if mixed else "converted", "warning" if mixed else "info", site, len(kinds),
                f"{len(kinds)} of {len(rows)} images are converted when read ({tally(kinds)})",
                examples(list(rows.loc[kinds.index, "path"])),
                "nothing if this is meant; otherwise export all images of a site as 8-bit RGB.",
            )  # fmt: skip


def mixed_sizes(context: Context) -> Iterator[Finding]:
    """Sizes that vary inside a site: crops do, a camera does not."""
    for site, rows, measured in context.readable():
        sizes = pd.Series([f"{m.facts.width}×{m.facts.height}" for m in measured if m.facts], index=rows.index)
        if sizes.nunique() < 2:
            continue
        main = sizes.value_counts().index[0]
        others = sizes[sizes != main]
        if 1 - len(others) / len(sizes) >= _MAIN_SIZE and others.nunique() <= _FEW_SIZES:
            yield Finding(
                "mixed-sizes", "warning", site, len(others),
                f"{len(others)} of {len(sizes)} images are not {main} like the rest ({tally(others)}); "
                "they may come from another acquisition",
                examples(list(rows.loc[others.index, "path"])),
                "look at them; if they come from another camera or stain, give them a site of their own.",
            )  # fmt: skip
        else:
            sides = np.array([[m.facts.width, m.facts.height] for m in measured if m.facts])
            low, high = sides.min(axis=0), sides.max(axis=0)
            yield Finding(
                "varying-sizes", "info", site, len(sizes),
                f"image sizes vary from {low[0]}×{low[1]} to {high[0]}×{high[1]}, as crops around cells do",
                examples(list(rows["path"])),
                "give µm per pixel in the manifest, or let the scale be estimated from the cells.",
            )  # fmt: skip


def odd_sizes(context: Context) -> Iterator[Finding]:
    """Images far smaller, larger or longer than the site's others."""
    for site, rows, measured in context.readable():
        sides = np.array([[m.facts.width, m.facts.height] for m in measured if m.facts], float)
        ratio = np.sqrt(sides.prod(axis=1)) / np.median(np.sqrt(sides.prod(axis=1)))
        shape = sides.max(axis=1) / sides.min(axis=1)
        odd = (ratio < 1 / _ODD_FACTOR) | (ratio > _ODD_FACTOR) | (shape > _ODD_FACTOR)
        if odd.any():
            found = [f"{path} ({int(w)}×{int(h)})" for path, (w, h) in zip(rows["path"][odd], sides[odd], strict=True)]
            yield Finding(
                "odd-size", "warning", site, int(odd.sum()),
                f"{odd.sum()} images are below half or above twice the site's usual size, or longer than 2:1",
                examples(found),
                "remove thumbnails and whole fields: a row is one cell.",
            )  # fmt: skip


CHECKS = (missing_files, unreadable_files, changed_files, conversions, mixed_sizes, odd_sizes)
