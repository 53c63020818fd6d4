"""Which cells are taken for which: recall of each class, confusion, free against masked prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from morphfed.reporting.blocks import Block, Cell, Details, Figure, Page, Section, Table, Text
from morphfed.reporting.figures import dodged
from morphfed.reporting.matrices import confusion
from morphfed.reporting.results import SMALL_CLASS, Estimate, Model, Results, over_seeds
from morphfed.reporting.sections.outcome import number_cell, score_limits
from morphfed.reporting.text import (
    MISSING,
    capital,
    count,
    counted,
    interval,
    listed,
    metric_name,
    plain,
    score,
    signed,
)

_FEW = 8
"""Classes up to which a confusion matrix is legible at a third of a page's width."""
_MATRICES = 4
"""Single-site models up to which each has its confusion matrix at a held-out site."""


def classes(page: Page) -> Section:
    """Per-class recall, then confusion matrices, site by site."""
    r = page.results
    section = Section("classes", "Classes: recall and confusion")
    for i, site in enumerate(r.all_sites):
        if recall := _recall(page, site, i):
            section.blocks.append(Details(_site_title(r, site, "recall of each class"), recall, open=i == 0))
    for i, site in enumerate(r.all_sites):
        if figure := _matrices(r, site, i):
            section.blocks.append(Details(_site_title(r, site, "confusion matrices"), [figure], open=i == 0))
    if not section.blocks:
        section.blocks.append(Text("No model was tested, so there is nothing to show by class."))
    return section


def _site_title(r: Results, site: str, what: str) -> str:
    return f"{site}{' (held out)' if site in r.held_out else ''}: {what}"


def _recall(page: Page, site: str, number: int) -> list[Block]:
    r = page.results
    models = [m for m in r.judged_at(site) if r.tests_of(m, site)]
    tested = _counts(r, models, site)
    names = [c for c in r.classes if tested.get(c)]
    if not models or not names:
        return []
    estimates = {m: [class_recall(r, m, site, c) for c in names] for m in models}
    return [
        _recall_figure(page, site, number, names, [tested[c] for c in names], estimates),
        _recall_table(r, site, number, names, tested, estimates),
    ]


def _recall_figure(
    page: Page,
    site: str,
    number: int,
    names: Sequence[str],
    tested: Sequence[int],
    estimates: Mapping[Model, Sequence[Estimate]],
) -> Figure:
    said = (
        f"{m.title}: " + ", ".join(f"{plain(c)} {score(e.value, 2)}" for c, e in zip(names, found, strict=True))
        for m, found in estimates.items()
    )
    svg = dodged(
        [plain(c) for c in names],
        [(page.looks[m.key], [(e.value, e.low, e.high) for e in found]) for m, found in estimates.items()],
        key=f"recall-{number}",
        alt=f"Recall of each class at {site}. {'; '.join(said)}",
        xlabel="recall",
        limits=score_limits([v for found in estimates.values() for e in found for v in (e.value, e.low, e.high)]),
        notes=[count(n) for n in tested],
        note_title="test images",
    )
    caption = f"Recall of each class at {site}, with 95 % intervals; in each band the arms in the legend's order."
    return Figure(f"recall-{number}", caption, [svg], page.legend([m.key for m in estimates]), wide=True)


def _recall_table(
    r: Results,
    site: str,
    number: int,
    names: Sequence[str],
    tested: Mapping[str, int],
    estimates: Mapping[Model, Sequence[Estimate]],
) -> Table:
    rows = []
    for i, c in enumerate(names):
        images = count(tested[c]) + ("*" if tested[c] < SMALL_CLASS else "")
        rows.append([Cell(plain(c)), Cell(images), *(number_cell(found[i]) for found in estimates.values())])
    notes = []
    if len(r.seeds) > 1:
        notes.append("Means over seeds; limits are averaged over seeds, so they describe the model of one seed.")
    if any(tested[c] < SMALL_CLASS for c in names):
        notes.append(f"* Fewer than {SMALL_CLASS} test images: read with care.")
    absent = [plain(c) for c in r.classes if not tested.get(c)]
    if absent:
        notes.append(f"No test image here of: {listed(absent)}.")
    head = [Cell("Class", words=True), Cell("Test images"), *(Cell(m.title) for m in estimates)]
    return Table(f"recall-{number}", f"Recall of each class at {site}.", head, rows, " ".join(notes))


def class_recall(r: Results, model: Model, site: str, name: str) -> Estimate:
    """Mean recall over seeds; its limits are means of the seeds' limits."""
    blocks = [t.get("per_class", {}).get(name) for t in r.tests_of(model, site)]
    return over_seeds({"value": b.get("recall"), "low": b.get("low"), "high": b.get("high")} for b in blocks if b)


def _counts(r: Results, models: Sequence[Model], site: str) -> dict[str, int]:
    for model in models:
        for test in r.tests_of(model, site):
            return {c: int(v.get("n") or 0) for c, v in (test.get("per_class") or {}).items()}
    return {}


def summed(r: Results, model: Model, site: str) -> list[list[int]] | None:
    """Confusion matrix summed over seeds; None where there is none."""
    tables = [t["confusion"] for t in r.tests_of(model, site) if t.get("confusion")]
    if not tables:
        return None
    return [[sum(int(t[i][j]) for t in tables) for j in range(len(r.classes))] for i in range(len(r.classes))]


def _matrices(r: Results, site: str, number: int) -> Figure | None:
    judged = [m for m in r.judged_at(site) if r.tests_of(m, site)]
    singles = [m for m in judged if m.kind == "single"]
    left_out = singles if len(singles) > _MATRICES else []
    found = {m: table for m in judged if m not in left_out and (table := summed(r, m, site)) is not None}
    if not found:
        return None
    panels = [
        confusion(
            [plain(c) for c in r.classes],
            table,
            key=f"confusion-{number}-{j}",
            title=m.title,
            alt=f"Confusion matrix of {m.title} at {site}. " + _spoken(r, table),
        )
        for j, (m, table) in enumerate(found.items())
    ]
    seeds = max(len(r.tests_of(m, site)) for m in found)
    over = (
        f"Counts are summed over {counted(seeds, 'seed')}: every test image is counted {seeds} times."
        if seeds > 1
        else "Counts of test images."
    )
    caption = (
        f"Confusion matrices at {site}. {over} Colour: share of the true class (row), from 0 (dark) to 1 (bright); "
        "a pale, empty cell is 0."
    )
    if left_out:
        caption += f" Not drawn: the {len(left_out)} single-site models, whose recall is in the table above."
    return Figure(f"confusion-{number}", caption, panels, small=len(r.classes) <= _FEW)


def _spoken(r: Results, table: Sequence[Sequence[int]]) -> str:
    wrong = [
        (table[i][j], r.classes[i], r.classes[j])
        for i in range(len(table))
        for j in range(len(table))
        if i != j and table[i][j]
    ]
    right, total = sum(row[i] for i, row in enumerate(table)), sum(map(sum, table))
    most = "; ".join(f"{plain(a)} taken for {plain(b)} {n} times" for n, a, b in sorted(wrong, key=lambda w: -w[0])[:3])
    return f"{right} of {total} on the diagonal." + (f" Most frequent: {most}." if most else "")


def masked(page: Page) -> Section | None:
    """Free and masked prediction side by side, where a site lacks classes of the study."""
    r = page.results
    sites = [s for s in r.all_sites if any(r.masked(m, s).known for m in r.judged_at(s))]
    if not sites:
        return None
    section = Section("masked", "Free and masked prediction")
    lead = (
        "A model chooses among all classes of the study (free). Where a site's test part lacks some of them, a "
        "second score restricts the choice to the classes present (masked). A masked score knows something about "
        "the site that a user of the model would not know; the scores elsewhere in this report are free."
    )
    section.blocks.append(Text(lead))
    for i, site in enumerate(sites):
        section.blocks.append(_masked_table(r, site, i))
    return section


def _masked_table(r: Results, site: str, number: int) -> Table:
    models = [m for m in r.judged_at(site) if r.tests_of(m, site)]
    present = next((t.get("classes_present") for m in models for t in r.tests_of(m, site)), None) or []
    metrics = [k for k in dict.fromkeys((r.metric, "macro_f1")) if any(r.masked(m, site, k).known for m in models)]
    rows = []
    for m in models:
        cells = [Cell(m.title)]
        for k in metrics:
            free = over_seeds(t.get("metrics", {}).get(k) for t in r.tests_of(m, site))
            narrow = r.masked(m, site, k)
            gain = None if free.value is None or narrow.value is None else narrow.value - free.value
            cells += [
                Cell(score(free.value), interval(free.low, free.high)),
                Cell(score(narrow.value), interval(narrow.low, narrow.high)),
                Cell(signed(gain)),
            ]
        rows.append(cells)
    absent = [plain(c) for c in r.classes if c not in present]
    caption = f"Free and masked prediction at {site}; absent there: {listed(absent) or MISSING}."
    head = [Cell("Arm"), *(Cell(h) for _ in metrics for h in ("free", "masked", "change"))]
    groups = [Cell(""), *(Cell(capital(metric_name(k)), span=3) for k in metrics)]
    note = "Means over seeds; limits are averaged over seeds." if len(r.seeds) > 1 else ""
    return Table(f"masked-{number}", caption, head, rows, note, groups)
