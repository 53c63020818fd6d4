"""Who scored what: arms × sites, differences between arms, and models away from home."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from morphfed.reporting.blocks import Block, Bullets, Cell, Details, Figure, Page, Section, Table, Text
from morphfed.reporting.figures import Row, forest
from morphfed.reporting.matrices import heat_map
from morphfed.reporting.results import Comparison, Estimate, Model, Results
from morphfed.reporting.tasks import kind_of
from morphfed.reporting.text import (
    capital,
    counted,
    interval,
    listed,
    metric_name,
    score,
    shortened,
)

TRANSPOSE = 7
"""From this many columns on, sites are rows: a page is taller than it is wide."""
_SCOPES = {
    "mean_training": "mean, training sites",
    "worst_training": "worst training site",
    "gap_training": "gap, best to worst",
    "mean_held_out": "mean, held-out sites",
}


def scope_name(scope: str) -> str:
    """A scope as a column header."""
    return _SCOPES.get(scope, scope)


def arms_by_sites(page: Page) -> Section:
    """The main table, the same as a figure, and the other metrics."""
    r = page.results
    section = Section("results", "Results by site")
    if not r.arms:
        section.blocks.append(Text("The study has no arm, so there is nothing to compare."))
        return section
    scopes = _scopes(r)
    section.blocks.append(_main_table(r, scopes))
    section.blocks.append(_main_figure(page))
    if r.singles and not r.over_network:
        section.blocks.append(Details("Every local model at every site", [_singles_table(r, scopes)]))
    others = [m for m in kind_of(r).metrics if m != r.metric and _has(r, m)]
    if others:
        tables: list[Block] = [_metric_table(r, m) for m in others]
        names = ", ".join(metric_name(m) for m in others)
        section.blocks.append(Details(f"Other metrics: {names}", tables))
    if notes := _notes(r):
        section.blocks.append(Details("Notes on the intervals", [Bullets(notes)]))
    return section


def _scopes(r: Results) -> list[str]:
    many = len(r.training) > 1
    scopes = [
        *r.training,
        *(["mean_training", "worst_training", "gap_training"] if many else []),
        *r.held_out,
    ]
    return scopes + (["mean_held_out"] if len(r.held_out) > 1 else [])


def _main_table(r: Results, scopes: Sequence[str]) -> Table:
    rows = {m: [_cell(r, m, scope) for scope in scopes] for m in r.arms}
    heads = [Cell(scope_name(s)) for s in scopes]
    n_train = len(scopes) - len(r.held_out) - (len(r.held_out) > 1)
    groups = [Cell("")]
    if r.held_out:
        groups += [Cell("Sites that trained", span=n_train), Cell("Held out", span=len(scopes) - n_train)]
    over = f"mean over {len(r.seeds)} seeds with its 95 % interval" if len(r.seeds) > 1 else "one seed, 95 % intervals"
    caption = (
        f"{capital(metric_name(r.metric))} of every arm on the test part of every site: {over}. ▲ marks the "
        "clearly best arm of a site."
    )
    note = (
        "An arm is marked only if it differs clearly from every other arm there: by the paired comparison "
        "(interval without 0 and Holm-corrected p below .05) or, where none was made, by intervals that do not "
        "overlap. Intervals come from resampling test patients or images; they do not contain the spread between "
        "training runs, which is the standard deviation over seeds (sd). "
    )
    if any(m.kind == "own" for m in r.arms):
        note += "Local (own site): every site is judged by the model that it trained alone"
        if r.held_out and not r.over_network:
            note += "; at a held-out site, the mean of these models (with how many, and their lowest and highest)"
        note += "."
    if len(scopes) >= TRANSPOSE and len(scopes) > len(r.arms):
        body = [
            [
                Cell(scope_name(s), "held out" if s in r.held_out else "", strong=s in _SCOPES),
                *(rows[m][i] for m in r.arms),
            ]
            for i, s in enumerate(scopes)
        ]
        return Table(
            "main",
            caption.replace("of a site", "of a row"),
            [Cell("Site"), *(Cell(m.title) for m in r.arms)],
            body,
            note,
        )
    body = [[Cell(m.title), *cells] for m, cells in rows.items()]
    return Table(
        "main",
        caption.replace("of a site", "of a column"),
        [Cell("Arm"), *heads],
        body,
        note,
        groups if r.held_out else (),
    )


def _cell(r: Results, model: Model, scope: str) -> Cell:
    estimate = r.estimate(model, scope)
    mean = r.mean_of(model)
    if estimate.known or mean is None:
        return number_cell(estimate, best=clearly_best(r, model, scope))
    # A local arm away from home: what to expect of one of its models.
    singles = [v for s in r.singles if s.arm == model.arm and (v := r.estimate(s, scope).value) is not None]
    estimate = r.estimate(mean, scope)
    if not estimate.known and singles:
        estimate = Estimate(fmean(singles))
    cell = number_cell(estimate)
    spread = f"of {len(singles)}: {interval(min(singles), max(singles), 2)}" if singles else ""
    return replace(cell, sub="\n".join(part for part in (cell.sub, spread) if part))


def number_cell(estimate: Estimate, *, best: bool = False, digits: int = 3) -> Cell:
    """A score with its interval, and the standard deviation over seeds where there are several."""
    lines = [interval(estimate.low, estimate.high, digits)] if estimate.known else []
    if estimate.known and not lines[0]:
        lines = ["no interval"]
    if estimate.sd is not None and estimate.seeds > 1:
        lines.append(f"sd {score(estimate.sd, digits)}")
    return Cell(score(estimate.value, digits), "\n".join(lines), best=best)


def clearly_best(r: Results, model: Model, scope: str, rivals: Sequence[Model] = ()) -> bool:
    """Whether a model differs clearly, and for the better, from every rival (by default every arm) in a scope."""
    sign = -1.0 if scope == "gap_training" else 1.0
    mine = r.estimate(model, scope)
    others = [m for m in rivals or r.arms if m != model and r.estimate(m, scope).known]
    if mine.value is None or not others:
        return False
    return all(_beats(r.compare(model, m, scope), mine, r.estimate(m, scope), sign) for m in others)


def _beats(c: Comparison | None, mine: Estimate, other: Estimate, sign: float) -> bool:
    if c is not None and c.tested and c.difference is not None:
        return c.clear and sign * c.difference > 0
    if mine.low is None or mine.high is None or other.low is None or other.high is None:
        return False
    return mine.low > other.high if sign > 0 else mine.high < other.low


def _main_figure(page: Page) -> Figure:
    r = page.results
    groups = [*r.training, *(["mean_training"] if len(r.training) > 1 else []), *r.held_out]
    rows: dict[str, list[Row]] = {}
    for scope in groups:
        models = r.arms if scope == "mean_training" else r.judged_at(scope)
        rows[scope] = [
            Row(m.title, e.value, e.low, e.high, page.looks[m.key]) for m in models for e in [r.estimate(m, scope)]
        ]
    limits = score_limits([v for found in rows.values() for w in found for v in (w.value, w.low, w.high)])
    panels = [
        forest(
            found,
            key=f"forest-{i}",
            title=_panel_title(r, scope),
            xlabel=capital(metric_name(r.metric)),
            limits=limits,
            alt=f"{metric_name(r.metric)} at {scope_name(scope)}: " + "; ".join(spoken(w) for w in found),
        )
        for i, (scope, found) in enumerate(rows.items())
    ]
    caption = f"{capital(metric_name(r.metric))} with 95 % intervals, one panel a site, all on the same axis."
    if r.held_out and r.singles and not r.over_network:
        caption += " At a held-out site every local model is shown, because none is at home there."
    return Figure("forest", caption, panels)


def _panel_title(r: Results, scope: str) -> str:
    if scope in _SCOPES:
        return capital(scope_name(scope))
    n = next((t["n"] for m in r.judged_at(scope) for t in r.tests_of(m, scope) if t.get("n")), None)
    parts = [*(["held out"] if scope in r.held_out else []), *([counted(n, "test image")] if n else [])]
    return f"{scope} ({', '.join(parts)})" if parts else scope


def spoken(row: Row) -> str:
    """A line of a forest plot in words."""
    limits = interval(row.low, row.high)
    return f"{row.label} {score(row.value)}" + (f" ({limits})" if limits else "")


def score_limits(values: Sequence[float | None]) -> tuple[float, float]:
    """An axis for scores: down to the next tenth below the lowest, up to 1 where anything comes near."""
    known = [v for v in values if v is not None]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    bottom = max(0.0, int(low * 10 - 0.2) / 10) if low >= 0 else low
    top = 1.0 if high > 0.85 else min(1.0, int(high * 10 + 1.2) / 10)
    return (bottom, top) if top > bottom else (0.0, 1.0)


def _singles_table(r: Results, scopes: Sequence[str]) -> Table:
    caption = f"{capital(metric_name(r.metric))} of the model of every single site at every site."
    return _by_models(r, "singles", caption, r.singles, scopes, r.metric)


def _by_models(
    r: Results, key: str, caption: str, models: Sequence[Model], scopes: Sequence[str], metric: str
) -> Table:
    cells = {m: [number_cell(r.estimate(m, s, metric)) for s in scopes] for m in models}
    if len(scopes) >= TRANSPOSE and len(scopes) > len(models):
        rows = [[Cell(scope_name(s)), *(cells[m][i] for m in models)] for i, s in enumerate(scopes)]
        return Table(key, caption, [Cell("Site"), *(Cell(m.title) for m in models)], rows)
    rows = [[Cell(m.title), *cells[m]] for m in models]
    return Table(key, caption, [Cell("Arm"), *(Cell(scope_name(s)) for s in scopes)], rows)


def _metric_table(r: Results, metric: str) -> Table:
    scopes = [s for s in _scopes(r) if s not in ("worst_training", "gap_training")]
    caption = f"{capital(metric_name(metric))} of every arm at every site, with 95 % intervals."
    return _by_models(r, metric.replace("_", "-"), caption, r.arms, scopes, metric)


def _notes(r: Results) -> list[str]:
    """What the evaluation says about a site's intervals, with the models that it says it of."""
    said: dict[tuple[str, str], list[str]] = {}
    for unit in r.units:
        for site, test in (unit.get("sites") or {}).items():
            for note in test.get("notes") or ():
                said.setdefault((site, str(note)), []).append(f"{unit['model']}, seed {unit['seed']}")
    every = {site: sum(site in (u.get("sites") or {}) for u in r.units) for site, _ in said}
    return [
        f"{site}: {note}"
        + ("" if len(of) == every[site] else f" ({listed(of) if len(of) < 4 else counted(len(of), 'run')})")
        for (site, note), of in said.items()
    ]


def _has(r: Results, metric: str) -> bool:
    return any(r.estimate(m, s, metric).known for m in r.arms for s in r.all_sites)


def cross_site(page: Page) -> Section | None:
    """Trained on a row, tested on a column, with the joint models below for comparison."""
    r = page.results
    block = r.raw.get("cross_site") or {}
    rows, columns = list(block.get("rows") or []), list(block.get("columns") or [])
    if not rows or len(columns) < 2:
        return None  # a single site has no elsewhere
    metric = str(block.get("metric") or r.metric)
    values: list[list[float | None]] = [list(line) for line in block["values"]]
    joint = [m for m in r.arms if m.kind != "own"]
    where = "every site but the column's" if r.folds else "all training sites"
    names = [*rows, *(m.title for m in joint)]
    values += [[r.estimate(m, c, metric).value for c in columns] for m in joint]
    known = [v for line in values for v in line if v is not None]
    held_at = next((i for i, c in enumerate(columns) if c in r.held_out), None)
    svg = heat_map(
        names,
        columns,
        values,
        key="cross-site",
        xlabel="tested on",
        ylabel="trained on",
        limits=score_limits(known),
        boxed=[(i, columns.index(s)) for i, s in enumerate(rows) if s in columns],
        row_break=len(rows) if joint else None,
        column_break=held_at or None,
        alt=f"{metric_name(metric)}: "
        + "; ".join(
            f"trained on {n}: " + ", ".join(f"{c} {score(v, 2)}" for c, v in zip(columns, line, strict=True))
            for n, line in zip(names, values, strict=True)
        ),
    )
    caption = (
        f"{capital(metric_name(metric))} of the model of one site (row) tested at each site (column); seed means. "
        "Framed: at home. Brighter is better."
    )
    if r.folds:
        caption += " Away from home a site is tested on all its images, at home on its test part."
    if joint:
        caption += f" Below the gap: {shortened([m.title for m in joint], 8)}, trained on {where}."
    if held_at and not r.folds:
        caption += " Right of the gap: held-out sites."
    return Section("cross-site", "Trained here, tested there", [Figure("cross-site", caption, [svg], wide=True)])
