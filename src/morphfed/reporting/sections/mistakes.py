"""The mistakes that models were surest of, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from morphfed.reporting.blocks import Details, Page, Picture, Section, Strip, Text
from morphfed.reporting.results import Results
from morphfed.reporting.sections.data import image_source
from morphfed.reporting.text import counted, finite, plain, score

SHOWN = 12


@dataclass
class _Mistaken:
    """One image and who got it wrong: model's title → predicted class → confidences over seeds."""

    truth: str
    source: str
    surest: float = 0.0
    by: dict[str, dict[str, list[float]]] = field(default_factory=dict)


def mistakes(page: Page) -> Section | None:
    """Each site's most confident mistakes; every image once, with all models that erred; None: all stayed there."""
    r = page.results
    if r.over_network:
        return None
    section = Section("mistakes", "The most confident mistakes")
    lead = (
        "Each picture is one test image as the models see it, with its label and the models that were wrong about "
        "it: the predicted class, the highest confidence, and in how many seeds. Every model's list holds only "
        "its surest mistakes, so a model that is not named was either right or less sure. A picture that most "
        "models disagree with deserves a second look at its label."
    )
    section.blocks.append(Text(lead, quiet=True))
    first = True
    for site in r.all_sites:
        found = _collect(r, site)
        if found:
            section.blocks.append(_strip(r, site, found, open_=first))
            first = False
    if first:
        section.blocks = [Text("No mistake was recorded.")]
    return section


def _collect(r: Results, site: str) -> dict[str, _Mistaken]:
    found: dict[str, _Mistaken] = {}
    for model in r.judged_at(site):
        for test in r.tests_of(model, site):
            for e in test.get("errors") or ():
                _note(found, model.title, e)
    return found


def _note(found: dict[str, _Mistaken], model: str, e: Mapping[str, Any]) -> None:
    truth, confidence = str(e.get("truth")), finite(e.get("confidence")) or 0.0
    image = found.setdefault(str(e.get("path")), _Mistaken(truth, image_source(e.get("image"))))
    image.source = image.source or image_source(e.get("image"))
    image.surest = max(image.surest, confidence)
    image.by.setdefault(model, {}).setdefault(str(e.get("predicted")), []).append(confidence)


def _strip(r: Results, site: str, found: Mapping[str, _Mistaken], *, open_: bool) -> Details:
    # Pictures are kept for one seed only, so a mistake of another seed may have none.
    surest = sorted(found.items(), key=lambda item: (not item[1].source, -item[1].surest, item[0]))
    pictures = [_picture(r, path, image) for path, image in surest[:SHOWN]]
    name = f"{site} (held out)" if site in r.held_out else site
    shown = f"{len(pictures)} of {len(found)} recorded" if len(found) > len(pictures) else counted(len(found), "image")
    return Details(f"{name}: {shown}", [Strip("", pictures)], open=open_)


def _picture(r: Results, path: str, image: _Mistaken) -> Picture:
    several = len(r.seeds) > 1
    lines = [plain(image.truth)]
    for model, guesses in image.by.items():
        for guess, confidences in guesses.items():
            seeds = f" ({len(confidences)}/{len(r.seeds)})" if several else ""
            lines.append(f"{model}: {plain(guess)} {score(max(confidences), 2)}{seeds}")
    return Picture(
        image.source, f"{plain(image.truth)}, mistaken by {counted(len(image.by), 'model')}", lines=lines, path=path
    )
