"""Structures one by one: how well every arm outlines each, and pictures of its best, middle and worst cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from morphfed.reporting.blocks import Cell, Details, Page, Picture, Section, Strip, Table, Text
from morphfed.reporting.results import Model, Results
from morphfed.reporting.sections.data import image_source
from morphfed.reporting.sections.outcome import number_cell
from morphfed.reporting.text import MISSING, capital, count, finite, listed, metric_name, plain, score

_METRICS = ("dice", "iou", "hd95_px", "hd95_um")
MEAN = "mean_training"
MILLIMETRE = 1000.0
"""In µm."""
_KINDS = {"worst": "worst", "median": "middle", "best": "best"}


def structures(page: Page) -> Section | None:
    """A table for each structure: arms by sites, with every metric."""
    r = page.results
    if not r.structures:
        return None
    section = Section("structures", "Structure by structure")
    section.blocks.append(
        Text(
            "Every image is scored by itself, and the scores are averaged over images. An image in which neither the "
            "true mask nor the drawn one shows a structure says nothing about it and is left out of its means. Where "
            "only one of them shows it, Dice and IoU are 0, and no distance exists: such images are counted (missed, "
            "false) and are not in the mean distance. Distances are from outline to outline; pixels are those of the "
            "pictures as the models see them.",
            quiet=True,
        )
    )
    metrics = [m for m in _METRICS if any(_known(r, f"{m}/{s}") for s in r.structures)]
    units = dict.fromkeys(metrics, 1.0) | ({"hd95_um": 1e-3} if _of_organs(r) else {})
    section.blocks += [_table(r, name, units) for name in r.structures]
    return section


def _of_organs(r: Results) -> bool:
    """Whether distances are to be read in millimetres."""
    found = [e.value for s in r.structures for m in r.arms for e in [r.estimate(m, MEAN, f"hd95_um/{s}")]]
    return max((v for v in found if v is not None), default=0.0) > MILLIMETRE


def _known(r: Results, metric: str) -> bool:
    return any(r.estimate(m, s, metric).known for m in r.arms for s in r.all_sites)


def _table(r: Results, structure: str, units: Mapping[str, float]) -> Table:
    rows = []
    for site in r.all_sites:
        for model in [*r.judged_at(site), *(m for m in r.singles if site in r.training and m.site != site)]:
            numbers = [
                number_cell(
                    r.estimate(model, site, f"{m}/{structure}").times(unit), digits=3 if m in ("dice", "iou") else 2
                )
                for m, unit in units.items()
            ]
            blocks = [b for t in r.tests_of(model, site) if (b := (t.get("structures") or {}).get(structure))]
            shown = [Cell(_over_seeds(blocks, key)) for key in ("n", "missed", "false")]
            rows.append([Cell(model.title), Cell(site, words=True), *numbers, *shown])
    head = [Cell("Arm"), Cell("Tested at", words=True), *(Cell(_heading(m, unit)) for m, unit in units.items())]
    head += [Cell("Images with it"), Cell("Missed"), Cell("False")]
    caption = (
        f"{capital(plain(structure))}: every arm on the test part of every site, and single-site models away from "
        "home; means over seeds with 95 % intervals."
    )
    note = "Missed: images that show it and in which nothing was drawn. False: images without it in which it was drawn."
    if len(r.seeds) > 1:
        note += " Both are means over seeds."
    return Table(f"structure-{structure.replace('_', '-')}", caption, head, rows, note)


def _heading(metric: str, unit: float) -> str:
    name = capital(metric_name(metric))
    return name if unit == 1 else name.replace("µm", "mm")


def _over_seeds(blocks: list[Mapping[str, Any]], key: str) -> str:
    known = [v for b in blocks if (v := finite(b.get(key))) is not None]
    if not known:
        return MISSING
    mean = sum(known) / len(known)
    return count(mean) if mean == round(mean) else score(mean, 1)


def overlays(page: Page) -> Section | None:
    """Best, middle and worst cases of every arm at every site, outlined."""
    r = page.results
    if not r.structures:
        return None
    section = Section("overlays", "Best, middle and worst cases")
    colours = r.study.get("colours") or {}
    drawn = listed(f"{plain(s)} {colours[s]}" for s in r.structures if s in colours)
    seed = f" Pictures are of seed {r.seeds[0]}." if len(r.seeds) > 1 else ""
    section.blocks.append(
        Text(
            f"White: the true outlines. In colour, over them: as drawn ({drawn}); where no white is left, both agree. "
            f"The number is Dice, mean over the structures.{seed}",
            quiet=True,
        )
    )
    first = True
    for site in r.all_sites:
        strips = [s for m in r.judged_at(site) if (s := _strip(r, m, site)) is not None]
        if strips:
            name = f"{site} (held out)" if site in r.held_out else site
            section.blocks.append(Details(name, strips, open=first))
            first = False
    if first:
        section.blocks = [Text("No pictures were recorded.")]
    return section


def _strip(r: Results, model: Model, site: str) -> Strip | None:
    cases = next((t["overlays"] for t in r.tests_of(model, site) if t.get("overlays")), ())
    pictures = []
    for case in cases:
        if source := image_source(case.get("image")):
            kind = _KINDS.get(str(case.get("kind")), "")
            each = [
                f"{plain(s)} {score(finite(v), 2)}"
                for s, v in (case.get("structures") or {}).items()
                if s in r.structures
            ]
            total = f"{kind} {score(finite(case.get('dice')), 2)}"
            said = f"{kind} case of {model.title} at {site}: {', '.join(each)}"
            pictures.append(Picture(source, said, lines=[total, *each], path=str(case.get("path"))))
    return Strip(model.title, pictures, large=True) if pictures else None
