"""Noise on what travelled: what each arm added, where, and what it guarantees, which may be nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from morphfed.reporting.blocks import Block, Bullets, Cell, Details, Page, Section, Table, Text
from morphfed.reporting.results import Model, Results
from morphfed.reporting.text import counted, finite

NO_GUARANTEE = "none: no formal guarantee"


def noise(page: Page) -> Section | None:
    """Table of noise and ε by arm; None where no arm added any."""
    found = {m: told for m in page.results.arms if (told := _told(page.results, m))}
    if not found:
        return None
    blocks: list[Block] = [Text(_LEAD), _table(found), Bullets([_sentence(m, told) for m, told in found.items()])]
    if spent := {m: _by_round(page.results, m) for m, told in found.items() if told.get("epsilon") is not None}:
        blocks.append(Details("ε by round", [_rounds(spent)]))
    return Section("noise", "Noise on what travelled", blocks)


_LEAD = (
    "Noise hides what a single site's data did to an upload. How well is a number, ε at a small δ, only where the "
    "change of a site was cut to a known length before: the smaller ε, the less an upload tells; far above 10 it "
    "promises little. Noise in proportion to the weights themselves has no such number, however strong it is."
)


def _told(r: Results, model: Model) -> dict[str, Any]:
    """What an arm added: ``unit.json``'s block, or HistoFL's keys; {}: nothing."""
    units = r.units_of(model)
    moved = [u for u in units if u.get("bytes_up")]
    if not moved:
        return {}
    found = next((u["noise"] for u in moved if u.get("noise")), None)
    if found is not None:
        spent = [e for u in moved if (e := finite((u.get("noise") or {}).get("epsilon"))) is not None]
        return {**found, "epsilon": max(spent) if spent else None, "rounds": moved[0].get("rounds")}
    arm = (r.config.get("arms") or {}).get(model.arm) or {}
    keys: Mapping[str, Any] = arm.get("config") or {}
    if arm.get("algorithm") == "histofl" and (alpha := finite(keys.get("alpha"))):
        return {"kind": "histofl", "alpha": alpha, "placement": keys.get("noise"), "biases": keys.get("biases")}
    return {}


def _table(found: Mapping[Model, Mapping[str, Any]]) -> Table:
    rows = [
        [Cell(m.title), *(Cell(text, words=True) for text in (_what(t), _where(t), _scale(t))), Cell(_epsilon(t))]
        for m, t in found.items()
    ]
    head = [Cell("Arm"), *(Cell(h, words=True) for h in ("Noise", "Added", "Standard deviation")), Cell("ε")]
    note = (
        "ε: of one site that sent an upload in every round, of all its rounds together; the largest over seeds. Each "
        "seed's training is an account of its own: who sees the uploads of several must add them."
    )
    return Table("noise", "Noise that each arm added to what travelled, and what it guarantees.", head, rows, note)


def _what(told: Mapping[str, Any]) -> str:
    if told["kind"] == "calibrated":
        return f"Gaussian, the site's change cut to length {told['clip']:g}"
    biases = "all trained weights" if told.get("biases") else "trained weights without biases"
    return f"Gaussian in proportion to each tensor's own spread; {biases}"


def _where(told: Mapping[str, Any]) -> str:
    return "by the coordinator" if told.get("placement") == "unweighted" else "by each site, before it sent"


def _scale(told: Mapping[str, Any]) -> str:
    if told["kind"] == "calibrated":
        return f"{told['std']:.3g} a number"
    how = {"unweighted": ", not weighted, as published", "weighted": ", weighted"}.get(str(told.get("placement")), "")
    return f"{told['alpha']:g} × the tensor's{how}"


def _epsilon(told: Mapping[str, Any]) -> str:
    value = finite(told.get("epsilon"))
    return NO_GUARANTEE if value is None else f"{value:.3g} at δ = {told['delta']:g}"


def _sentence(model: Model, told: Mapping[str, Any]) -> str:
    if told["kind"] != "calibrated":
        by = " The coordinator saw the uploads without it." if told.get("placement") == "unweighted" else ""
        return (
            f"{model.title}: no (ε, δ) holds. The noise follows private weights and nothing was cut to a known length, "
            f"so what an upload tells of a site is not bounded.{by}"
        )
    seed = (
        " The noise was drawn from the study's seed, so that the run repeats: it protects from nobody who knows the "
        "seed."
        if told.get("draw") == "study"
        else ""
    )
    return (
        f"{model.title}: after {counted(int(told['rounds'] or 0), 'round')} ε = {told['epsilon']:.3g} at δ = "
        f"{told['delta']:g}. The unit is a site: an upload of its data and of any other data in their place can hardly "
        "be told apart, also by the coordinator. It covers the tensors of the uploads; numbers of images, losses, "
        f"validation scores and other counts in the ledger went exactly.{seed}"
    )


def _by_round(r: Results, model: Model) -> dict[int, float]:
    history = next((u.get("history") or () for u in r.units_of(model) if u.get("noise")), ())
    return {int(e["round"]): v for e in history if (v := finite(e.get("epsilon"))) is not None}


def _rounds(spent: Mapping[Model, Mapping[int, float]]) -> Table:
    numbers = sorted({number for of_model in spent.values() for number in of_model})
    rows = [[Cell(str(n)), *(Cell(f"{of[n]:.3g}" if n in of else "–") for of in spent.values())] for n in numbers]
    head = [Cell("Round"), *(Cell(m.title) for m in spent)]
    return Table("epsilon", "ε that a site has spent after each round, at the δ of its arm.", head, rows)
