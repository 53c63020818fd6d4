"""Which images of a study of masks take part: those with a mask that can be used."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.errors import DataError
from morphfed.core.progress import Reporter, silent, tracked
from morphfed.data.manifest import MASK, Manifest
from morphfed.data.masks import MaskFacts, Values, known_values, look
from morphfed.data.sources import SOURCES
from morphfed.experiment.assemble import LeftOut, column, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from morphfed.experiment.study import SiteConfig, Study

NO_MASK = "it has no mask"
_NAMED = 3


def values_of(structures: Sequence[str], site: SiteConfig, source: str | None) -> dict[int, int]:
    """What the values in a site's masks stand for: as the study says, as its source says, or by number.

    Raises:
        DataError: a structure has no value, or shares it with another.
    """
    own = SOURCES[source].mask_values if source is not None and source in SOURCES.names() else {}
    return known_values(structures, site.mask_values or own)


def select_masks(
    manifest: Manifest, study: Study, *, look: bool, report: Reporter = silent
) -> tuple[Manifest, LeftOut, list[str], list[str]]:
    """Look at every mask, and assign the parts to the images that have one which can be used.

    Args:
        manifest: all sites; masks are named in its column ``mask``.
        study: structures, held-out sites, shares.
        look: read the training sites' images for near-duplicates.
        report: progress.

    Returns:
        The manifest with ``split``, ``class`` (what the split is stratified by; null without a usable mask), ``parent``
        (always null), ``mask_sha256`` and, for each structure, ``px/NAME``, the pixels of its file that show it; what
        was left out by site; sentences of the split; sentences that name files.

    Raises:
        DataError: a site has no usable mask; says why.
    """
    import pandas as pd

    frame = manifest.frame.copy()
    if MASK not in frame:
        frame[MASK] = None
    facts = _facts(Manifest(frame, manifest.root), study, report)
    names = [None if path is None else PurePosixPath(path).name for path in column(frame, MASK)]
    left_out: LeftOut = {site: Counter() for site in study.sites}
    odd: dict[tuple[str, str], list[str]] = defaultdict(list)
    strata: list[str | None] = []
    for site, own, node, name, fact in zip(
        frame["site"], frame["source_label"], column(frame, "label"), names, facts, strict=True
    ):
        problem = NO_MASK if fact is None else fact.problem
        strata.append(None if problem else node or str(own))
        if problem:
            left_out[site][str(own), problem] += 1
            if fact is not None:
                odd[site, problem].append(f"{name}: {fact.detail}")
        elif fact is not None and fact.stray:
            odd[site, "mask with a few pixels of unknown values, taken as the nearest known"].append(
                f"{name}: {fact.detail}"
            )
    frame["class"] = pd.Series(strata, dtype=object)
    frame["parent"] = None
    frame["mask_sha256"] = pd.Series([None if f is None else f.sha256 for f in facts], dtype=object)
    for k, name in enumerate(study.structures, start=1):
        frame[f"px/{name}"] = [f.pixels[k] if f is not None and f.pixels else 0 for f in facts]
    _refuse_empty(frame, study, left_out, odd)
    divided, notes = split(Manifest(frame, manifest.root), study, left_out, look=look, report=report)
    said = [_sentence(site, problem, files) for (site, problem), files in odd.items()]
    return divided, left_out, notes, [*said, *_absent(frame, study)]


def _facts(manifest: Manifest, study: Study, report: Reporter) -> list[MaskFacts | None]:
    frame = manifest.frame
    known: dict[tuple[str, str], Values] = {}
    for site, source in dict.fromkeys(zip(frame["site"], frame["source"], strict=True)):
        try:
            known[site, source] = values_of(study.structures, study.sites[site], source)
        except DataError as cause:
            raise DataError(f"Site '{site}' (source {source}): {cause.message}", fix=cause.fix) from cause

    def one(row: tuple[str | None, str, str, str, float, float]) -> MaskFacts | None:
        mask, path, site, source, width, height = row
        if mask is None:
            return None
        if width != width or height != height:  # the image has no size: it is no picture
            return MaskFacts(None, problem="the image cannot be read", detail=path)
        return look(manifest.file(mask), (int(width), int(height)), known[site, source])

    sizes = [frame[name].to_numpy(dtype=float, na_value=np.nan) for name in ("width", "height")]
    rows = list(zip(column(frame, MASK), frame["path"], frame["site"], frame["source"], *sizes, strict=True))
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        return list(tracked(pool.map(one, rows), report, "masks", "looking at masks", total=len(rows)))


def _sentence(site: str, problem: str, files: Sequence[str]) -> str:
    more = f"; and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f"{site}: {len(files)} × {problem} ({'; '.join(files[:_NAMED])}{more})"


def _refuse_empty(frame: pd.DataFrame, study: Study, left_out: LeftOut, odd: dict[tuple[str, str], list[str]]) -> None:
    counts = Counter(frame["site"][frame["class"].notna()])
    for site in study.sites:
        if counts[site]:
            continue
        reasons: Counter[str] = Counter()
        for (_, reason), n in left_out[site].items():
            reasons[reason] += n
        listed = "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common())
        examples = [files[0] for (where, _), files in odd.items() if where == site]
        shown = f" For example {examples[0]}." if examples else ""
        raise DataError(
            f"Site '{site}': no image has a mask that can be used ({listed}).{shown}",
            fix=f"check sites.{site}.path, .source and .mask_values; docs/how-to/segment-cells.md says how masks are "
            "found.",
        )


def _absent(frame: pd.DataFrame, study: Study) -> list[str]:
    """Structures that no usable mask of a site shows."""
    usable = frame[frame["class"].notna()]
    said = []
    for site in study.sites:
        here = usable[usable["site"] == site]
        absent = [name for name in study.structures if not (here[f"px/{name}"] > 0).any()]
        if absent:
            said.append(f"{site}: none of its {len(here)} masks shows {' or '.join(absent)}")
    return said
