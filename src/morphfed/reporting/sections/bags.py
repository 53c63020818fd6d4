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
    chosen = _of_folds(r) if r.folds else _shown(r)
    if chosen is None:
        return None
    model, seed, sites = chosen
    section = Section("attention", "Where the model looked")
    whose = "bags of each site by the model trained without it" if r.folds else "test bags"
    section.blocks.append(
        Text(
            f"Attention of {model.title} (seed {seed}) over the instances of a few {whose}. It says which "
            "instances the prediction was made from, not that they show disease. Effective: over how many instances "
            "the weights are spread, 1 / Σ a²; the same as Instances where all count alike."
        )
    )
    for site, examples in sites.items():
        section.blocks += _of_site(r, site, examples)
    return section


_Looked = tuple[Model, int, Mapping[str, Sequence[Mapping[str, Any]]]]
"""A model, its seed, and a few bags of each site."""


def _shown(r: Results) -> _Looked | None:
    """The first federated model that was looked into, else the first of any kind."""
    for model in [*r.of_kind("federated"), *r.of_kind("pooled"), *r.singles]:
        for unit in r.units_of(model):
            sites = {site: block.get("attention") or () for site, block in (unit.get("sites") or {}).items()}
            if any(sites.values()):
                return model, int(unit["seed"]), sites
    return None


def _of_folds(r: Results) -> _Looked | None:
    """What the folds say together: each site by the model that was trained without it."""
    looked: Sequence[Mapping[str, Any]] = r.raw.get("attention") or ()
    models = {model.key: model for model in r.arms}
    if not looked or looked[0]["model"] not in models:
        return None
    return models[looked[0]["model"]], int(looked[0]["seed"]), {e["held_out"]: e["bags"] for e in looked}


def _of_site(r: Results, site: str, examples: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not examples:
        return []
    rows = [
        [
            Cell(str(e["id"]).removeprefix(f"{site}/"), words=True),
            Cell(plain(str(e["truth"])), words=True),
            Cell(plain(str(e["predicted"])), words=True, strong=_mistaken(r, e)),
            Cell(count(finite(e["n"]))),
            Cell(score(finite(e["effective"]), 1)),
            Cell("; ".join(_instance(top) for top in e["top"][:_NAMED]), words=True),
        ]
        for e in examples
    ]
    words = ("Bag", "Truth", "Predicted")
    head = [*(Cell(w, words=True) for w in words), Cell("Instances"), Cell("Effective")]
    caption = f"{'Bags' if r.folds else 'Test bags'} of {site}."
    table = Table(f"attention-{site}", caption, [*head, Cell("Weightiest instances", words=True)], rows)
    maps = [
        Picture(source, f"attention over {e['id']}", caption=str(e["id"]).rpartition("/")[2], lines=[_verdict(r, e)])
        for e in examples
        if (source := image_source(e.get("map")))
    ]
    return [Heading(site), table, *([Strip("Attention over the slide", maps, large=True)] if maps else [])]


def _mistaken(r: Results, e: Mapping[str, Any]) -> bool:
    """A survival curve is not right or wrong about one patient."""
    return r.task != "survival" and e["predicted"] != e["truth"]


def _verdict(r: Results, e: Mapping[str, Any]) -> str:
    joined = "predicted:" if r.task == "survival" else "taken for"
    return f"{plain(str(e['truth']))}, {joined} {plain(str(e['predicted']))}"


def _instance(top: Mapping[str, Any]) -> str:
    at = top.get("at")
    where = f" at {at[0]:,}, {at[1]:,}" if at else ""
    return f"{top.get('name') or '#' + str(int(top['index']))} ({100 * float(top['weight']):.0f} %{where})"


def _range(low: Any, high: Any) -> str:
    low, high = finite(low), finite(high)
    return "" if low is None or high is None else f"{low:,.0f}–{high:,.0f}"
