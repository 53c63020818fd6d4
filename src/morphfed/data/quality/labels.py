"""Checks of labels: known, used by the study, and enough of each."""

from __future__ import annotations

from collections.abc import Iterator

from morphfed.data.quality.context import Context, plural, tally
from morphfed.data.quality.findings import Finding, examples


def unknown_labels(context: Context) -> Iterator[Finding]:
    """Labels that map to no node of the ontology, with the nearest known one."""
    for site, rows in context.by_site():
        unknown = rows[rows["label"].isna()]
        if unknown.empty:
            continue
        named = []
        for (label, source), group in unknown.groupby(["source_label", "source"], sort=True):
            why = context.ontology.unmapped(str(label), str(source))
            near = None if why else context.ontology.nearest(str(label), str(source))
            hint = f": {why}" if why else f": did you mean '{near}'?" if near else ""
            named.append(f"'{label}' ({len(group)} images){hint}")
        yield Finding(
            "unknown-label", "warning", site, len(unknown),
            f"{len(unknown)} of {len(rows)} images carry labels that the ontology does not know "
            f"({tally(unknown['source_label'])}); they are left out",
            examples(named),
            "write the intended cell type into the column 'label' of these rows, or accept the loss.",
        )  # fmt: skip


def labels_outside_classes(context: Context) -> Iterator[Finding]:
    """Known labels that belong to no class of the study."""
    if context.classes is None:
        return
    for site, rows in context.by_site():
        outside = rows[rows["label"].notna() & rows["class"].isna()]
        if "parent" in outside:  # of a run that trains with coarser labels
            outside = outside[outside["parent"].isna()]
        if len(outside):
            yield Finding(
                "outside-classes", "info", site, len(outside),
                f"{len(outside)} of {len(rows)} images belong to no class of the study and are left out "
                f"({tally(outside['label'])})",
                examples([f"{label}: {n}" for label, n in outside["label"].value_counts().items()]),
                "nothing if this is meant; otherwise add the class to the study.",
            )  # fmt: skip


def small_classes(context: Context) -> Iterator[Finding]:
    """Classes with too few images at a site to split, train and judge on; or with none."""
    for site, rows in context.by_site():
        counts = rows.loc[rows["readable"], "class"].value_counts()
        if counts.empty:
            continue
        few = {name: int(n) for name, n in counts.items() if n < context.min_per_class}
        if few:
            listed = [f"{name}: {n}" for name, n in sorted(few.items(), key=lambda item: item[1])]
            yield Finding(
                "small-class", "warning", site, len(few),
                f"{plural(len(few), 'class', 'classes')} with fewer than {context.min_per_class} images "
                f"({', '.join(listed)})",
                examples(listed),
                "add images, merge the class into its parent, or read its results with care.",
            )  # fmt: skip
        absent = [name for name in context.classes or () if name not in counts.index]
        if absent:
            yield Finding(
                "absent-class", "warning", site, len(absent), f"the site has no image of {', '.join(absent)}",
                examples(absent),
                "nothing if this is meant; results are also given masked to the classes present.",
            )  # fmt: skip


def one_class_sites(context: Context) -> Iterator[Finding]:
    """Sites whose usable images are all of one class."""
    for site, rows in context.by_site():
        counts = rows.loc[rows["readable"], "class"].value_counts()
        if len(counts) == 1:
            yield Finding(
                "one-class", "warning", site, int(counts.iloc[0]),
                f"all {counts.iloc[0]} usable images are of one class ({counts.index[0]}): a model trained "
                "on this site alone learns nothing, and its balanced accuracy here is that class's recall",
                examples([counts.index[0]]),
                "check the labels; keep the site in a federation, but not as a local arm.",
            )  # fmt: skip


def empty_sites(context: Context) -> Iterator[Finding]:
    """Sites without a single usable image."""
    for site, rows in context.by_site():
        usable = rows[rows["readable"] & rows["class"].notna()]
        if usable.empty:
            why = "none is readable with a usable label" if len(rows) else "the manifest has no row for it"
            yield Finding(
                "empty-site", "error", site, len(rows), f"the site has no usable image: {why}",
                examples(list(rows["path"])),
                "correct the site's labels and files, or take it out of the study.",
            )  # fmt: skip


CHECKS = (unknown_labels, labels_outside_classes, small_classes, one_class_sites, empty_sites)
