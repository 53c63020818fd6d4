"""Every site held out in turn: who scored what at a site that took no part, and the folds behind it."""

from __future__ import annotations

from morphfed.reporting.blocks import Cell, Figure, Page, Section, Table
from morphfed.reporting.figures import Row, forest
from morphfed.reporting.matrices import heat_map
from morphfed.reporting.results import SMALL_CLASS, Estimate, Model, Results
from morphfed.reporting.sections.outcome import TRANSPOSE, clearly_best, number_cell, score_limits, spoken
from morphfed.reporting.text import capital, count, counted, finite, metric_name, plain, score, shortened

MEAN = "mean_held_out"


def left_out(page: Page) -> Section:
    """Arms × held-out sites with intervals, as a table and as a figure."""
    r = page.results
    return Section("results", "Results at a site that took no part", [_table(r), _figure(page)])


def shown(r: Results) -> list[Model]:
    """The rows: what is made of local models, then the joint arms."""
    own = [m for m in r.arms if m.kind == "own"]
    return [*own, *r.means, *r.bests, *(m for m in r.arms if m.kind != "own")]


def best_site(r: Results, model: Model, site: str) -> str:
    """Whose local model was the best at a held-out site; empty where none was."""
    for entry in r.raw.get("best_local") or ():
        if (entry["arm"], entry["held_out"]) == (model.arm, site):
            return str(entry["model"]).partition("/")[2]
    return ""


def _table(r: Results) -> Table:
    scopes = [*r.held_out, MEAN, "mean_training"]
    models = shown(r)
    cells = {m: [_cell(r, m, scope) for scope in scopes] for m in models}
    over = f"mean over {len(r.seeds)} seeds" if len(r.seeds) > 1 else "one seed"
    caption = (
        f"{capital(metric_name(r.metric))} of every arm on all images of each site, trained without that site "
        f"({over}, 95 % intervals). ▲ marks what is clearly better than every other row, "
        "the best of the local models aside."
    )
    note = (
        "Mean, held-out sites: every site counts the same. Training sites: mean over the folds, on the test parts of "
        "the sites that trained. "
    )
    if r.means:
        note += (
            "Local (mean of models): what to expect of one other site's own model. Local (best of models): the one "
            "that turned out best at that site, named below its score; nobody could have chosen it beforehand, so it "
            "flatters the local arm. Local (own site): every training site judged by its own model. "
        )
    note += (
        "Intervals come from resampling images or patients of these sites; they do not contain the spread between "
        "training runs (sd, over seeds), nor that between hospitals."
    )
    names = [*(_site_name(r, s) for s in r.held_out), Cell("Mean, held-out sites", strong=True), Cell("Training sites")]
    if len(scopes) >= TRANSPOSE and len(scopes) > len(models):
        rows = [[name, *(cells[m][i] for m in models)] for i, name in enumerate(names)]
        return Table("main", caption, [Cell("Held out"), *(Cell(m.title) for m in models)], rows, note)
    groups = [Cell(""), Cell("Held out", span=len(scopes) - 1), Cell("For comparison")]
    rows = [[Cell(m.title), *cells[m]] for m in models]
    return Table("main", caption, [Cell("Arm"), *names], rows, note, groups)


def _site_name(r: Results, site: str) -> Cell:
    n = next((f["n"] for f in r.folds if f["held_out"] == site), None)
    return Cell(site, counted(n, "image") if n else "")


def _cell(r: Results, model: Model, scope: str) -> Cell:
    # The best of the local models is known only afterwards: it neither wins nor stands in the way.
    rivals = [*r.arms, *r.means]
    best = model.kind != "best" and clearly_best(r, model, scope, rivals)
    cell = number_cell(r.estimate(model, scope), best=best)
    whose = best_site(r, model, scope) if model.kind == "best" else ""
    return Cell(cell.text, f"{cell.sub}\nof {whose}" if whose else cell.sub, best=cell.best)


def _figure(page: Page) -> Figure:
    r = page.results
    models = [m for m in shown(r) if m.kind != "own"]
    rows = {scope: [_row(page, m, scope) for m in models] for scope in (MEAN, *r.held_out)}
    limits = score_limits([v for found in rows.values() for w in found for v in (w.value, w.low, w.high)])
    panels = [
        forest(
            found,
            key=f"left-out-{i}",
            title="Mean over held-out sites" if scope == MEAN else f"without {scope}, tested there",
            xlabel=capital(metric_name(r.metric)),
            limits=limits,
            alt=f"{metric_name(r.metric)}, {scope} held out: " + "; ".join(spoken(w) for w in found),
        )
        for i, (scope, found) in enumerate(rows.items())
    ]
    caption = (
        f"{capital(metric_name(r.metric))} at sites that took no part, with 95 % intervals: the mean over the "
        f"{len(r.held_out)} sites, then one panel a site, all on the same axis."
    )
    return Figure("left-out", caption, panels)


def _row(page: Page, model: Model, scope: str) -> Row:
    r = page.results
    e: Estimate = r.estimate(model, scope)
    label = model.title
    if model.kind == "best" and (whose := best_site(r, model, scope)):
        label = f"Best local ({whose})"
    return Row(label, e.value, e.low, e.high, page.looks[model.key])


def recalls(page: Page) -> Section | None:
    """Which cells an arm finds at a site that took no part: a matrix an arm, classes × held-out sites."""
    r = page.results
    found = {(e["model"], e["class"], e["held_out"]): e for e in r.raw.get("recall") or ()}
    joint = [m for m in r.arms if any(model == m.key for model, _, _ in found)]
    if not joint:
        return None
    panels = []
    for i, m in enumerate(joint):
        lines = [[finite(found.get((m.key, c, s), {}).get("recall")) for s in r.held_out] for c in r.classes]
        spoken_rows = (
            f"{plain(c)}: " + ", ".join(f"{s} {score(v, 2)}" for s, v in zip(r.held_out, line, strict=True))
            for c, line in zip(r.classes, lines, strict=True)
        )
        panels.append(
            heat_map(
                [plain(c) for c in r.classes],
                r.held_out,
                lines,
                key=f"recall-{i}",
                title=m.title,
                xlabel="held out",
                ylabel="true class",
                limits=(0.0, 1.0),
                alt=f"Recall of {m.title} at each held-out site: " + "; ".join(spoken_rows),
            )
        )
    few = sorted(
        {(int(e["n"]), plain(str(e["class"])), str(e["held_out"])) for e in found.values() if 0 < e["n"] < SMALL_CLASS}
    )
    caption = (
        "Recall: share of a class's images at the held-out site that are named rightly by the arm trained without that "
        "site; seed means. Brighter is better, empty: no such images there."
    )
    if few:
        caption += f" Few images: {shortened([f'{c} at {s} ({n})' for n, c, s in few], 6)}."
    return Section("recall", "Which cells are recognised at a new site", [Figure("recall", caption, panels, wide=True)])


def fold_list(page: Page) -> Section:
    """Each fold with the address of its own report."""
    r = page.results
    rows = []
    for f in r.folds:
        rows.append(
            [
                Cell(str(f["held_out"]), href=str(f["report"] or "")),
                Cell(", ".join(f["training_sites"]), words=True),
                Cell(count(f["n_train"])),
                Cell(count(f["n"])),
                Cell(f"{f['done']} of {f['units']}"),
                Cell(str(f["report"] or "no results"), words=True),
            ]
        )
    head = ["Held out", "Trained on", "Training images", "Images tested", "Models", "Report"]
    caption = (
        "The folds. Each has a full report of its own: learning curves, recall of each class, mistakes, calibration."
    )
    note = (
        "Models: those of the fold with results. A local model does not depend on which site is held out; it is "
        "trained once for all folds."
    )
    table = Table("folds", caption, [Cell(h, words=i in (0, 1, 5)) for i, h in enumerate(head)], rows, note)
    return Section("folds", "The folds", [table])
