"""Survival: how patients fared whom a model had put into the lower or the higher half by risk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from morphfed.reporting.blocks import Cell, Figure, Page, Section, Table, Text
from morphfed.reporting.figures import survival_curves
from morphfed.reporting.results import Model, Results
from morphfed.reporting.svg import Look, swatch
from morphfed.reporting.text import count, finite, listed, p_value

_LOOKS = (Look("#2c5aa0", "o"), Look("#b0303f", "s", (5, 2)))


def risk_groups(page: Page) -> Section | None:
    """Kaplan–Meier curves of the first federated arm at each site; counts and log-rank tests of every arm."""
    r = page.results
    rows = [row for m in r.arms for site in r.all_sites if (row := _row(r, m, site))]
    if not rows:
        return None
    section = Section("risk-groups", "Risk groups")
    section.blocks.append(
        Text(
            "Patients of a test part in two halves by predicted risk, cut at their median without looking at what "
            f"became of them; models of seed {r.seeds[0]}. The c-index says whether risks are ranked well; the curves "
            "say how far apart the halves fare.",
            quiet=True,
        )
    )
    model = next((m for m in [*r.of_kind("federated"), *r.arms] if any(_groups(r, m, s) for s in r.all_sites)), None)
    if model is not None:
        section.blocks.append(_figure(r, model))
    head = [Cell("Arm"), Cell("Tested at", words=True), *(Cell(h) for h in ("Lower risk", "Higher risk", "Log-rank p"))]
    note = (
        "Events of patients. The log-rank test takes the halves as given: it is of one site and seed, is not corrected "
        "for their number, and does not compare arms."
    )
    section.blocks.append(Table("risk-groups", "The halves by predicted risk at every site.", head, rows, note))
    return section


def _groups(r: Results, model: Model, site: str) -> Mapping[str, Any] | None:
    """Of the first seed; None where risks were all alike."""
    tests = r.tests_of(model, site)
    found: Mapping[str, Any] | None = tests[0].get("risk_groups") if tests else None
    return found


def _row(r: Results, model: Model, site: str) -> list[Cell] | None:
    found = _groups(r, model, site)
    if found is None:
        return None
    halves = [Cell(f"{count(finite(g['events']))} of {count(finite(g['n']))}") for g in found["groups"]]
    p = finite(found.get("logrank_p"))
    return [Cell(model.title), Cell(site, words=True), *halves, Cell(p_value(p))]


def _figure(r: Results, model: Model) -> Figure:
    panels: list[str] = []
    for site in r.all_sites:
        found = _groups(r, model, site)
        if found is None:
            continue
        groups: Sequence[Mapping[str, Any]] = found["groups"]
        said = listed(f"{g['name']}: {g['events']} events of {g['n']}" for g in groups)
        panels.append(
            survival_curves(
                [(look, g["curve"]) for look, g in zip(_LOOKS, groups, strict=True)],
                key=f"survival-{len(panels) + 1}",
                alt=f"Survival at {site} by predicted risk; {said}.",
                title=site,
            )
        )
    legend = [(swatch(look), name) for look, name in zip(_LOOKS, ("lower risk", "higher risk"), strict=True)]
    caption = f"Kaplan–Meier curves of {model.title} at each site."
    return Figure("survival", caption, panels, legend)
