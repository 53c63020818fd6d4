"""What went in: images per class, part and site, how they look, what was left out, what the check found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from morphfed.reporting.blocks import (
    Block,
    Bullets,
    Cell,
    Details,
    Figure,
    Heading,
    Page,
    Picture,
    Section,
    Strip,
    Table,
    Text,
)
from morphfed.reporting.figures import dodged
from morphfed.reporting.results import Results
from morphfed.reporting.svg import Look
from morphfed.reporting.tasks import kind_of
from morphfed.reporting.text import MISSING, capital, count, counted, finite, listed, plain, score, shortened

_PARTS = ("train", "validation", "test")
_IMAGE = re.compile(r"data:image/(?:jpeg|png|webp);base64,[A-Za-z0-9+/=]+")
_SCALE = {
    "given": "given",
    "nucleus": "from the nuclei",
    "none": "unknown",
}
_CHANNELS = {
    "red": Look("#b0303f", "o"),
    "green": Look("#2d7d46", "s", (5, 2)),
    "blue": Look("#2c5aa0", "D", (1.5, 1.5)),
}
_ROLES = {"train": "training", "held_out": "held out", "each": "in turn"}
_ORDER = {"error": 0, "warning": 1, "info": 2}


def image_source(value: object) -> str:
    """An image that is inside the results; anything else (an address, a script) is not shown."""
    return value if isinstance(value, str) and _IMAGE.fullmatch(value) else ""


def data(page: Page) -> Section:
    """Sites, counts, samples, colour, what was left out, findings of the check."""
    from morphfed.reporting.sections import bags

    r = page.results
    section = Section("data", "The data")
    if not r.sites:
        section.blocks.append(Text("results.json describes no site's data."))
        return section
    section.blocks.append(bags.sites_table(r) if r.task in ("mil", "survival") else _sites_table(r))
    section.blocks += _counts(r)
    if coarse := _coarse(r):
        section.blocks.append(coarse)
    strips = _samples(r)
    if strips:
        section.blocks += [Heading(kind_of(r).pictures), *strips]
    if figure := _colour(page):
        section.blocks.append(figure)
    section.blocks += [
        Heading("What was left out"),
        _left_out(r),
        Heading("Findings of the data check"),
        *_findings(r),
    ]
    if notes := [str(n) for n in r.data.get("notes") or ()]:
        section.blocks.append(Details(f"{counted(len(notes), 'note')} of preparing the data", [Bullets(notes)]))
    return section


def _sites_table(r: Results) -> Table:
    rows = []
    for site in r.all_sites:
        s = r.sites.get(site, {})
        size = s.get("image_px")
        patients = s.get("patients")
        rows.append(
            [
                Cell(site),
                Cell(_ROLES[r.role(site)], words=True),
                Cell(str(s.get("source") or MISSING), words=True),
                Cell(count(finite(s.get("n")))),
                Cell("unknown" if patients is None else count(patients)),
                Cell(str(s.get("cluster_unit") or MISSING), words=True),
                Cell(" × ".join(str(v) for v in size) if size else MISSING),
                Cell(score(finite(s.get("um_per_px"))), _SCALE.get(str(s.get("scale_from")), "")),
                Cell(count(finite(s.get("crop_px")))),
            ]
        )
    head = [
        "Site",
        "Role",
        "Source",
        "Images",
        "Patients",
        "Interval by",
        "Picture (px)",
        "µm per pixel",
        "Crop (px)",
    ]
    words = {0, 1, 2, 5}
    note = (
        "Interval by: what the bootstrap draws. µm per pixel: given by the site or its source, or estimated there "
        "from the size of the nuclei. Crop: side of the square that is cut from a picture before it is resized, "
        "so that every site shows the same field of view; without a scale the picture is taken whole."
    )
    return Table("sites", "The sites.", [Cell(h, words=i in words) for i, h in enumerate(head)], rows, note)


def _counts(r: Results) -> list[Block]:
    """One table a handful of sites: classes or structures as rows, the parts of each site as columns."""
    tables: list[Block] = []
    shown, key = (r.structures, "structures") if r.structures else (r.classes, "classes")
    sites = [s for s in r.all_sites if r.sites.get(s, {}).get(key)]
    for start in range(0, len(sites), 4):
        some = sites[start : start + 4]
        parts = {s: [p for p in _PARTS if s not in r.held_out or _total(r, s, p)] for s in some}
        rows = [[Cell(plain(c)), *(Cell(count(_n(r, s, c, p))) for s in some for p in parts[s])] for c in shown]
        rows.append(
            [
                Cell("all", strong=True),
                *(Cell(count(_total(r, s, p)), strong=True) for s in some for p in parts[s]),
            ]
        )
        short = {"train": "train", "validation": "val.", "test": "test"}
        head = [Cell("Structure" if r.structures else "Class"), *(Cell(short[p]) for s in some for p in parts[s])]
        groups = [Cell(""), *(Cell(s, span=len(parts[s])) for s in some)]
        tables.append(
            Table(
                f"counts-{start // 4}",
                f"Images by {'structure shown' if r.structures else 'class'} and part.",
                head,
                rows,
                groups=groups,
            )
        )
    return tables


def _coarse(r: Results) -> Table | None:
    """Training images whose label is a coarser name of several classes; None where no site has one."""
    rows = [
        [
            Cell(site),
            Cell(plain(str(entry["label"])), words=True),
            Cell(count(finite(entry.get("n")))),
            Cell(listed(plain(str(c)) for c in entry.get("classes") or ()), words=True),
            Cell(listed(plain(str(c)) for c in entry.get("others") or ()) or MISSING, words=True),
        ]
        for site in r.all_sites
        for entry in r.sites.get(site, {}).get("coarse") or ()
    ]
    if not rows:
        return None
    words = ("Label", "One of the classes", "Not of the classes, but so named too")
    head = [Cell("Site"), Cell(words[0], words=True), Cell("Images"), *(Cell(w, words=True) for w in words[1:])]
    note = (
        "They train by the probability of all classes below the label together; they are in no class count and "
        "nothing is tested with them. A cell of a type in the last column would be learned as one of the classes."
    )
    return Table("coarse", "Training images with a coarser label, beside those of the table above.", head, rows, note)


def _n(r: Results, site: str, name: str, part: str) -> int:
    block = r.sites[site].get("structures" if r.structures else "classes") or {}
    return int((block.get(name) or {}).get(part) or 0)


def _total(r: Results, site: str, part: str) -> int:
    if r.structures:  # an image may show several
        return int((r.sites[site].get("parts") or {}).get(part) or 0)
    return sum(_n(r, site, c, part) for c in r.classes)


def _samples(r: Results) -> list[Strip]:
    strips = []
    for site in r.all_sites:
        pictures = []
        for sample in r.sites.get(site, {}).get("samples") or ():
            name = plain(str(sample.get("class") or "cell"))
            if source := image_source(sample.get("image")):
                pictures.append(Picture(source, f"{name} of {site}", caption=name))
        if pictures:
            name = f"{site} (held out)" if r.role(site) == "held_out" else site
            strips.append(Strip(name, pictures, large=bool(r.structures)))
    return strips


def _colour(page: Page) -> Figure | None:
    """Mean red, green and blue of each site's pictures."""
    sites = page.results.sites
    known = {s: c for s in page.results.all_sites if (c := sites.get(s, {}).get("colour")) and c.get("mean")}
    if not known:
        return None
    series = []
    for i, look in enumerate(_CHANNELS.values()):
        points = []
        for c in known.values():
            mean, sd = float(c["mean"][i]), float((c.get("sd") or (0, 0, 0))[i])
            points.append((mean, max(0.0, mean - sd), min(1.0, mean + sd)))
        series.append((look, points))
    said = (f"{s} " + "/".join(score(float(v), 2) for v in c["mean"]) for s, c in known.items())
    svg = dodged(
        list(known),
        series,
        key="colour",
        alt=f"Mean red/green/blue: {'; '.join(said)}",
        xlabel="mean of the channel (0 dark, 1 bright)",
        limits=(0.0, 1.0),
    )
    caption = "Colour of the pictures: mean of red, green and blue at each site; bars are one standard deviation."
    legend = [(page.swatch(look), name) for name, look in _CHANNELS.items()]
    return Figure("colour", caption, [svg], legend, wide=True)


def _left_out(r: Results) -> Block:
    rows = [
        [
            Cell(site),
            Cell(str(o.get("source_label")), words=True),
            Cell(count(finite(o.get("n")))),
            Cell(str(o.get("why") or ""), words=True),
        ]
        for site in r.all_sites
        for o in r.sites.get(site, {}).get("left_out") or ()
    ]
    if not rows:
        return Text("No image was left out.")
    head = [Cell("Site"), Cell("The site's label", words=True), Cell("Images"), Cell("Why", words=True)]
    return Table("left-out", "Images that take no part in the study.", head, rows)


def _findings(r: Results) -> list[Block]:
    check: Mapping[str, Any] = r.data.get("check") or {}
    findings: Sequence[Mapping[str, Any]] = check.get("findings") or ()
    if r.over_network:
        return [Text("Each site checks its own images (morphfed data check); what it finds stays there.")]
    if not check or check.get("status") == "not run":
        return [Text("The data were not checked in this run.")]
    if not findings:
        return [Text("The check found nothing to report.")]
    rows = []
    for f in sorted(findings, key=lambda f: _ORDER.get(str(f.get("level")), 3)):
        level = str(f.get("level") or "")
        examples = [str(e) for e in f.get("examples") or ()]
        rows.append(
            [
                Cell(capital(level), strong=level == "error"),
                Cell(str(f.get("site") or "all"), words=True),
                Cell(count(finite(f.get("count")))),
                Cell(str(f.get("message") or f.get("code") or ""), shortened(examples, 3), words=True),
                Cell(str(f.get("fix") or ""), words=True),
            ]
        )
    head = [
        Cell("Level"),
        Cell("Site", words=True),
        Cell("Count"),
        Cell("Finding, examples", words=True),
        Cell("What to do", words=True),
    ]
    table = Table("findings", f"{counted(len(rows), 'finding')} of the check made before training.", head, rows)
    return [table] if len(rows) <= 12 else [Details(f"All {len(rows)} findings", [table], open=True)]
