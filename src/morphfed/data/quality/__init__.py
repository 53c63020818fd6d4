"""The data check that runs before any training: every file read, every finding with a count and its fix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from morphfed.core.progress import Reporter, silent
from morphfed.data.manifest import Manifest
from morphfed.data.ontology import Ontology, load_ontology
from morphfed.data.quality.colour import colour_figure
from morphfed.data.quality.findings import CheckReport, Finding, SiteColour
from morphfed.data.quality.text import render_text

__all__ = ["CheckReport", "Finding", "SiteColour", "check", "colour_figure", "render_text"]


def check(
    manifest: Manifest,
    *,
    classes: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    min_per_class: int = 10,
    labelled: bool = True,
    ontology: Ontology | None = None,
    jobs: int | None = None,
    report: Reporter = silent,
) -> CheckReport:
    """Check a manifest and every file in it.

    Args:
        manifest: what to check.
        classes: the study's classes; without them every label is a class of its own.
        sites: those the study expects, so that one without a row is noticed; default: the manifest's.
        min_per_class: images of a class below which a site's class is reported.
        labelled: whether the images' labels matter; False where masks are the truth.
        ontology: cell types; default: morphfed's own.
        jobs: threads that read; default: one a core.
        report: progress, task ``check``.

    Raises:
        ConfigError: a class is unknown, or one includes another.
    """
    from morphfed.data.quality import duplicates, files, labels, looks
    from morphfed.data.quality.colour import site_colours
    from morphfed.data.quality.context import Context
    from morphfed.data.quality.measure import measure_all

    ontology = ontology or load_ontology()
    chosen = None if classes is None else ontology.resolve_classes(classes)
    measured = measure_all(manifest.files(), report, jobs=jobs)
    frame = manifest.frame.copy()
    frame["readable"] = [m.problem is None for m in measured]
    frame["digest"] = [m.sha256 for m in measured]
    frame["class"] = [
        label if label is None or chosen is None else ontology.to_class(label, chosen) for label in frame["label"]
    ]
    expected = sorted(set(manifest.sites) | set(sites or ()))
    context = Context(frame, measured, chosen, expected, min_per_class, ontology)
    of_labels = labels.CHECKS if labelled else ()
    everything = (*files.CHECKS, *of_labels, *duplicates.CHECKS, *looks.CHECKS)
    return CheckReport(
        findings=list(chain.from_iterable(one(context) for one in everything)),
        images={site: len(rows) for site, rows in context.by_site()},
        colour=site_colours(context),
    )
