"""Differences between arms: paired, with intervals and corrected p values."""

from __future__ import annotations

from collections.abc import Sequence

from morphfed.reporting.blocks import Block, Cell, Details, Figure, Page, Section, Table, Text
from morphfed.reporting.figures import WIDE, Row, forest
from morphfed.reporting.results import Comparison, Results
from morphfed.reporting.sections.outcome import scope_name
from morphfed.reporting.text import MINUS, MISSING, capital, count, counted, interval, metric_name, p_value, signed

MANY = 24
"""Pairs above which the figure shows the main ones and the table is folded away."""


def comparisons(page: Page) -> Section:
    """Paired differences: over the training sites and at held-out sites first, then site by site."""
    r = page.results
    section = Section("comparisons", "Differences between arms")
    found = _by_scope(r, [c for c in r.comparisons if c.metric == r.metric])
    if not found:
        section.blocks.append(Text("No paired comparison between arms was made in this run."))
    first = [s for s in (r.plain_scope("mean_training"), r.held_out_scope) if s in found]
    first = first[::-1] if r.folds else first  # a study of folds is about the held-out sites
    for i, scope in enumerate(first or list(found)[:1]):
        section.blocks.append(_difference_figure(r, scope, _drawn(r, found[scope]), i))
        table = _difference_table(r, found[scope], f"{i}")
        many = len(found[scope]) > MANY
        section.blocks.append(Details(f"All {len(found[scope])} pairs {_place(r, scope)}", [table]) if many else table)
    rest = {s: cs for s, cs in found.items() if s not in (first or list(found)[:1])}
    others = [m for m in dict.fromkeys(c.metric for c in r.comparisons) if m != r.metric]
    groups = {"Site by site": ("site", rest)}
    for metric in others:
        named = capital(metric_name(metric))
        groups[named] = (metric.replace("_", "-"), _by_scope(r, [c for c in r.comparisons if c.metric == metric]))
    for title, (key, by_scope) in groups.items():
        tables: list[Block] = [_difference_table(r, cs, f"{key}-{i}") for i, cs in enumerate(by_scope.values())]
        if tables:
            section.blocks.append(Details(title, tables))
    return section


def _in_order(r: Results, found: Sequence[Comparison]) -> list[Comparison]:
    """Every pair as later arm minus earlier arm of the study, pairs with the same second arm together."""
    ranks = {m.key: i for i, m in enumerate([*r.singles, *r.means, *r.bests, *r.arms])}
    last = len(ranks)
    turned = [c.turned() if ranks.get(c.a, last) < ranks.get(c.b, last) else c for c in found]
    return sorted(turned, key=lambda c: (ranks.get(c.b, last), ranks.get(c.a, last)))


def _drawn(r: Results, found: Sequence[Comparison]) -> list[Comparison]:
    """Of many pairs those against each site alone, pooled images and the first federated arm."""
    if len(found) <= MANY:
        return list(found)
    first = next((m.key for m in r.arms if m.kind == "federated"), "")
    against = {m.key for m in r.arms if m.kind != "federated"} | {m.key for m in r.bests} | {first}
    return [c for c in found if c.b in against] or list(found)


def _by_scope(r: Results, found: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """Scope → its comparisons in order; a mean over one site is that site and stands there once."""
    groups: dict[str, dict[tuple[str, str], Comparison]] = {}
    for c in _in_order(r, found):
        groups.setdefault(r.plain_scope(c.scope), {}).setdefault((c.a, c.b), c)
    return {scope: list(pairs.values()) for scope, pairs in groups.items()}


def _place(r: Results, scope: str) -> str:
    known = {
        "mean_training": f"over the training sites (mean{' over folds' if r.folds else ''})",
        "mean_held_out": "over the held-out sites (mean)",
        "worst_training": "at the worst training site of each arm",
    }
    return known.get(scope, f"at the held-out site {scope}" if scope in r.held_out else f"at {scope_name(scope)}")


def _difference_figure(r: Results, scope: str, found: Sequence[Comparison], number: int) -> Figure:
    rows = [
        Row(
            f"{r.title_of(c.a)} {MINUS} {r.title_of(c.b)}",
            c.difference,
            c.low,
            c.high,
            filled=c.clear,
            note=f"p {p_value(c.p_holm)}" if c.p_holm is not None else "",
        )
        for c in found
    ]
    known = [abs(v) for w in rows for v in (w.value, w.low, w.high) if v is not None]
    reach = max([*known, 0.02]) * 1.08
    svg = forest(
        rows,
        key=f"difference-{number}",
        xlabel=f"← second arm higher · difference in {metric_name(r.metric)} · first arm higher →",
        limits=(-reach, reach),
        zero=True,
        width=WIDE,
        alt=f"Differences {_place(r, scope)}: "
        + "; ".join(f"{w.label} {signed(w.value)} ({interval(w.low, w.high) or 'no interval'})" for w in rows),
    )
    caption = (
        f"Differences in {metric_name(r.metric)} {_place(r, scope)}, with 95 % intervals and Holm-corrected p. "
        "Filled: a clear difference; hollow: none."
    )
    return Figure(f"difference-{number}", caption, [svg], wide=True)


def _difference_table(r: Results, found: Sequence[Comparison], key: str) -> Table:
    rows = []
    for c in found:
        words = "no clear difference" if c.tested else "not tested"
        if c.clear:
            words = f"{r.title_of(c.a if (c.difference or 0) > 0 else c.b)} higher"
        limits = Cell(interval(c.low, c.high) or MISSING)
        numbers = [Cell(signed(c.difference)), limits, Cell(p_value(c.p)), Cell(p_value(c.p_holm))]
        names = [Cell(r.title_of(c.a)), Cell(r.title_of(c.b), words=True)]
        rows.append([*names, *numbers, Cell(words, words=True, strong=c.clear)])
    head = ["First arm", "Second arm", "Difference", "95 % interval", "p", "Holm p", "Reading"]
    place = _place(r, r.plain_scope(found[0].scope))
    return Table(
        f"difference-{key}",
        f"{capital(metric_name(found[0].metric))}: first arm minus second arm {place}, paired on the same test images.",
        [Cell(h, words=i in (0, 1, 6)) for i, h in enumerate(head)],
        rows,
        _design(found, lesions=any(r.patient_unit(s) == "lesion" for s in r.all_sites)),
    )


def _design(found: Sequence[Comparison], *, lesions: bool) -> str:
    first = found[0]
    parts = []
    if first.resamples:
        parts.append(counted(first.resamples, "bootstrap resample"))
    if first.clusters:
        known = "patients or lesions" if lesions else "patients"
        mixed = f"{known} where known, else images" if first.cluster_unit == "mixed" else f"{first.cluster_unit}s"
        parts.append(f"{count(first.clusters)} {mixed}, resampled alike for both arms")
    if first.seeds:
        parts.append(f"means over {counted(first.seeds, 'seed')}" if first.seeds > 1 else "one seed")
    note = "p is two-sided; Holm's correction is over all pairs of one metric and one scope."
    return f"{'; '.join(parts)}. {note}" if parts else note
