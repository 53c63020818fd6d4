"""From the sites' folders to one manifest: drafted, labels mapped to the study's classes, split, with a scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from morphfed.core.errors import DataError
from morphfed.core.progress import Event, Reporter, silent
from morphfed.data.decode import decode
from morphfed.data.manifest import Manifest
from morphfed.data.ontology import load_ontology
from morphfed.data.published import take_published
from morphfed.data.quality.duplicates import twins
from morphfed.data.quality.measure import hash_all
from morphfed.data.scale import SiteScale, estimate_scale
from morphfed.data.sources import SOURCES
from morphfed.data.splits import assign_splits, may_train

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from morphfed.experiment.study import SiteConfig, Study

    Hashes = dict[Path, NDArray[np.bool_] | None]

LeftOut = dict[str, Counter[tuple[str, str]]]
"""Site → (source label, reason) → images."""


_FIELD_PX = 8


def data_root(study: Study, study_folder: Path) -> Path:
    """The folder that the sites' paths are relative to; ``~`` and environment variables are expanded."""
    from os.path import expandvars

    root = Path(expandvars(study.data.root)).expanduser()
    return root if root.is_absolute() else (study_folder / root)


def draft_sites(study: Study, study_folder: Path, *, report: Reporter = silent) -> tuple[Manifest, list[str]]:
    """One manifest of all sites' images, with the sentences that say what was guessed.

    Raises:
        DataError: a site's folder is missing or holds no images; names the site.
    """
    manifests, notes = [], []
    root = data_root(study, study_folder)
    for name, site in study.sites.items():
        manifest, said = _draft_site(name, site, root, report, task=study.task)
        manifests.append(manifest)
        notes += [f"{name}: {sentence}" for sentence in said]
    manifest = Manifest.concat(manifests)
    if study.data.split.leaky_published is not None:
        manifest, said = take_published(manifest, root / Path(study.data.split.leaky_published).expanduser())
        notes += said
    return manifest, notes


def _draft_site(name: str, site: SiteConfig, root: Path, report: Reporter, *, task: str) -> tuple[Manifest, list[str]]:
    from morphfed.data.drafting import draft

    path = Path(site.path).expanduser()
    path = path if path.is_absolute() else root / path
    if task == "mil":
        from morphfed.experiment.bags import draft_site

        return draft_site(name, site, path, report)
    if path.suffix in {".parquet", ".csv"}:
        manifest = Manifest.read(path)
        rows = manifest.for_site(name) if name in manifest.sites else manifest
        if len(set(rows.frame["site"])) > 1:
            raise DataError(
                f"Site '{name}': {path} holds the sites {', '.join(manifest.sites)}, none of that name.",
                fix=f"rename sites.{name}, or correct the manifest's 'site' column.",
            )
        frame = rows.frame.assign(site=name)
        if site.um_per_px is not None:
            frame = frame.assign(um_per_px=site.um_per_px)
        return Manifest(frame, rows.root), [f"{len(frame)} images from the manifest {path.name}"]
    if not path.is_dir():
        raise DataError(
            f"Site '{name}': the folder {path} does not exist.",
            fix=f"correct sites.{name}.path or data.root in the study file.",
        )
    how = {"source": site.source, "um_per_px": site.um_per_px, "options": site.options}
    drafted = draft(path, site=name, report=report, masks=task == "segmentation", **how)  # type: ignore[arg-type]
    said = list(drafted.guesses)
    said += [f"{len(paths)} files skipped: {why}" for why, paths in drafted.skipped.items()]
    return drafted.manifest, said


def label_and_split(
    manifest: Manifest, study: Study, *, look: bool = True, report: Reporter = silent
) -> tuple[Manifest, LeftOut, list[str]]:
    """Map labels to the study's classes and assign the parts.

    Args:
        manifest: all sites.
        study: classes, held-out sites, shares.
        look: read the training sites' images so that near-duplicates stay on one side of the split.
        report: progress.

    Returns:
        The manifest with ``split`` and two more columns: ``class``, a class of the study or null, and ``parent``, a
        coarser label that the image is trained with, or null; what was left out; sentences of the split.
    """
    frame, left_out = _label(manifest, study)
    labelled = Manifest(frame, manifest.root)
    _refuse_empty(labelled, study)
    divided, notes = split(labelled, study, left_out, look=look, report=report)
    return divided, left_out, notes


def split(
    manifest: Manifest, study: Study, left_out: LeftOut, *, look: bool, report: Reporter
) -> tuple[Manifest, list[str]]:
    """Assign the parts to all rows with a ``class``, by which they are stratified, and then to those with a ``parent``.

    Args:
        manifest: with the columns ``class``, null for what takes no part, and ``parent``, null but for images that
            only train.
        study: held-out sites, shares.
        left_out: images that cannot train without tearing a patient apart are added.
        look: read the training sites' images so that near-duplicates stay on one side.
        report: progress.

    Returns:
        The manifest, its rows in another order, and sentences of the split.
    """
    frame = manifest.frame
    usable = Manifest(frame[frame["class"].notna()], manifest.root)
    coarse = Manifest(frame[frame["parent"].notna()], manifest.root)
    held = usable.frame["site"].isin(list(study.held_out))
    # A held-out site is all test, whatever split its source prescribes; training sites keep theirs.
    outside = Manifest(usable.frame[held].assign(split="test"), manifest.root)
    fractions = {
        "train": study.data.split.train,
        "validation": study.data.split.validation,
        "test": study.data.split.test,
    }
    inside = usable.where(~held)
    close = look and study.data.split.copies_together
    hashes = _hashes([*inside.files(), *coarse.files()], report) if close else None
    assigned, notes = assign_splits(inside, fractions, study.data.split.seed, "class", _twins(inside, hashes))
    rest = Manifest(frame[frame["class"].isna() & frame["parent"].isna()].assign(split=None), manifest.root)
    joined = _join_training(assigned, coarse, hashes, left_out)
    return Manifest.concat([assigned, outside, joined, rest]), list(notes.sentences)


def _label(manifest: Manifest, study: Study) -> tuple[pd.DataFrame, LeftOut]:
    """Each row's class or coarser label (columns ``class`` and ``parent``), and the count of those without either."""
    import pandas as pd

    ontology = load_ontology()
    parents = ontology.parents_of(study.classes) if study.data.coarse == "parent" else {}
    frame = manifest.frame.copy()
    left_out: LeftOut = {site: Counter() for site in study.sites}
    classes: list[str | None] = []
    coarser: list[str | None] = []
    nodes = column(frame, "label")
    for site, own, node, source in zip(frame["site"], frame["source_label"], nodes, frame["source"], strict=True):
        target = None if node is None else ontology.to_class(node, study.classes)
        trained = node if node in parents and site not in study.held_out else None
        classes.append(target)
        coarser.append(trained)
        if node is None:
            why = ontology.unmapped(own, source)
            reason = (
                f"label '{own}' is mapped to no cell type: {why}" if why else f"label '{own}' is not in the ontology"
            )
            left_out[site][own, reason] += 1
        elif target is None and trained is None:
            left_out[site][own, _why_not(node, study)] += 1
    frame["class"] = pd.Series(classes, dtype=object)
    frame["parent"] = pd.Series(coarser, dtype=object)
    return frame, left_out


def _why_not(node: str, study: Study) -> str:
    """Why an image of cell type ``node``, which is in no class, takes no part."""
    below = load_ontology().classes_below(node, study.classes)
    if study.data.coarse == "leave_out" or not below:
        return f"'{node}' is not a class of this study"
    if len(below) == 1:
        return f"'{node}' may be '{below[0]}', and may be none of the classes"
    if len(below) == len(study.classes):
        return f"'{node}' may be any of the classes: it tells nothing"
    return HELD_OUT_COARSE.format(node)


HELD_OUT_COARSE = "'{}' is a coarser name of several classes: trained with, never tested with"
"""Why a held-out site's image is left out that would be trained with at a training site."""


def _join_training(assigned: Manifest, coarse: Manifest, hashes: Hashes | None, left_out: LeftOut) -> Manifest:
    """The images with a coarser label: in the training part, or left out where that would tear a patient apart.

    The split is made without them, so that what is tested is the same with and without these images.
    """
    import pandas as pd

    if not len(coarse):
        return coarse
    both = Manifest.concat([assigned, coarse])
    extra = [False] * len(assigned) + [True] * len(coarse)
    fits = may_train(both, extra, _twins(both, hashes))[len(assigned) :]
    frame = coarse.frame.copy()
    for site, own, given, ok in zip(frame["site"], frame["source_label"], column(frame, "split"), fits, strict=True):
        if not ok:
            where = f"its source's own split puts it into {given}" if given not in (None, "train") else ""
            reason = where or "the rest of its patient, slide or copies is in validation or test"
            left_out[site][own, f"coarser label; {reason}"] += 1
    frame["split"] = ["train" if ok else None for ok in fits]
    kept = [parent if ok else None for parent, ok in zip(frame["parent"], fits, strict=True)]
    frame["parent"] = pd.Series(kept, index=frame.index, dtype=object)
    return Manifest(frame, coarse.root)


def _hashes(files: Sequence[Path], report: Reporter) -> Hashes:
    return dict(zip(files, hash_all(list(files), report), strict=True))


def _twins(manifest: Manifest, hashes: Hashes | None) -> list[str | None] | None:
    """Near-duplicates within each site; two sites never share a split, the data check names copies between them."""
    if hashes is None:
        return None
    found: list[str | None] = [None] * len(manifest.frame)
    files = manifest.files()
    for site in manifest.sites:
        rows = [i for i, name in enumerate(manifest.frame["site"]) if name == site]
        for row, name in zip(rows, twins([hashes[files[i]] for i in rows]), strict=True):
            found[row] = name
    return found


def _refuse_empty(labelled: Manifest, study: Study) -> None:
    frame = labelled.frame
    counts, coarser = (Counter(frame["site"][frame[name].notna()]) for name in ("class", "parent"))
    for site in study.sites:
        if counts[site] == 0:
            only = f" ({coarser[site]} have a coarser one, with which nothing can be tested)" if coarser[site] else ""
            raise DataError(
                f"Site '{site}': none of its images has a label of this study's classes "
                f"({', '.join(study.classes)}){only}.",
                fix=f"check sites.{site}.path and sites.{site}.source; `morphfed data init` shows what it finds there.",
            )


def site_scales(manifest: Manifest, study: Study, *, report: Reporter = silent) -> dict[str, SiteScale]:
    """µm per pixel of each site: given, or estimated from its nuclei, or unknown."""
    scales = {}
    for done, site in enumerate(study.sites):
        report(Event("scale", done, len(study.sites), f"scale of {site}"))
        rows = manifest.for_site(site)
        given = rows.frame["um_per_px"].dropna()
        if len(given):
            scales[site] = SiteScale(float(given.median()), "given")
            _refuse_tiny_field(site, study.data.field_um, float(given.median()))
        elif not study.data.field_um or not study.data.estimate_scale or not _shows_nuclei(rows):
            scales[site] = SiteScale(None, "none")
        else:
            usable = rows.where(rows.frame["class"].notna() & rows.frame["sha256"].notna())
            scales[site] = estimate_scale(usable.files(), decode=decode, seed=study.data.split.seed)
    report(Event("scale", len(study.sites), len(study.sites), "scale of the sites"))
    return scales


def _refuse_tiny_field(site: str, field_um: float, um_per_px: float) -> None:
    """A field of a few pixels is a slip: 25 µm, meant for a cell, cut from an MRI slice."""
    if field_um and field_um / um_per_px < _FIELD_PX:
        raise DataError(
            f"Site '{site}': data.field_um = {field_um:g} µm is {field_um / um_per_px:.2g} pixels there "
            f"({um_per_px:g} µm a pixel).",
            fix="set data.field_um = 0 to keep the whole picture, or give a field that holds what is to be seen.",
        )


def _shows_nuclei(rows: Manifest) -> bool:
    """Whether the site's pictures are of cells, as far as their sources say: a scale can only be estimated there."""
    known = set(SOURCES.names())
    return all(SOURCES[name].nuclei for name in set(rows.frame["source"]) if name in known)


def column(frame: pd.DataFrame, name: str) -> Sequence[str | None]:
    """A text column with None where it is null, under every pandas."""
    return [None if missing else str(v) for v, missing in zip(frame[name], frame[name].isna(), strict=True)]
