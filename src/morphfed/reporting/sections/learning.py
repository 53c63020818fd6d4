"""Learning curves: every site, every round, every arm."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from morphfed.reporting.blocks import Details, Figure, Page, Section, Text
from morphfed.reporting.figures import Series, lines
from morphfed.reporting.results import Model, Results
from morphfed.reporting.text import capital, finite, metric_name, score

Curve = list[tuple[float, float]]


def learning(page: Page) -> Section:
    """Validation score and training loss per site and round."""
    r = page.results
    metric = r.metric if any(_curves(r, m, s, r.metric) for m in r.arms for s in r.training) else "loss"
    panels, shown = _panels(page, metric, key="curve")
    section = Section("learning", "Learning curves")
    if not panels:
        section.blocks.append(Text("No round was recorded, so there are no learning curves."))
        return section
    seeds = (
        "Thick lines are the mean over seeds, thin lines the single seeds"
        if len(r.seeds) > 1
        else "Lines are of the only seed"
    )
    caption = (
        f"{capital(metric_name(metric))} on each training site's validation part after every round. {seeds}; a "
        "marker shows the round whose model was chosen in each seed. Selection uses these validation parts only; "
        "no test image and no held-out site takes part in it."
    )
    section.blocks.append(Figure("curves", caption, panels, page.legend(shown)))
    losses, shown = _panels(page, "training loss", key="loss")
    if losses:
        caption = "Mean training loss of each round; pooled data belong to no site and have their own panel."
        section.blocks.append(Details("Training loss", [Figure("losses", caption, losses, page.legend(shown))]))
    return section


def _panels(page: Page, metric: str, *, key: str) -> tuple[list[str], list[str]]:
    r = page.results
    names = list(r.training)
    if metric == "training loss":
        names += [
            s
            for s in dict.fromkeys(s for u in r.units for h in u.get("history") or () for s in h["sites"])
            if s not in names
        ]
    found: dict[str, dict[Model, dict[int, Curve]]] = {}
    for site in names:
        curves = {m: _curves(r, m, site, metric) for m in r.arms}
        if any(curves.values()):
            found[site] = {m: c for m, c in curves.items() if c}
    points = [
        p for by_model in found.values() for by_seed in by_model.values() for curve in by_seed.values() for p in curve
    ]
    if not points:
        return [], []
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    xlimits = (min(xs) - 0.3, max(xs) + 0.3)
    bounded = metric not in ("loss", "training loss")
    bottom, top = (max(0.0, min(ys) - 0.04), min(1.0, max(ys) + 0.04)) if bounded else (0.0, max(ys) * 1.05 or 1.0)
    panels = [
        lines(
            [_series(page, m, site, by_seed) for m, by_seed in by_model.items()],
            key=f"{key}-{i}",
            title=site,
            xlabel="round",
            ylabel=metric_name(metric),
            xlimits=xlimits,
            ylimits=(bottom, top),
            whole_x=True,
            alt=_spoken(site, metric, by_model),
        )
        for i, (site, by_model) in enumerate(found.items())
    ]
    return panels, [m.key for m in r.arms if any(m in by_model for by_model in found.values())]


def _curves(r: Results, model: Model, site: str, metric: str) -> dict[int, Curve]:
    """Seed → points of one model at one site."""
    found: dict[int, Curve] = {}
    for unit in r.units_of(model, site):
        curve = [
            (float(h["round"]), v) for h in unit.get("history") or () if (v := _value(h, site, metric)) is not None
        ]
        if curve:
            found[int(unit["seed"])] = curve
    return found


def _value(entry: Mapping[str, Any], site: str, metric: str) -> float | None:
    block = entry["sites"].get(site) or {}
    return finite(block.get("loss") if metric == "training loss" else (block.get("validation") or {}).get(metric))


def _series(page: Page, model: Model, site: str, by_seed: Mapping[int, Curve]) -> Series:
    rounds = sorted({x for curve in by_seed.values() for x, _ in curve})
    mean = [(x, fmean([y for curve in by_seed.values() for at, y in curve if at == x])) for x in rounds]
    chosen = {
        int(u["seed"]): u.get("best_round") for u in page.results.units_of(model, site) if u.get("selected") == "best"
    }
    marks = [p for seed, curve in by_seed.items() for p in curve if p[0] == chosen.get(seed)]
    return Series(page.looks[model.key], mean, list(by_seed.values()) if len(by_seed) > 1 else [], marks)


def _spoken(site: str, metric: str, by_model: Mapping[Model, Mapping[int, Curve]]) -> str:
    said = []
    for model, by_seed in by_model.items():
        ends = [curve[-1] for curve in by_seed.values()]
        said.append(f"{model.title} {score(fmean([y for _, y in ends]))} after round {max(x for x, _ in ends):.0f}")
    return f"{metric_name(metric)} at {site}: {'; '.join(said)}"
