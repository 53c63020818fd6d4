"""What the arms cost: steps, images, seconds, and what moved between sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from morphfed.reporting.blocks import Block, Bullets, Cell, Details, Page, Section, Table, Text
from morphfed.reporting.results import Model, Results
from morphfed.reporting.text import MISSING, count, counted, duration, finite, listed, megabytes, plain, score

EQUAL = 1.05
"""Passes over the training images of two arms count as equal up to this ratio."""


@dataclass(frozen=True)
class Cost:
    """An arm's cost in one seed (mean over seeds); a local arm's is that of all its sites together."""

    steps: float | None
    images: float | None
    passes: float | None
    seconds: float | None
    up: float | None
    down: float | None
    parameters: float | None
    rounds: float | None


def cost(page: Page) -> Section:
    """Equal-budget table, bytes, rejected uploads, warnings, units that failed."""
    r = page.results
    section = Section("cost", "What it cost, and what moved")
    section.blocks += [Text(_budget_sentence(r)), _table(r)]
    if shared := _shared_counts(r):
        section.blocks.append(Text(shared))
    if coded := _coded(r):
        section.blocks.append(Text(coded))
    section.blocks += _events(r)
    return section


def arm_cost(r: Results, model: Model) -> Cost:
    """Cost of one arm: summed over its units of a seed, then the mean over seeds."""
    units = r.units_of(model)
    by_seed: dict[int, list[Mapping[str, Any]]] = {}
    for unit in units:
        by_seed.setdefault(int(unit["seed"]), []).append(unit)

    def total(key: str) -> float | None:
        sums = [[v for u in group if (v := finite(u.get(key))) is not None] for group in by_seed.values()]
        return fmean([sum(s) for s in sums if s]) if any(sums) else None

    available = _available(r, by_seed)
    images = total("images_seen")
    passes = images / available if images is not None and available else None
    some = units[0] if units else {}
    return Cost(
        total("steps"),
        images,
        passes,
        total("seconds"),
        total("bytes_up"),
        total("bytes_down"),
        finite(some.get("parameters")),
        finite(some.get("rounds")),
    )


def _available(r: Results, by_seed: Mapping[int, Sequence[Mapping[str, Any]]]) -> float:
    """Training images that the units of a seed had (a site's count in every fold), mean over seeds."""
    sums = [sum(training_images(r, s) for u in units for s in u.get("trained_on") or ()) for units in by_seed.values()]
    return fmean(sums) if sums else 0.0


def training_images(r: Results, site: str) -> int:
    """Images of a site's training part, those with a coarser label among them."""
    block = r.sites.get(site, {})
    if "parts" in block:
        return int(block["parts"].get("train") or 0)
    exact = sum(int((c or {}).get("train") or 0) for c in (block.get("classes") or {}).values())
    return exact + coarse_images(r, site)


def coarse_images(r: Results, site: str) -> int:
    """Training images of a site whose label is a coarser name of several classes."""
    return sum(int(entry.get("n") or 0) for entry in r.sites.get(site, {}).get("coarse") or ())


def _budget_sentence(r: Results) -> str:
    passes = {m.title: p for m in r.arms if (p := arm_cost(r, m).passes)}
    if len(passes) < 2:
        return "The arms' budgets cannot be compared: fewer than two have a recorded number of images."
    least, most = min(passes, key=lambda m: passes[m]), max(passes, key=lambda m: passes[m])
    if passes[most] <= EQUAL * passes[least]:
        return (
            f"Equal budget: every arm went over each training image {score(passes[least], 1)} times"
            + (f" (at most {score(passes[most], 1)})" if f"{passes[most]:.1f}" != f"{passes[least]:.1f}" else "")
            + ", so no arm was trained longer than another."
        )
    return (
        f"The budgets differ: {most} went over each training image {score(passes[most], 1)} times, {least} "
        f"{score(passes[least], 1)} times. A difference between these arms may come from that."
    )


def _shared_counts(r: Results) -> str:
    """Which arms' sites sent their class counts, and what they sum to."""
    used: dict[tuple[int, ...], list[str]] = {}
    for model in r.arms:
        for unit in r.units_of(model):
            if (counts := unit.get("class_counts")) and unit.get("bytes_up"):
                names = used.setdefault(tuple(int(n) for n in counts), [])
                names += [model.title] if model.title not in names else []
    said = []
    for counts, names in used.items():
        classes, what = (["background", *r.structures], "pixels") if r.structures else (r.classes, "images")
        each = ", ".join(f"{plain(c)} {count(n)}" for c, n in zip(classes, counts, strict=True))
        said.append(
            f"{listed(names)}: before the first round each site sent its number of training {what} of each class, and "
            f"every site's loss used their sum ({each})."
        )
    return " ".join(said)


def _coded(r: Results) -> str:
    """Which arms' models did not travel as they are."""
    said: dict[str, list[str]] = {}
    for model in r.arms:
        if (arm_cost(r, model).up or 0) > 0 and (how := _how(transfers(r, model.arm))):
            said.setdefault(how, []).append(model.title)
    return " ".join(f"{listed(names)}: {how}. Bytes are those of the coded tensors." for how, names in said.items())


def transfers(r: Results, arm: str) -> tuple[Mapping[str, Any], str]:
    """An arm's ``federation.upload`` (empty in results from before there was a choice) and ``federation.download``."""
    own = ((r.config.get("arms") or {}).get(arm) or {}).get("federation") or {}
    return own.get("upload") or {}, str(own.get("download") or "fp32")


def _how(chosen: tuple[Mapping[str, Any], str]) -> str:
    upload, download = chosen
    share = f"only the largest {100 * (finite(upload.get('share')) or 0):.3g} % of each"
    codes = {
        "bf16": "rounded to bfloat16",
        "fp16": "rounded to float16",
        "int8": "in one byte a number",
        "blocktopk": f"{share} block of 256 numbers, in two bytes each",
        "topk": f"{share} tensor",
    }
    code = str(upload.get("code") or "fp32")
    said = []
    if code != "fp32":
        kept = "stayed at the site for its next upload" if upload.get("error_feedback") else "was lost"
        said.append(f"the sites sent the changes of their weights {codes.get(code, code)}; what that leaves out {kept}")
    if download != "fp32":
        said.append("the sites got the weights rounded to bfloat16")
    return "; ".join(said)


def _table(r: Results) -> Table:
    rows = []
    for model in r.arms:
        c = arm_cost(r, model)
        rows.append(
            [
                Cell(model.title),
                Cell(count(c.parameters)),
                Cell(count(c.rounds)),
                Cell(count(c.steps)),
                Cell(count(c.images)),
                Cell(score(c.passes, 1)),
                Cell(duration(c.seconds)),
                Cell(megabytes(c.up) if c.up else "nothing" if c.up is not None else MISSING),
                Cell(megabytes(c.down) if c.down else "nothing" if c.down is not None else MISSING),
            ]
        )
    head = [
        "Arm",
        "Parameters",
        "Rounds",
        "Gradient steps",
        "Images seen",
        "Passes",
        "Time",
        "Uploaded",
        "Downloaded",
    ]
    together = "sites and folds" if r.folds else "sites"
    note = (
        f"Per seed (mean over seeds), all {together} of an arm together. Passes: images seen over training images. "
        "Uploaded: from the sites to the coordinator; downloaded: the other way. "
    )
    if r.over_network:
        note += (
            "Times are those of the rounds, with all waiting for sites and the network; of local models, of their "
            "sites. What sites told for this report, and models that they were sent to judge, is not counted."
        )
    else:
        note += "Times are of training on this machine, where several runs may have shared the processor."
    if any(m.kind == "pooled" for m in r.arms):
        note += " The pooled arm would need the images themselves to be moved, which is not counted here."
    return Table("cost", "Budget and traffic of every arm.", [Cell(h) for h in head], rows, note)


def _events(r: Results) -> list[Block]:
    blocks: list[Block] = []
    rejected = [(u, x) for u in r.units for x in u.get("rejected") or ()]
    if rejected:
        rows = [
            [
                Cell(str(x.get("site"))),
                Cell(_unit(u), words=True),
                Cell(str(x.get("round"))),
                Cell(str(x.get("reason")), words=True),
            ]
            for u, x in rejected
        ]
        head = [Cell("Site"), Cell("Arm, seed", words=True), Cell("Round"), Cell("Why", words=True)]
        table = Table("rejected", "Uploads that were refused; the round went on without them.", head, rows)
        blocks.append(Details(f"{counted(len(rows), 'rejected upload')}", [table], open=len(rows) <= 10))
    else:
        blocks.append(Text("No upload was rejected."))
    warned = _grouped([(str(w), _unit(u)) for u in r.units for w in u.get("warnings") or ()])
    if warned:
        blocks.append(
            Details(f"{counted(len(warned), 'warning')} of training", [Bullets(warned)], open=len(warned) <= 10)
        )
    if r.missing:
        rows = [[Cell(name), Cell(why, words=True)] for name, why in r.missing]
        caption = "Planned models without results; the arms' numbers are means over finished seeds."
        blocks.append(Table("missing", caption, [Cell("Model"), Cell("Why", words=True)], rows))
    return blocks


def _unit(unit: Mapping[str, Any]) -> str:
    return f"{unit['model']}, seed {unit['seed']}"


def _grouped(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Each message once, with the units that said it."""
    units: dict[str, list[str]] = {}
    for message, unit in pairs:
        units.setdefault(message, []).append(unit)
    return [f"{m} ({listed(u) if len(u) <= 3 else counted(len(u), 'run')})" for m, u in units.items()]
