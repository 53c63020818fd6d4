"""Differences between arms: paired, with intervals and corrected p values."""

from __future__ import annotations

from collections.abc import Sequence

from morphfed.reporting.blocks import Block, Cell, Details, Figure, Page, Section, Table, Text
from morphfed.reporting.figures import WIDE, Row, forest
from morphfed.reporting.results import Comparison, Results
from morphfed.reporting.sections.outcome import scope_name
from morphfed.reporting.text import MINUS, MISSING, capital, counted, interval, metric_name, p_value, signed


def comparisons(page: Page) -> Section:
    """Paired differences with intervals and corrected p values."""
    r = page.results
    section = Section("comparisons", "Differences between arms")
    main = _in_order(r, [c for c in r.comparisons if c.metric == r.metric])
    arms = {m.key for m in r.arms}
    if not main:
        section.blocks.append(Text("No paired comparison between arms was made in this run."))
    between = [c for c in main if {c.a, c.b} <= arms]
    for i, (scope, found) in enumerate(_by_scope(between).items()):
        section.blocks += [_difference_figure(r, scope, found, i), _difference_table(r, scope, found, f"{i}")]
    singles = [c for c in main if not {c.a, c.b} <= arms]
    rest = _in_order(r, [c for c in r.comparisons if c.metric != r.metric])
    for key, title, group in (
        ("single", "Against every single-site model", singles),
        ("rest", "Other metrics", rest),
    ):
        if group:
            tables: list[Block] = [
                _difference_table(r, scope, found, f"{key}-{i}")
                for i, (scope, found) in enumerate(_by_scope(group).items())
            ]
            section.blocks.append(Details(title, tables))
    return section


def _in_order(r: Results, found: Sequence[Comparison]) -> list[Comparison]:
    """Every pair as later arm minus earlier arm of the study, pairs with the same second arm together."""
    ranks = {m.key: i for i, m in enumerate([*r.singles, *r.arms])}
    last = len(ranks)
    turned = [c.turned() if ranks.get(c.a, last) < ranks.get(c.b, last) else c for c in found]
    return sorted(turned, key=lambda c: (ranks.get(c.b, last), ranks.get(c.a, last)))


def _by_scope(found: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = {}
    for c in found:
        groups.setdefault(c.scope, []).append(c)
    return groups


def _place(r: Results, scope: str) -> str:
    if scope == "mean_held_out" and len(r.held_out) == 1:
        return f"at the held-out site {r.held_out[0]}"
    if scope == "mean_training" and len(r.training) == 1:
        return f"at {r.training[0]}"
    known = {
        "mean_training": "over the training sites (mean)",
        "mean_held_out": "over the held-out sites (mean)",
    }
    return known.get(scope, f"at {scope_name(scope)}")


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


def _difference_table(r: Results, scope: str, found: Sequence[Comparison], key: str) -> Table:
    named = {c.metric for c in found} != {r.metric}
    rows = []
    for c in found:
        words = "not tested" if not c.tested else "no clear difference"
        if c.clear:
            words = f"{r.title_of(c.a if (c.difference or 0) > 0 else c.b)} higher"
        rows.append(
            [
                Cell(r.title_of(c.a)),
                Cell(r.title_of(c.b), words=True),
                *([Cell(metric_name(c.metric), words=True)] if named else []),
                Cell(signed(c.difference)),
                Cell(interval(c.low, c.high) or MISSING),
                Cell(p_value(c.p)),
                Cell(p_value(c.p_holm)),
                Cell(words, words=True, strong=c.clear),
            ]
        )
    head = [
        "First arm",
        "Second arm",
        *(["Metric"] if named else []),
        "Difference",
        "95 % interval",
        "p",
        "Holm p",
        "Reading",
    ]
    words_at = {1, 2 if named else 1, len(head) - 1}
    caption = f"First arm minus second arm {_place(r, scope)}, paired on the same test images."
    return Table(
        f"difference-{key}",
        caption,
        [Cell(h, words=i in words_at) for i, h in enumerate(head)],
        rows,
        _design(found),
    )


def _design(found: Sequence[Comparison]) -> str:
    first = found[0]
    parts = []
    if first.resamples:
        parts.append(f"{counted(first.resamples, 'bootstrap resample')}")
    if first.clusters:
        unit = first.cluster_unit or "cluster"
        parts.append(
            f"{first.clusters} {unit if first.clusters == 1 else f'{unit}s'} resampled, the same for both arms"
        )
    if first.seeds:
        parts.append(f"means over {counted(first.seeds, 'seed')}")
    text = "; ".join(parts)
    note = "p is two-sided; Holm's correction is over all comparisons of the family."
    return f"{capital(text)}. {note}" if text else note
