"""Every site held out in turn: the studies that such a study is made of, and their view of the same data.

A *fold* is the study in which one site is held out and all others train. Folds share the drafted, split and cached
images: a training site has the same parts in each fold, and a held-out site is all test.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.experiment.assemble import HELD_OUT_COARSE
from morphfed.experiment.prepare import Prepared, refuse_untrainable
from morphfed.training.dataset import ImageSet, pool

if TYPE_CHECKING:
    from morphfed.experiment.study import Study
    from morphfed.experiment.units import Unit


def fold_study(study: Study, site: str) -> Study:
    """The study in which ``site`` alone is held out."""
    title = f"{study.title or study.name}: {site} held out"
    return _holding_out(study, (site,)).model_copy(update={"name": f"{study.name}-{site}", "title": title})


def study_of(unit: Unit, study: Study) -> Study:
    """The study that a unit is trained in; for a shared local model all other sites are held out."""
    if unit.fold:
        return fold_study(study, unit.fold)
    if unit.shared:
        return _holding_out(study, tuple(site for site in study.sites if site not in unit.trained_on))
    return study


def _holding_out(study: Study, sites: tuple[str, ...]) -> Study:
    return study.model_copy(update={"holdout": "named", "held_out": sites})


def hold_out(prepared: Prepared, study: Study) -> Prepared:
    """The same images with every held-out site of ``study`` as test; nothing is read or decoded again."""
    turned = [site for site in study.held_out if prepared.info[site]["role"] == "train"]
    if not turned:
        return prepared
    sets, info, notes = dict(prepared.sets), dict(prepared.info), list(prepared.notes)
    for site in turned:
        sets[site] = _all_test(sets[site])
        info[site] = {**info[site], "role": "held_out", **_counted_as_test(info[site]), **_without_coarse(info[site])}
        split = {note for note in prepared.split_notes if note.startswith(f"{site}: ")}
        notes = [note for note in notes if note not in split]
    return replace(prepared, sets=sets, info=info, notes=notes)


def _all_test(parts: dict[str, ImageSet]) -> dict[str, ImageSet]:
    whole = pool(list(parts.values()))
    nothing = whole.only(np.zeros(len(whole), dtype=np.bool_))
    return {"train": nothing, "validation": nothing, "test": whole.only(whole.exact)}


def _without_coarse(block: dict[str, Any]) -> dict[str, Any]:
    """What a site's block says of images with a coarser label where the site is held out: they are left out."""
    coarse = block.get("coarse")
    if not coarse:
        return {}
    left = [{"source_label": e["label"], "n": e["n"], "why": HELD_OUT_COARSE.format(e["label"])} for e in coarse]
    return {"coarse": [], "n": block["n"] - sum(e["n"] for e in coarse), "left_out": [*block["left_out"], *left]}


def _counted_as_test(block: dict[str, Any]) -> dict[str, Any]:
    """A site's counts by part (``parts``), and by class or structure and part, with every image a test image."""

    def moved(parts: dict[str, int]) -> dict[str, int]:
        return {"train": 0, "validation": 0, "test": sum(parts.values())}

    found = {
        key: {name: moved(p) for name, p in block[key].items()} for key in ("classes", "structures") if key in block
    }
    return found | ({"parts": moved(block["parts"])} if "parts" in block else {})


def refuse_folds(prepared: Prepared, study: Study) -> None:
    """Refuse, before any training, a study with a fold that could not be trained.

    Raises:
        ConfigError: without some site all training images are of one class.
        DataError: a site has nothing to test on.
    """
    if study.holdout == "each":
        for site in study.sites:
            fold = fold_study(study, site)
            refuse_untrainable(hold_out(prepared, fold).sets, fold)
