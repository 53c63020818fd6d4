"""What is said of images that train with a coarser label: one that leaves several of the study's classes possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from morphfed.data.ontology import load_ontology

if TYPE_CHECKING:
    import pandas as pd

    from morphfed.experiment.study import Study


def coarser_labels(study: Study) -> dict[str, tuple[str, ...]]:
    """The labels that images are trained with beside the classes, in a fixed order, and the classes below each."""
    return load_ontology().parents_of(study.classes) if study.data.coarse == "parent" else {}


def coarse_block(study: Study, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """What results and plan say of a site's images with a coarser label.

    Args:
        study: the classes.
        rows: of one site, with the columns ``class``, ``parent`` and ``split``.
    """
    ontology = load_ontology()
    trained = set(rows.loc[rows["split"] == "train", "class"].dropna())
    found = []
    for node, n in rows["parent"].value_counts().items():
        below = ontology.classes_below(str(node), study.classes)
        others = ontology.uncovered(str(node), study.classes)
        unseen = [name for name in below if name not in trained]
        found.append(
            {"label": str(node), "n": int(n), "classes": list(below), "others": list(others), "unseen": unseen}
        )
    return found


def coarse_notes(site: str, block: Iterable[Mapping[str, Any]]) -> list[str]:
    """Where class counts say too little, because a site has classes under a coarser label alone.

    Args:
        site: its name.
        block: of :func:`coarse_block`.
    """
    return [
        f"{site}: {entry['n']} training images are labelled {entry['label']}, none {' or '.join(entry['unseen'])}: "
        "class_balanced and logit_adjusted with train.loss.prior = 'site' take these classes for rare there; "
        "'federation' has the counts of all sites"
        for entry in block
        if entry["unseen"]
    ]
