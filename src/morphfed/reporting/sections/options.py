"""What each option of the judging changed: the same models with it and without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from morphfed.reporting.blocks import Block, Cell, Details, Page, Section, Table, Text
from morphfed.reporting.results import Results
from morphfed.reporting.sections.outcome import scope_name
from morphfed.reporting.text import capital, finite, interval, metric_name, p_value, score, signed

_NAMED = {
    "views": "Mean over turned and mirrored copies, less the picture as it is",
    "calibrate": "Calibrated by a temperature, less as the model said it",
    "adapt": "Batch norms adapted to the held-out site, less not adapted",
}
_DOWN = ("ece", "aurc")


def options(page: Page) -> Section | None:
    """Paired differences with intervals; None where the study asked for no option."""
    r = page.results
    found: list[Mapping[str, Any]] = list(r.raw.get("options") or [])
    if not found:
        return None
    lead = (
        "Each line is one model with an option of the judging, less the same model without it: mean over seeds, "
        "on the same resampled images. Training is the same in both. Below 0 is better for the calibration error and "
        "the area under the risk curve, above 0 for the rest. Differences between arms are in the section of that name."
    )
    blocks: list[Block] = [Text(lead)]
    for option in dict.fromkeys(str(e["option"]) for e in found):
        mine = [e for e in found if e["option"] == option]
        first = [s for s in (r.plain_scope("mean_training"), r.held_out_scope) if s]
        shown = [e for e in mine if e["scope"] in first and _is_arm(r, e)]
        rest = [e for e in mine if e not in shown and not _doubled(r, e)]
        title = _NAMED.get(option, option)
        if shown:
            blocks.append(_table(r, shown, f"option-{option}", title))
        if rest:
            more = _table(r, rest, f"option-{option}-rest", f"{title}: single sites and local models")
            blocks.append(Details(f"{capital(option)}: by site", [more]))
    return Section("options", "What each option changed", blocks)


def _is_arm(r: Results, entry: Mapping[str, Any]) -> bool:
    return any(entry["model"] == m.key for m in r.arms)


def _doubled(r: Results, entry: Mapping[str, Any]) -> bool:
    """A mean over one site says what the site says."""
    scope = str(entry["scope"])
    return r.plain_scope(scope) != scope


def _table(r: Results, entries: list[Mapping[str, Any]], key: str, title: str) -> Table:
    rows = []
    for e in entries:
        number = {k: finite(e.get(k)) for k in ("without", "with", "difference", "low", "high", "p_holm")}
        rows.append(
            [
                Cell(r.title_of(str(e["model"]))),
                Cell(metric_name(str(e["metric"])), words=True),
                Cell(scope_name(str(e["scope"])), words=True),
                Cell(f"{score(number['without'])} → {score(number['with'])}"),
                Cell(signed(number["difference"]), interval(number["low"], number["high"])),
                Cell(p_value(number["p_holm"])),
            ]
        )
    head = [
        Cell("Model"),
        Cell("Measure", words=True),
        Cell("Where", words=True),
        Cell("Without → with"),
        Cell("Difference"),
        Cell("Holm p"),
    ]
    note = "Holm's correction is over the models within one measure and one place."
    if any(e["metric"] in _DOWN for e in entries):
        note += " Noise brings a difference of calibration errors a little nearer to 0."
    return Table(key, f"{title}.", head, rows, note)
