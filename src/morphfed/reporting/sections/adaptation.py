"""Held-out sites with adaptation: beside the plain scores, never in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from morphfed.reporting.blocks import Cell, Page, Section, Table, Text
from morphfed.reporting.results import Model, Results, over_seeds
from morphfed.reporting.sections.outcome import number_cell
from morphfed.reporting.text import interval, metric_name, signed


def adaptation(page: Page) -> Section | None:
    """Plain and adapted scores at every held-out site; None where nothing was adapted."""
    r = page.results
    models = [*(m for m in r.arms if m.kind != "own"), *r.singles]
    sites = [s for s in r.held_out if any(_blocks(r, m, s) for m in models)]
    if not sites:
        return None
    lead = (
        "Everywhere else in this report a held-out site is met unprepared. Here the running statistics of the "
        "network's batch norms were first re-estimated on that site's own test images, without their labels (AdaBN, Li "
        "et al. 2017). That is adaptation to the very images that are scored: what a hospital could reach that runs "
        "its images through the network before it trusts an answer, and no held-out score."
    )
    rows = []
    for m in models:
        if any(_blocks(r, m, s) for s in sites):
            rows.append([Cell(m.title), *(cell for s in sites for cell in _cells(r, m, s))])
    head = [Cell("Model"), *(Cell(h) for _ in sites for h in ("not adapted", "adapted", "difference"))]
    groups = [Cell(""), *(Cell(s, span=3) for s in sites)]
    caption = f"{metric_name(r.metric).capitalize()} at held-out sites without and with adaptation of the batch norms."
    note = "Means over seeds; intervals are means of limits. The difference is paired: both on the same resamples."
    table = Table("adaptation", caption, head, rows, note, groups)
    return Section("adaptation", "Adapted to the held-out site", [Text(lead), table])


def _blocks(r: Results, model: Model, site: str) -> list[Mapping[str, Any]]:
    return [t["adapted"] for t in r.tests_of(model, site) if t.get("adapted")]


def _cells(r: Results, model: Model, site: str) -> list[Cell]:
    blocks = _blocks(r, model, site)
    after = over_seeds(b["metrics"].get(r.metric) for b in blocks)
    change = over_seeds(b["difference"] for b in blocks)
    before = over_seeds(t["metrics"].get(r.metric) for t in r.tests_of(model, site))
    return [
        number_cell(before),
        number_cell(after),
        Cell(signed(change.value), interval(change.low, change.high)),
    ]
