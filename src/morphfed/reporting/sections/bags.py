"""Bags: how many and how long at each site, and which instances a network went by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from morphfed.reporting.blocks import Block, Cell, Heading, Page, Picture, Section, Strip, Table, Text
from morphfed.reporting.results import Model, Results
from morphfed.reporting.sections.data import image_source
from morphfed.reporting.text import MISSING, count, finite, plain, score

_ROLES = {"train": "training", "held_out": "held out", "each": "in turn"}
_NAMED = 4


def sites_table(r: Results) -> Table:
    """The sites of a study of bags."""
    rows = []
    for site in r.all_sites:
        s = r.sites.get(site, {})
        bags: Mapping[str, Any] = s.get("bags") or {}
        low, first, median, third, high = [*(bags.get("quartiles") or ()), *[None] * 5][:5]
        patients = s.get("patients")
        rows.append(
            [
                Cell(site),
                Cell(_ROLES[r.role(site)], words=True),
                Cell(count(finite(s.get("n")))),
                Cell("unknown" if patients is None else count(patients)),
                Cell(str(s.get("cluster_unit") or MISSING), words=True),
                Cell(count(finite(bags.get("instances")))),
                Cell(count(finite(median)), _range(first, third)),
                Cell(_range(low, high) or MISSING),
                Cell(count(finite(bags.get("dim")))),
                Cell(str(bags.get("encoder") or "not said"), words=True),
            ]
        )
    names = ["Site", "Role", "Bags", "Patients", "Interval by", "Instances", "Median bag", "Shortest, longest"]
    head = [Cell(h, words=i in (0, 1, 4)) for i, h in enumerate(names)]
    head += [Cell("Features"), Cell("Encoder", words=True)]
    note = (
        "Interval by: what the bootstrap draws. Median bag: instances, with the quartiles below it. Features: numbers "
        "of one instance. Encoder: what computed them, where the files say."
    )
    return Table("sites", "The sites.", head, rows, note)


def attention(page: Page) -> Section | None:
    """The weightiest instances of a few bags at each site; None of heads without attention."""
    r = page.results
    chosen = _shown(r)
    if chosen is None:
        return None
    model, unit = chosen
    section = Section("attention", "Where the model looked")
    section.blocks.append(
        Text(
            f"Attention of {model.title} (seed {unit['seed']}) over the instances of a few test bags. It says which "
            "instances the prediction was made from, not that they show disease. Effective: over how many instances "
            "the weights are spread, 1 / Σ a²; the same as Instances where all count alike."
        )
    )
    for site, block in unit["sites"].items():
        section.blocks += _of_site(site, block.get("attention") or ())
    return section


def _shown(r: Results) -> tuple[Model, Mapping[str, Any]] | None:
    """The first federated model that was looked into, else the first of any kind."""
    for model in [*r.of_kind("federated"), *r.of_kind("pooled"), *r.singles]:
        for unit in r.units_of(model):
            if any(block.get("attention") for block in (unit.get("sites") or {}).values()):
                return model, unit
    return None


def _of_site(site: str, examples: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not examples:
        return []
    rows = [
        [
            Cell(str(e["id"]).removeprefix(f"{site}/"), words=True),
            Cell(plain(str(e["truth"])), words=True),
            Cell(plain(str(e["predicted"])), words=True, strong=e["predicted"] != e["truth"]),
            Cell(count(finite(e["n"]))),
            Cell(score(finite(e["effective"]), 1)),
            Cell("; ".join(_instance(top) for top in e["top"][:_NAMED]), words=True),
        ]
        for e in examples
    ]
    words = ("Bag", "Truth", "Predicted")
    head = [*(Cell(w, words=True) for w in words), Cell("Instances"), Cell("Effective")]
    table = Table(f"attention-{site}", f"Test bags of {site}.", [*head, Cell("Weightiest instances", words=True)], rows)
    maps = [
        Picture(source, f"attention over {e['id']}", caption=str(e["id"]).rpartition("/")[2], lines=[_verdict(e)])
        for e in examples
        if (source := image_source(e.get("map")))
    ]
    return [Heading(site), table, *([Strip("Attention over the slide", maps, large=True)] if maps else [])]


def _verdict(e: Mapping[str, Any]) -> str:
    return f"{plain(str(e['truth']))}, taken for {plain(str(e['predicted']))}"


def _instance(top: Mapping[str, Any]) -> str:
    at = top.get("at")
    where = f" at {at[0]:,}, {at[1]:,}" if at else ""
    return f"{top.get('name') or '#' + str(int(top['index']))} ({100 * float(top['weight']):.0f} %{where})"


def _range(low: Any, high: Any) -> str:
    low, high = finite(low), finite(high)
    return "" if low is None or high is None else f"{low:,.0f}–{high:,.0f}"
