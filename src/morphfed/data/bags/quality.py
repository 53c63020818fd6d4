"""The data check of bags: what is missing, empty, damaged or odd, copies, patients on two sides, labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from morphfed.data.bags.drafting import ENCODER, INSTANCES, PROBLEM
from morphfed.data.manifest import Manifest
from morphfed.data.ontology import load_ontology
from morphfed.data.quality import labels
from morphfed.data.quality.context import Context, plural
from morphfed.data.quality.findings import CheckReport, Finding, examples

if TYPE_CHECKING:
    import pandas as pd

FEW_INSTANCES = 0.01
"""A bag with less than this share of its site's median is pointed out: a slide that is nearly all glass."""

_FIXES = {
    "a label without a bag": "embed the slide, or remove its row from the slide table.",
    "a bag without a label": "add the slide to the slide table, or accept that it is left out.",
    "no instance": "look at the slide's thumbnail: no tissue was found; lower the tissue threshold, or leave it out.",
}


def check_bags(manifest: Manifest, *, classes: Sequence[str], min_per_class: int = 10) -> CheckReport:
    """Check a study's manifest of bags.

    Args:
        manifest: with the column ``class``; what is wrong with single bags is in its column ``problem``.
        classes: the study's.
        min_per_class: bags of a class below which a site's class is reported.
    """
    frame = manifest.frame.copy()
    frame["readable"] = frame[PROBLEM].isna()
    frame["digest"] = frame["sha256"]
    context = Context(frame, [], tuple(classes), manifest.sites, min_per_class, load_ontology())
    own = (problems, copies, same_slides, short_bags, unknown_encoder, two_splits)
    of_labels = (labels.small_classes, labels.one_class_sites)
    found = chain.from_iterable(one(context) for one in (*own, *of_labels))
    sizes = {site: len(rows) for site, rows in context.by_site()}
    return CheckReport(findings=[_of_bags(f) for f in found], images=sizes)


def problems(context: Context) -> Iterator[Finding]:
    """Bags that cannot be used, by reason."""
    for site, rows in context.by_site():
        for reason, bad in rows[rows[PROBLEM].notna()].groupby(PROBLEM, sort=True):
            fix = next((fix for start, fix in _FIXES.items() if str(reason).startswith(start)), None)
            yield Finding(
                "unusable-bag", "warning", site, len(bad),
                f"{plural(len(bad), 'bag')} left out: {reason}",
                examples(_names(bad["path"])),
                fix or "restore these files, or embed their slides again.",
            )  # fmt: skip


def copies(context: Context) -> Iterator[Finding]:
    """Bags of the same features, at two sites, in two parts, under two labels, or twice at one site."""
    frame = context.frame
    for _, rows in frame[frame["digest"].notna() & frame["readable"]].groupby("digest"):
        if len(rows) < 2:
            continue
        sites, parts, said = set(rows["site"]), set(rows["split"].dropna()), set(rows["source_label"])
        where, level = (
            (f"at {' and '.join(sorted(sites))}", "error")
            if len(sites) > 1
            else ("under two labels", "error")
            if len(said) > 1
            else ("in two parts", "error")
            if len(parts) > 1
            else ("at one site", "warning")
        )
        yield Finding(
            "duplicate-bag", level, next(iter(sites)) if len(sites) == 1 else None, len(rows),  # type: ignore[arg-type]
            f"{len(rows)} bags have the same features, {where}",
            examples([f"{site}/{name}" for site, name in zip(rows["site"], _names(rows["path"]), strict=True)]),
            "keep one of them.",
        )  # fmt: skip


def same_slides(context: Context) -> Iterator[Finding]:
    """Slide ids that occur at more than one site."""
    for sites, shared in shared_slides(context.frame).items():
        yield Finding(
            "slide-at-two-sites", "warning", None, len(shared),
            f"{plural(len(shared), 'slide id')} occur at {' and '.join(sites)}",
            examples(shared),
            "if these are the same slides, keep each at one site; a slide that trains here must not test there.",
        )  # fmt: skip


def shared_slides(frame: pd.DataFrame) -> dict[tuple[str, ...], list[str]]:
    """Sites → ids of slides that all of them have, and no other site; without slides of one site only."""
    at: dict[str, set[str]] = defaultdict(set)
    for slide, site in zip(frame["slide"], frame["site"], strict=True):
        if slide is not None:
            at[str(slide)].add(str(site))
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for slide in sorted(at):
        if len(at[slide]) > 1:
            found[tuple(sorted(at[slide]))].append(slide)
    return dict(found)


def short_bags(context: Context) -> Iterator[Finding]:
    """Bags with hardly any instance."""
    for site, rows in context.by_site():
        sizes = rows.loc[rows["readable"], INSTANCES].to_numpy(dtype=np.float64)
        if not len(sizes):
            continue
        few = sizes < FEW_INSTANCES * np.median(sizes)
        if few.any():
            names = _names(rows.loc[rows["readable"], "path"][few])
            yield Finding(
                "short-bag", "warning", site, int(few.sum()),
                f"{plural(int(few.sum()), 'bag')} with less than 1 % of the median of {np.median(sizes):.0f} instances",
                examples(names),
                "look at their thumbnails: tissue may have been missed.",
            )  # fmt: skip


def unknown_encoder(context: Context) -> Iterator[Finding]:
    """Sites whose files do not say what computed them, beside others that do."""
    frame = context.frame[context.frame["readable"]]
    named = sorted({str(e) for e in frame[ENCODER].dropna()})
    silent = sorted(set(frame["site"][frame[ENCODER].isna()]))
    if named and silent:
        yield Finding(
            "unknown-encoder", "warning", None, int(frame[ENCODER].isna().sum()),
            f"bags of {', '.join(silent)} do not say what computed them; others are of {', '.join(named)}",
            examples(silent),
            "make sure that it was the same encoder with the same preprocessing.",
        )  # fmt: skip


def two_splits(context: Context) -> Iterator[Finding]:
    """Patients whose bags lie in more than one part of a site."""
    for site, rows in context.by_site():
        used = rows[rows["patient"].notna() & rows["split"].notna() & rows["readable"]]
        parts = used.groupby("patient")["split"].nunique()
        torn = [str(patient) for patient in parts[parts > 1].index]
        if torn:
            yield Finding(
                "patient-in-two-splits", "error", site, len(torn),
                f"{plural(len(torn), 'patient')} have bags in more than one part",
                examples(torn),
                "correct the split that was given: one part a patient.",
            )  # fmt: skip


def _names(paths: Iterable[str]) -> list[str]:
    return [Path(path).name for path in paths]


def _of_bags(finding: Finding) -> Finding:
    """What the checks of labels say of images, of bags."""
    from dataclasses import replace

    return replace(finding, message=finding.message.replace("images", "bags").replace("image", "bag"))
