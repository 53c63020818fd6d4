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
from morphfed.data.quality.duplicates import twins
from morphfed.data.scale import SiteScale, estimate_scale
from morphfed.data.splits import assign_splits

if TYPE_CHECKING:
    import pandas as pd

    from morphfed.experiment.study import SiteConfig, Study


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
        manifest, said = _draft_site(name, site, root, report, masks=study.task == "segmentation")
        manifests.append(manifest)
        notes += [f"{name}: {sentence}" for sentence in said]
    return Manifest.concat(manifests), notes


def _draft_site(
    name: str, site: SiteConfig, root: Path, report: Reporter, *, masks: bool
) -> tuple[Manifest, list[str]]:
    from morphfed.data.drafting import draft

    path = Path(site.path).expanduser()
    path = path if path.is_absolute() else root / path
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
    drafted = draft(path, site=name, report=report, masks=masks, **how)  # type: ignore[arg-type]
    said = list(drafted.guesses)
    said += [f"{len(paths)} files skipped: {why}" for why, paths in drafted.skipped.items()]
    return drafted.manifest, said


def label_and_split(
    manifest: Manifest, study: Study, *, look: bool = True, report: Reporter = silent
) -> tuple[Manifest, dict[str, Counter[tuple[str, str]]], list[str]]:
    """Map labels to the study's classes and assign the parts.

    Args:
        manifest: all sites.
        study: classes, held-out sites, shares.
        look: read the training sites' images so that near-duplicates stay on one side of the split.
        report: progress.

    Returns:
        The manifest with ``split`` and one more column, ``class`` (a class of the study or null); what was left
        out by site as counts of (source label, reason); sentences of the split.
    """
    import pandas as pd

    ontology = load_ontology()
    frame = manifest.frame.copy()
    left_out: dict[str, Counter[tuple[str, str]]] = {site: Counter() for site in study.sites}
    labels: list[str | None] = []
    nodes = column(frame, "label")
    for site, own, node, source in zip(frame["site"], frame["source_label"], nodes, frame["source"], strict=True):
        target = None if node is None else ontology.to_class(node, study.classes)
        labels.append(target)
        if node is None:
            why = ontology.unmapped(own, source)
            reason = (
                f"label '{own}' is mapped to no cell type: {why}" if why else f"label '{own}' is not in the ontology"
            )
            left_out[site][own, reason] += 1
        elif target is None:
            left_out[site][own, f"'{node}' is not a class of this study"] += 1
    frame["class"] = pd.Series(labels, dtype=object)
    counts = Counter(frame["site"][frame["class"].notna()])
    for site in study.sites:
        if counts[site] == 0:
            raise DataError(
                f"Site '{site}': none of its images has a label of this study's classes ({', '.join(study.classes)}).",
                fix=f"check sites.{site}.path and sites.{site}.source; `morphfed data init` shows what it finds there.",
            )
    divided, notes = split(Manifest(frame, manifest.root), study, look=look, report=report)
    return divided, left_out, notes


def split(manifest: Manifest, study: Study, *, look: bool, report: Reporter) -> tuple[Manifest, list[str]]:
    """Assign the parts to all rows that have a ``class``, by which they are stratified.

    Args:
        manifest: with the column ``class``, null for what takes no part.
        study: held-out sites, shares.
        look: read the training sites' images so that near-duplicates stay on one side.
        report: progress.

    Returns:
        The manifest, its rows in another order, and sentences of the split.
    """
    frame = manifest.frame
    usable = manifest.where(frame["class"].notna())
    held = usable.frame["site"].isin(list(study.held_out))
    # A held-out site is all test, whatever split its source prescribes; training sites keep theirs.
    outside = Manifest(usable.frame[held].assign(split="test"), manifest.root)
    fractions = {
        "train": study.data.split.train,
        "validation": study.data.split.validation,
        "test": study.data.split.test,
    }
    inside = usable.where(~held)
    copies = _twins(inside, report) if look and study.data.split.copies_together else None
    assigned, notes = assign_splits(inside, fractions, study.data.split.seed, "class", copies)
    rest = Manifest(frame[frame["class"].isna()].assign(split=None), manifest.root)
    return Manifest.concat([assigned, outside, rest]), list(notes.sentences)


def _twins(manifest: Manifest, report: Reporter) -> list[str | None]:
    """Near-duplicates within each site; two sites never share a split, the data check names copies between them."""
    found: list[str | None] = [None] * len(manifest.frame)
    files = manifest.files()
    for site in manifest.sites:
        rows = [i for i, name in enumerate(manifest.frame["site"]) if name == site]
        for row, name in zip(rows, twins([files[i] for i in rows], report), strict=True):
            found[row] = name
    return found


def site_scales(manifest: Manifest, study: Study, *, report: Reporter = silent) -> dict[str, SiteScale]:
    """µm per pixel of each site: given, or estimated from its nuclei, or unknown."""
    scales = {}
    for done, site in enumerate(study.sites):
        report(Event("scale", done, len(study.sites), f"scale of {site}"))
        rows = manifest.for_site(site)
        given = rows.frame["um_per_px"].dropna()
        if len(given):
            scales[site] = SiteScale(float(given.median()), "given")
        elif not study.data.field_um or not study.data.estimate_scale:
            scales[site] = SiteScale(None, "none")
        else:
            usable = rows.where(rows.frame["class"].notna() & rows.frame["sha256"].notna())
            scales[site] = estimate_scale(usable.files(), decode=decode, seed=study.data.split.seed)
    report(Event("scale", len(study.sites), len(study.sites), "scale of the sites"))
    return scales


def column(frame: pd.DataFrame, name: str) -> Sequence[str | None]:
    """A text column with None where it is null, under every pandas."""
    return [None if missing else str(v) for v, missing in zip(frame[name], frame[name].isna(), strict=True)]
