"""Which adapter reads a folder, and which folders of a tree are sites."""

from __future__ import annotations

import re
from pathlib import Path

from morphfed.data.ontology import load_ontology
from morphfed.data.sources.base import SOURCES, Folder, Source, patient_of, split_of

SURE = 0.3
"""The least confidence with which a source is taken without being asked for."""


def rank_sources(found: Folder) -> list[tuple[Source, float]]:
    """All sources with their confidence that they can read the folder, the surest first."""
    rated = [(kind(), kind().detect(found)) for _, kind in SOURCES.items()]
    return sorted(rated, key=lambda pair: (-pair[1], pair[0].name))


def site_name(text: str) -> str:
    """A name of the form ``[a-z0-9_-]+`` made from a folder's name.

    Example:
        >>> site_name("Hôpital Nord (2)")
        'h-pital-nord-2'
    """
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-") or "site"


def find_sites(root: Path) -> dict[str, Path]:
    """Name → folder of every site at or below ``root``, without reading images."""
    root = Path(root)
    places = _sites_below(Folder.scan(root))
    names = [site_name(" ".join(p.relative_to(root).parts) or p.absolute().name) for p in places]
    return {
        name if names.count(name) == 1 else f"{name}-{names[:i].count(name) + 1}": place
        for i, (name, place) in enumerate(zip(names, places, strict=True))
    }


def _sites_below(found: Folder) -> list[Path]:
    """``found`` where it is one site; else its sites. A folder without images counts as a (refused) site."""
    if _is_site(found):
        return [found.path]
    below: list[Path] = []
    for child in sorted(p for p in found.path.iterdir() if p.is_dir()):
        upwards = child.is_symlink() and found.path.resolve().is_relative_to(child.resolve())
        if not upwards and not child.name.startswith((".", "__MACOSX")):
            below += _sites_below(Folder.scan(child))
    recognised = any(rank_sources(Folder.scan(place))[0][1] >= SURE for place in below)
    return below if recognised else [found.path]


def _is_site(found: Folder) -> bool:
    children = found.children()
    if not children or any(not found.parts(image) for image in found.images):
        return True
    names = [child.name for child in children]
    table = load_ontology().table_for(names)
    if any(load_ontology().map(n, table) or split_of(n) or patient_of((n,)) for n in names):
        return True
    here, below = _published(found), [_published(Folder.scan(child)) for child in children]
    if all(below):  # the two laboratories of segmentation_WBC are two sites, the parts of C-NMC are one
        return here is not None and here.whole and {source.name for source in below if source} == {here.name}
    return here is not None


def _published(found: Folder) -> Source | None:
    """The source of a published set that surely reads the folder, if one does."""
    best, confidence = rank_sources(found)[0]
    return best if confidence >= 0.8 and best.name not in {"folders", "cellavision"} else None
