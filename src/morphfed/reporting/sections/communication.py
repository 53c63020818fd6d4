"""What communication does to each site: its score before and after every aggregation, and the mean drop."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from morphfed.reporting.blocks import Block, Bullets, Cell, Details, Figure, Page, Section, Table, Text
from morphfed.reporting.results import Estimate, Model
from morphfed.reporting.sawtooth import Rank, Steps, Teeth, sawtooth
from morphfed.reporting.sections.outcome import TRANSPOSE
from morphfed.reporting.text import (
    capital,
    count,
    counted,
    finite,
    interval,
    listed,
    metric_name,
    score,
    shortened,
    signed,
)

MEAN = "mean_training"
METRICS = ("balanced_accuracy", "macro_f1", "dice", "iou", "loss")
ROWS = 6
"""Arms in one figure: more would not fit a printed page."""


def communication(page: Page) -> Section | None:
    """Saw-tooth lines and mean drops; None where no site judged the models that it had trained."""
    drops = _Drops(page)
    if not drops.models:
        return None
    metric = page.results.metric if page.results.metric in drops.metrics else drops.metrics[0]
    blocks: list[Block] = [Text(_lead(drops)), Bullets(_sentences(drops, metric))]
    blocks += [*_figures(drops, metric), _table(drops, metric)]
    if any(int(u.get("rounds") or 0) > 1 for u in page.results.units):
        blocks.append(Details("Second half of the rounds", [_table(drops, metric, late=True)]))
    for other in (m for m in drops.metrics if m != metric):
        # The loss is less coarse than a score on a small validation part, so it is drawn too.
        drawn = _figures(drops, other) if other == "loss" else []
        blocks.append(Details(capital(metric_name(other)), [*drawn, _table(drops, other)]))
    return Section("communication", "What communication does to each site", blocks)


class _Drops:
    """The block ``retrogress``, and who is in it.

    Attributes:
        models: arms with a recorded communication, in the study's order.
        sites: training sites with one.
        metrics: what was recorded.
    """

    def __init__(self, page: Page) -> None:
        self.page, self.results = page, page.results
        entries = self.results.raw.get("retrogress") or ()
        self._entries: dict[tuple[str, str, str], Mapping[str, Any]] = {
            (e["model"], e["scope"], e["metric"]): e for e in entries
        }
        self.models = [m for m in self.results.arms if any(key == m.key for key, _, _ in self._entries)]
        self.sites = [s for s in self.results.training if any(scope == s for _, scope, _ in self._entries)]
        self.metrics = [m for m in METRICS if any(name == m for _, _, name in self._entries)]

    def entry(self, model: Model, scope: str, metric: str) -> Mapping[str, Any]:
        """What ``results.json`` says; {}: nothing."""
        return self._entries.get((model.key, scope, metric), {})

    def estimate(self, model: Model, scope: str, metric: str, *, late: bool = False) -> Estimate:
        """Mean drop with its interval over seeds."""
        found = self.entry(model, scope, metric)
        found = found.get("late", {}) if late else found
        mean, low, high, sd = (finite(found.get(key)) for key in ("mean", "low", "high", "sd"))
        return Estimate(mean, low, high, sd, int(found.get("seeds") or 0))

    def images(self, site: str) -> str:
        """How many validation images a site is judged on."""
        n = next((int(e["images"]) for (_, scope, _), e in self._entries.items() if scope == site), 0)
        return counted(n, "validation image")


def _lead(drops: _Drops) -> str:
    text = (
        "In each round a site trains the model on its own images; then the sites' models are joined, and each site "
        "goes on with what it is sent back. That model can serve a site worse than the one it had just trained "
        "(retrogress, Chen et al. 2021). A drop is not a verdict on a method: the model just trained was fitted to "
        "that site alone, and what the finished models do on test images is in the results."
    )
    rest = [m.title for m in drops.results.arms if m not in drops.models]
    return f"{text} Not shown, because nothing was sent or recorded there: {listed(rest)}." if rest else text


# ── sentences ───────────────────────────────────────────────────────────────────────────────────────────────────
def _sentences(drops: _Drops, metric: str) -> list[str]:
    """A sentence an arm, or the two ends where there are many; then the site that lost most."""
    known = [m for m in drops.models if drops.estimate(m, MEAN, metric).known]
    if len(known) > ROWS:
        order = sorted(known, key=lambda m: drops.estimate(m, MEAN, metric).value or 0.0)
        known = [order[0], order[-1]]
    said = [_sentence(drops, m, metric) for m in known]
    if len(drops.sites) > 1 and (worst := _worst(drops, metric)):
        model, site = worst
        e = drops.estimate(model, site, metric)
        said.append(
            f"The largest mean drop is that of {model.title} at {site}, judged on {drops.images(site)}: "
            f"{score(e.value)}{_limits(e)}."
        )
    return said


def _sentence(drops: _Drops, model: Model, metric: str) -> str:
    entry, e, name = drops.entry(model, MEAN, metric), drops.estimate(model, MEAN, metric), metric_name(metric)
    n = int(entry["communications"])
    hurt, helped = (round(float(entry[key]) * n) for key in ("hurt", "helped"))
    if not hurt and not helped:
        return (
            f"{model.title}: no site's {name} changed at any of {counted(n, 'communication')}. Where a site uses a "
            "model of its own that no download replaces, that is so by construction."
        )
    value = e.value or 0.0
    if metric == "loss":  # harm is its rise
        did = f"the {name} {'rose' if value > 0 else 'fell'} by {score(abs(value))}"
    else:
        did = f"a site {'lost' if value > 0 else 'gained'} {score(abs(value))} of {name}"
    return (
        f"{model.title}: at a communication {did} on average{_limits(e)}. Of {counted(n, 'communication')} "
        f"{count(hurt)} hurt the site and {count(helped)} helped it."
    )


def _limits(e: Estimate) -> str:
    """The interval of the drop, or why there is none, in brackets."""
    limits = interval(e.low, e.high)
    unsure = e.low is not None and e.high is not None and e.low <= 0 <= e.high
    if not limits:
        return " (one seed, so no interval)" if e.seeds == 1 else ""
    return f" (95 % interval of the drop {limits}{', so it may be none' if unsure else ''})"


def _worst(drops: _Drops, metric: str) -> tuple[Model, str] | None:
    """The arm and site with the largest mean drop above 0."""
    values = {(m, s): drops.estimate(m, s, metric).value or 0.0 for m in drops.models for s in drops.sites}
    at = max(values, key=lambda pair: values[pair])
    return at if values[at] > 0 else None


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────
def _figures(drops: _Drops, metric: str) -> list[Block]:
    """Saw-tooth lines, a row an arm; none where the rounds are not in these results (a study of folds)."""
    teeth = {m: [_teeth(drops, m, s, metric) for s in drops.sites] for m in drops.models}
    every = [t for row in teeth.values() for t in row]
    values = [v for t in every for steps in (t.steps, *t.thin) for _, *pair in steps for v in pair]
    rounds = [x for t in every for x, _, _ in t.steps]
    if not values:
        return []
    low, high = min(values), max(values)
    limits = (0.0, high * 1.05 or 1.0) if metric == "loss" else (max(0.0, low - 0.04), min(1.0, high + 0.04))
    figures: list[Block] = []
    for start in range(0, len(drops.models), ROWS):
        models, key = drops.models[start : start + ROWS], f"teeth-{metric.replace('_', '-')}-{start}"
        drawn = sawtooth(
            [Rank(m.title, drops.page.looks[m.key], teeth[m]) for m in models],
            [(s, drops.images(s)) for s in drops.sites],
            key=key,
            alt=_spoken(drops, models, metric),
            ylabel=metric_name(metric),
            xlimits=(min(rounds) - 0.5, max(rounds) + 0.5),
            ylimits=limits,
            rise_is_loss=metric == "loss",
        )
        caption = "The same for further arms, on the same axes." if start else _caption(drops, metric)
        figures.append(Figure(key, caption, [drawn], wide=True))
    return figures


def _change(metric: str) -> str:
    return "rise" if metric == "loss" else "drop"


def _teeth(drops: _Drops, model: Model, site: str, metric: str) -> Teeth:
    runs = [steps for unit in drops.results.units_of(model) if (steps := _steps(unit, site, metric))]
    at: dict[float, list[tuple[float, float]]] = {}
    for steps in runs:
        for x, before, after in steps:
            at.setdefault(x, []).append((before, after))
    mean = [(x, fmean(b for b, _ in pairs), fmean(a for _, a in pairs)) for x, pairs in sorted(at.items())]
    drop = drops.estimate(model, site, metric)
    return Teeth(mean, runs if len(runs) > 1 else (), f"{_change(metric)} {signed(drop.value)}" if drop.known else "")


def _steps(unit: Mapping[str, Any], site: str, metric: str) -> Steps:
    steps = []
    for entry in unit.get("history") or ():
        block = entry["sites"].get(site) or {}
        before, after = (finite((block.get(key) or {}).get(metric)) for key in ("before", "validation"))
        if before is not None and after is not None:
            steps.append((float(entry["round"]), before, after))
    return steps


def _caption(drops: _Drops, metric: str) -> str:
    seeds = "mean over seeds, with single seeds faint" if len(drops.results.seeds) > 1 else "the only seed"
    return (
        f"{capital(metric_name(metric))} of every arm (row) at every site (column) through the rounds, on the site's "
        f"validation images ({seeds}). Thin grey line: local training. Stroke at the end of a round: the "
        "communication, from the model just trained (hollow point, where there is room) to the one that the site goes "
        "on with (filled); in the arm's colour where the site lost, grey where it did not. Above each panel: the mean "
        f"{_change(metric)} at a communication; above 0 the site lost."
    )


def _spoken(drops: _Drops, models: list[Model], metric: str) -> str:
    said = []
    for m in models:
        known = [(s, e) for s in drops.sites if (e := drops.estimate(m, s, metric)).known]
        said.append(f"{m.title}: " + ", ".join(f"{s} {signed(e.value)}" for s, e in known))
    return f"Mean {_change(metric)} of {metric_name(metric)} at a communication. {'; '.join(said)}"


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────
def _table(drops: _Drops, metric: str, *, late: bool = False) -> Table:
    scopes = [*drops.sites, *([MEAN] if len(drops.sites) > 1 else [])]
    cells = {m: [_cell(drops, m, s, metric, late=late) for s in scopes] for m in drops.models}
    names = [Cell("mean, training sites", strong=True) if s == MEAN else Cell(s, drops.images(s)) for s in scopes]
    order = "after less before" if metric == "loss" else "before less after"
    which = "in the second half of the rounds" if late else "over all rounds"
    what = f"Mean {_change(metric)} of {metric_name(metric)} at a communication"
    caption = f"{what}, {which}: {order}, so above 0 the site lost."
    note = "" if late or metric != drops.metrics[0] else _note(drops, metric)
    key = f"retrogress-{metric.replace('_', '-')}{'-late' if late else ''}"
    if len(scopes) >= TRANSPOSE and len(scopes) > len(drops.models):
        rows = [[name, *(cells[m][i] for m in drops.models)] for i, name in enumerate(names)]
        return Table(key, caption, [Cell("Site"), *(Cell(m.title) for m in drops.models)], rows, note)
    rows = [[Cell(m.title), *cells[m]] for m in drops.models]
    return Table(key, caption, [Cell("Arm"), *names], rows, note)


def _cell(drops: _Drops, model: Model, scope: str, metric: str, *, late: bool) -> Cell:
    e = drops.estimate(model, scope, metric, late=late)
    if not e.known:
        return Cell(score(None))
    below = [interval(e.low, e.high) or "no interval", *([f"sd {score(e.sd)}"] if e.sd is not None else [])]
    if not late:
        below.append(f"hurt {100 * float(drops.entry(model, scope, metric)['hurt']):.0f} %")
    return Cell(signed(e.value), "\n".join(below))


def _note(drops: _Drops, metric: str) -> str:
    r = drops.results
    every = [(m, e) for m in drops.models if (e := drops.entry(m, MEAN, metric))]
    numbers = shortened([f"{m.title} {count(e['communications'])}" for m, e in every], ROWS)
    text = (
        "Rounds of one training depend on each other, so each seed gives one number, its mean over rounds"
        + (" and folds" if r.folds else "")
        + ". sd: over seeds; interval: 95 %, Student's t over seeds, not corrected for the number of arms and sites"
        + (" (none with one seed)" if len(r.seeds) < 2 else "")
        + ". It says what training again would give, not what other patients would: the validation images stay the "
        "same, and where they are few a single one moves the score by much. hurt: share of the communications after "
        f"which the site's score was worse. Communications recorded: {numbers}."
    )
    return f"{text} The lines through the rounds are in the reports of the folds." if r.folds else text
