"""Put the page together and write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from morphfed.core.files import write_text
from morphfed.reporting.blocks import Page, Section, number
from morphfed.reporting.folds import summarise_folds
from morphfed.reporting.results import Results, load
from morphfed.reporting.summary import Summary, summarise
from morphfed.reporting.tasks import kind_of
from morphfed.reporting.wording import says

T = TypeVar("T")


def write_report(results: Mapping[str, Any] | Path, out: Path) -> Path:
    """Write ``report.html``: one file that asks nothing of the network.

    Args:
        results: the content of results.json, its path, or the run folder that holds it.
        out: the page, or a folder in which it becomes ``report.html``.

    Returns:
        The page's path.

    Raises:
        StorageError: the results cannot be read, have another schema, or the page cannot be written.
    """
    view = load(results)
    page = out / "report.html" if out.is_dir() else out
    write_text(page, render(view))
    return page


def render(results: Results) -> str:
    """The page as text; the same results give the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    sections = build(results)
    environment = Environment(
        loader=PackageLoader("morphfed.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # made by this package, escaped there
    source = environment.loader
    assert source is not None
    style = Markup(source.get_source(environment, "report.css")[0])
    return environment.get_template("report.html.j2").render(
        results=results,
        description=describe(results),
        summary=words(results),
        sections=sections,
        style=style,
    )


def words(results: Results) -> Summary:
    """What the report opens with."""
    return in_words(results)(summarise_folds(results) if results.folds else summarise(results))


def in_words(results: Results) -> Callable[[T], T]:
    """Says what a study is made of in its own word."""
    kind = kind_of(results)
    if kind.thing == "image":
        return lambda found: found
    return says(kind.thing, [*results.all_sites, *results.classes])


def build(results: Results) -> list[Section]:
    """All sections in reading order, with their tables and figures numbered."""
    from morphfed.reporting.sections import (
        adaptation,
        bags,
        certainty,
        classes,
        communication,
        cost,
        data,
        differences,
        learning,
        left_out,
        methods,
        mistakes,
        network,
        noise,
        options,
        outcome,
        structures,
        survival,
        unknown,
    )

    page = Page(results)
    of_folds = (
        left_out.left_out,
        differences.comparisons,
        left_out.recalls,
        outcome.cross_site,
        bags.attention,
        communication.communication,
        left_out.fold_list,
        data.data,
        network.network,
        noise.noise,
        cost.cost,
        methods.methods,
    )
    of_masks = (
        outcome.arms_by_sites,
        differences.comparisons,
        learning.learning,
        communication.communication,
        outcome.cross_site,
        structures.structures,
        structures.overlays,
        options.options,
        data.data,
        network.network,
        noise.noise,
        cost.cost,
        methods.methods,
    )
    of_classes = (
        outcome.arms_by_sites,
        differences.comparisons,
        learning.learning,
        communication.communication,
        outcome.cross_site,
        classes.classes,
        certainty.certainty,
        unknown.unknown,
        classes.masked,
        adaptation.adaptation,
        options.options,
        data.data,
        network.network,
        mistakes.mistakes,
        noise.noise,
        cost.cost,
        methods.methods,
    )
    of_bags = (
        outcome.arms_by_sites,
        differences.comparisons,
        learning.learning,
        communication.communication,
        outcome.cross_site,
        classes.classes,
        certainty.certainty,
        classes.masked,
        bags.attention,
        options.options,
        data.data,
        noise.noise,
        cost.cost,
        methods.methods,
    )
    of_survival = (
        outcome.arms_by_sites,
        differences.comparisons,
        survival.risk_groups,
        learning.learning,
        communication.communication,
        outcome.cross_site,
        bags.attention,
        data.data,
        network.network,
        noise.noise,
        cost.cost,
        methods.methods,
    )
    of_study = {"segmentation": of_masks, "mil": of_bags, "survival": of_survival}.get(results.task, of_classes)
    sections = [s for s in (make(page) for make in (of_folds if results.folds else of_study)) if s is not None]
    sections = in_words(results)(sections)
    number(sections)
    return sections


def describe(results: Results) -> str:
    """One line: what was compared, where, on what."""
    from morphfed.reporting.text import counted, listed

    arms = listed(m.title for m in results.arms)
    text = f"{arms} compared over {counted(len(results.training), 'training site')}"
    if results.folds:
        text = f"{arms} compared over {counted(len(results.folds), 'site')}, each held out once while the others train"
    elif results.held_out:
        text += f" and {counted(len(results.held_out), 'held-out site')}"
    return f"{text}: {kind_of(results).about(results)}, {counted(len(results.seeds), 'seed')}."
