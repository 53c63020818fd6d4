"""Whether a model knows when it is wrong: calibration, and the risk left when it may abstain."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from statistics import fmean

from morphfed.reporting.blocks import Cell, Details, Figure, Page, Section, Table, Text
from morphfed.reporting.figures import Series, lines
from morphfed.reporting.results import Model, Results, over_seeds
from morphfed.reporting.sections.outcome import number_cell
from morphfed.reporting.text import MISSING, capital, count, finite, metric_name, score

SCANT = 10
"""Predictions in a bin below which it is not drawn: its accuracy would be noise."""
BINS = 10
"""Bins of the drawn reliability curve; the ECE itself is in results.json and is not computed here."""
_GRID = [i / 20 for i in range(1, 21)]


def certainty(page: Page) -> Section:
    """Reliability and ECE, risk–coverage and its area."""
    r = page.results
    section = Section("certainty", "Calibration and abstention")
    shown = [m.key for s in r.all_sites for m in r.judged_at(s) if r.tests_of(m, s)]
    legend = page.legend(list(dict.fromkeys(shown)))
    if reliability := _reliability_panels(page):
        section.blocks.append(Figure("reliability", _reliability_caption(r), reliability, legend))
    if temperature := _temperature(r):
        section.blocks.append(temperature)
    if risk := _risk_panels(page):
        caption = (
            "Risk and coverage: share of wrong predictions when a model answers only the images that it is surest "
            "of and leaves the rest to a person; mean over seeds. Lower is better."
        )
        section.blocks.append(Figure("risk", caption, risk, legend))
    for metric in ("ece", "aurc"):
        if table := _table(r, metric):
            section.blocks.append(Details(capital(metric_name(metric)), [table], open=metric == "ece"))
    if not section.blocks:
        section.blocks.append(Text("Neither calibration nor risk–coverage was recorded."))
    return section


def _reliability_caption(r: Results) -> str:
    bins = [b for s in r.all_sites for m in r.judged_at(s) for b in _pooled_bins(r, m, s)]
    left, whole = sum(n for _, _, n in bins if n < SCANT), sum(n for _, _, n in bins)
    caption = (
        "Reliability: accuracy of predictions by their confidence, pooled over seeds in tenths; a marker's area "
        "grows with the number of predictions. On the dotted diagonal a confidence of 0.8 is right 8 times in 10; "
        "below it a model is too sure."
    )
    if left:
        share = f"{count(left)} of {count(whole)} predictions"
        caption += f" Points of fewer than {SCANT} predictions are not drawn ({share})."
    return caption


def _reliability_panels(page: Page) -> list[str]:
    r = page.results
    panels = []
    for i, site in enumerate(r.all_sites):
        found: dict[Model, Series] = {}
        for m in r.judged_at(site):
            bins = [(c, a, n) for c, a, n in _pooled_bins(r, m, site) if n >= SCANT]
            if bins:
                found[m] = Series(page.looks[m.key], [(c, a) for c, a, _ in bins], sizes=[n for *_, n in bins])
        if found:
            panels.append(
                lines(
                    list(found.values()),
                    key=f"reliability-{i}",
                    title=_name(r, site),
                    alt=_spoken(r, site, found, "ece"),
                    xlabel="confidence",
                    ylabel="accuracy",
                    xlimits=(0.0, 1.0),
                    ylimits=(0.0, 1.0),
                    identity=True,
                    height=340.0,
                )
            )
    return panels


def _risk_panels(page: Page) -> list[str]:
    r = page.results
    found: dict[str, dict[Model, Series]] = {}
    for site in r.all_sites:
        curves = {m: _risk(r, m, site) for m in r.judged_at(site)}
        if any(curves.values()):
            found[site] = {m: Series(page.looks[m.key], points) for m, points in curves.items() if points}
    tops = [y for series in found.values() for s in series.values() for _, y in s.points]
    top = min(1.0, max([0.05, *tops]) * 1.08)
    return [
        lines(
            list(series.values()),
            key=f"risk-{i}",
            title=_name(r, site),
            alt=_spoken(r, site, series, "aurc"),
            xlabel="share of images answered",
            ylabel="share wrong",
            xlimits=(0.0, 1.0),
            ylimits=(0.0, top),
        )
        for i, (site, series) in enumerate(found.items())
    ]


def _name(r: Results, site: str) -> str:
    return f"{site} (held out)" if site in r.held_out else site


def _spoken(r: Results, site: str, models: Iterable[Model], metric: str) -> str:
    said = (f"{m.title} {metric.upper()} {score(r.estimate(m, site, metric).value)}" for m in models)
    return f"{_name(r, site)}: {'; '.join(said)}"


def _pooled_bins(r: Results, model: Model, site: str) -> list[tuple[float, float, float]]:
    """Mean confidence, accuracy and images of each filled tenth, all seeds together."""
    sums = [[0.0, 0.0, 0.0] for _ in range(BINS)]
    for test in r.tests_of(model, site):
        for b in test.get("calibration") or ():
            confidence, accuracy, n = (finite(b.get(k)) for k in ("confidence", "accuracy", "n"))
            if confidence is not None and accuracy is not None and n:
                into = sums[min(int(confidence * BINS), BINS - 1)]
                for at, value in enumerate((confidence * n, accuracy * n, n)):
                    into[at] += value
    return [(c / n, a / n, n) for c, a, n in sums if n]


def _risk(r: Results, model: Model, site: str) -> list[tuple[float, float]]:
    """Mean over seeds on a common grid of coverages; a step curve is read at the last point reached."""
    curves = []
    for test in r.tests_of(model, site):
        pairs = [(finite(p.get("coverage")), finite(p.get("risk"))) for p in test.get("risk_coverage") or ()]
        curve = sorted((c, k) for c, k in pairs if c is not None and k is not None)
        if curve:
            curves.append(curve)
    points = []
    for x in _GRID:
        values = [c[bisect_right([p[0] for p in c], x + 1e-9) - 1][1] for c in curves if c[0][0] <= x + 1e-9]
        if values and len(values) == len(curves):
            points.append((x, fmean(values)))
    return points


def _table(r: Results, metric: str) -> Table | None:
    models = [*r.arms, *(r.singles if r.held_out else [])]
    estimates = {m: [r.estimate(m, s, metric) for s in r.all_sites] for m in models}
    known = [e for found in estimates.values() for e in found if e.known]
    if not known:
        return None
    rows = [[Cell(m.title), *map(number_cell, found)] for m, found in estimates.items()]
    head = [Cell("Arm"), *(Cell(s) for s in r.all_sites)]
    note = ""
    if any(e.value is not None and e.low is not None and e.value < e.low for e in known):
        note = (
            "A bootstrap repeats images, which makes a calibration error larger: with few images its interval can "
            "lie above its value."
        )
    return Table(metric, f"{capital(metric_name(metric))} with 95 % intervals; lower is better.", head, rows, note)


def _temperature(r: Results) -> Table | None:
    """The fitted temperature of every model, and the ECE before and after it at every site."""
    rows = []
    for m in (*(a for a in r.arms if a.kind != "own"), *r.singles):
        found = [u["calibration"] for u in r.units_of(m) if u.get("calibration")]
        temperatures = [float(c["temperature"]) for c in found]
        if not temperatures:
            continue
        spread = f"{score(min(temperatures), 2)} to {score(max(temperatures), 2)}" if len(temperatures) > 1 else ""
        images = sorted({int(c["images"]) for c in found})
        cells = [Cell(m.title), Cell(score(fmean(temperatures), 2), spread), Cell(count(images[0]))]
        rows.append([*cells, *(_before_and_after(r, m, s) for s in r.all_sites)])
    if not rows:
        return None
    caption = (
        "Temperature of every model, fitted over the validation images of its training sites, and the calibration "
        "error before and after it. Every probability of this report is the one after."
    )
    note = (
        "Above 1 a model was too sure of itself and is softened; 1.00 may also mean that none could be fitted (see the "
        "warnings of training). Below it: the range over seeds. No image moved for it, and nothing of a held-out site "
        "went into it. The predicted class stays the same."
    )
    head = [Cell("Model"), Cell("Temperature"), Cell("Fitted on (images)"), *(Cell(_name(r, s)) for s in r.all_sites)]
    return Table("temperature", caption, head, rows, note)


def _before_and_after(r: Results, model: Model, site: str) -> Cell:
    tests = r.tests_of(model, site)
    before = over_seeds((t.get("uncalibrated") or {}).get("ece") for t in tests)
    after = over_seeds((t.get("metrics") or {}).get("ece") for t in tests)
    return Cell(f"{score(before.value)} → {score(after.value)}" if before.known else MISSING)
