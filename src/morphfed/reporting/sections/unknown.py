"""Cells of none of the study's classes: whether the models notice them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from morphfed.reporting.blocks import Block, Cell, Details, Page, Section, Table, Text
from morphfed.reporting.results import Model, Results, over_seeds
from morphfed.reporting.sections.outcome import number_cell
from morphfed.reporting.text import MISSING, count, finite, plain, score

_COVERAGES = (0.5, 0.8, 0.9, 1.0)


def unknown(page: Page) -> Section | None:
    """Thresholds, AUROC, and the risk with unknown cells among the images; None where the study did not ask for it."""
    r = page.results
    if not any(u.get("rejection") for u in r.units):
        return None
    section = Section("unknown", "Cells of none of the classes")
    section.blocks.append(Text(_lead()))
    sites = [s for s in r.all_sites if any(_blocks(r, m, s, met=True) for m in r.judged_at(s))]
    if not sites:
        section.blocks.append(Text("No site holds an image of a cell type outside the study's classes."))
    section.blocks.append(_thresholds(r))
    if sites:
        section.blocks += [_auroc(r, sites), _risk(r, sites), *_kinds(r, sites)]
    return section


def _lead() -> str:
    return (
        "A classifier names one of its classes whatever it is shown. Here it was also shown the sites' cells of other "
        "types, which took no part in training. Its confidence is the largest probability; below a threshold the "
        "answer is “none of these”. The threshold was chosen over the validation images of the model's training "
        "sites, so that at least 95 % of them are accepted, and nothing else went into it: no unknown cell, no "
        "held-out site."
    )


def _models(r: Results) -> list[Model]:
    return [*(m for m in r.arms if m.kind != "own"), *r.singles]


def _blocks(r: Results, model: Model, site: str, *, met: bool = False) -> list[Mapping[str, Any]]:
    """The block of every seed; with ``met`` only where the site holds unknown cells."""
    found = [t["unknown"] for t in r.tests_of(model, site) if t.get("unknown")]
    return [b for b in found if b["n"]] if met else found


def _mean(blocks: list[Mapping[str, Any]], key: str) -> float | None:
    known = [v for b in blocks if (v := finite(b.get(key))) is not None]
    return fmean(known) if known else None


def _thresholds(r: Results) -> Table:
    rows = []
    for m in _models(r):
        units = [u["rejection"] for u in r.units_of(m) if u.get("rejection")]
        if not units:
            continue
        cells = [Cell(m.title), Cell(score(_mean(units, "threshold"))), Cell(score(_mean(units, "accepted")))]
        for site in r.all_sites:
            blocks = _blocks(r, m, site)
            stopped = _mean(blocks, "unknown_rejected")
            sub = f"{score(stopped)} of unknown stopped" if stopped is not None else ""
            cells.append(Cell(score(_mean(blocks, "known_accepted")), sub))
        rows.append(cells)
    head = ["Model", "Threshold", "Accepted in validation", *(_name(r, s) for s in r.all_sites)]
    caption = (
        "Thresholds on the confidence; at each site the share of test images of the study's classes that is accepted, "
        "and the share of unknown cells that is stopped."
    )
    note = "Means over seeds. Where a held-out site's cells look different, fewer of its known cells are accepted."
    return Table("thresholds", caption, [Cell(h) for h in head], rows, note)


def _auroc(r: Results, sites: list[str]) -> Table:
    counts = {s: max(b["n"] for m in _models(r) for b in _blocks(r, m, s)) for s in sites}
    rows = [
        [Cell(m.title), *(number_cell(over_seeds(b["auroc"] for b in _blocks(r, m, s, met=True))) for s in sites)]
        for m in _models(r)
    ]
    head = [Cell("Model"), *(Cell(f"{_name(r, s)}, {count(counts[s])} unknown") for s in sites)]
    caption = (
        "AUROC of the confidence: the chance that a model is surer of a known cell than of an unknown one of the same "
        "site, with 95 % intervals. 0.5: it cannot tell them apart."
    )
    return Table("unknown-auroc", caption, head, rows)


def _risk(r: Results, sites: list[str]) -> Table:
    rows = [
        [Cell(m.title), Cell(s), *(Cell(score(_risk_at(_blocks(r, m, s, met=True), c))) for c in _COVERAGES)]
        for s in sites
        for m in _models(r)
        if _blocks(r, m, s, met=True)
    ]
    head = [Cell("Model"), Cell("Site"), *(Cell(f"{100 * c:.0f} % answered") for c in _COVERAGES)]
    caption = (
        "Risk and coverage with the unknown cells among the images: share of wrong answers when a model answers only "
        "what it is surest of. Any answer to an unknown cell is wrong."
    )
    return Table("unknown-risk", caption, head, rows, "Mean over seeds.")


def _risk_at(blocks: list[Mapping[str, Any]], coverage: float) -> float | None:
    """Mean over seeds of the risk at the last point that is reached."""
    found = []
    for block in blocks:
        reached = [p for p in block["risk_coverage"] if p["coverage"] <= coverage + 1e-9]
        if reached:
            found.append(float(reached[-1]["risk"]))
    return fmean(found) if found else None


def _kinds(r: Results, sites: list[str]) -> list[Block]:
    models = [m for m in _models(r) if m.kind != "single"] or _models(r)
    rows = []
    for site in sites:
        shown = [b for m in models for b in _blocks(r, m, site)]
        for kind in sorted({k for b in shown for k in b["kinds"]}):
            cells = []
            for m in models:
                shares = [finite(b["kinds"][kind]["rejected"]) for b in _blocks(r, m, site) if kind in b["kinds"]]
                known = [v for v in shares if v is not None]
                cells.append(Cell(score(fmean(known)) if known else MISSING))
            n = next(b["kinds"][kind]["n"] for b in shown if kind in b["kinds"])
            rows.append([Cell(plain(kind)), Cell(_name(r, site)), Cell(count(n)), *cells])
    head = [Cell("Cell type"), Cell("Site"), Cell("Images"), *(Cell(m.title) for m in models)]
    table = Table("unknown-kinds", "Share of each unknown cell type that the threshold stops.", head, rows)
    return [Details("By cell type", [table], open=len(rows) <= 12)]


def _name(r: Results, site: str) -> str:
    return f"{site} (held out)" if site in r.held_out else site
