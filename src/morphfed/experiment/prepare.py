"""From the sites' folders to labelled, split, cached images, all written into the run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.errors import ConfigError, DataError, StorageError
from morphfed.core.files import read_json, sha256_file, write_json, writing
from morphfed.core.progress import Event, Reporter, silent
from morphfed.data.cache import ImageStore, Picture
from morphfed.data.decode import decode
from morphfed.data.manifest import Manifest
from morphfed.data.ontology import load_ontology
from morphfed.data.scale import SiteScale, crop_side, estimate_scale
from morphfed.data.splits import assign_splits
from morphfed.training.dataset import ImageSet

if TYPE_CHECKING:
    import pandas as pd

    from morphfed.experiment.study import SiteConfig, Study

PREPARED = "prepared.parquet"
DATA = "data.json"
MANIFEST = "manifest.parquet"


@dataclass(frozen=True)
class Prepared:
    """A study's images, ready to train on.

    Attributes:
        sets: site → split → images; a held-out site has ``test`` only.
        cluster_units: site → ``patient`` or ``image``.
        info: site → the ``data.sites`` block of results.json.
        notes: sentences that a user should see.
    """

    sets: dict[str, dict[str, ImageSet]]
    cluster_units: dict[str, str]
    info: dict[str, dict[str, Any]]
    notes: list[str]


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
        manifest, said = _draft_site(name, site, root, report)
        manifests.append(manifest)
        notes += [f"{name}: {sentence}" for sentence in said]
    return Manifest.concat(manifests), notes


def _draft_site(name: str, site: SiteConfig, root: Path, report: Reporter) -> tuple[Manifest, list[str]]:
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
    drafted = draft(path, site=name, source=site.source, um_per_px=site.um_per_px, report=report, options=site.options)
    said = list(drafted.guesses)
    said += [f"{len(paths)} files skipped: {why}" for why, paths in drafted.skipped.items()]
    return drafted.manifest, said


def prepare(
    study: Study,
    run: Path,
    cache: Path,
    study_folder: Path,
    *,
    report: Reporter = silent,
    workers: int | None = None,
) -> Prepared:
    """Draft, map, split and cache all images; or read back what an earlier call left in ``run``.

    Raises:
        DataError: a site has nothing to train on; names the site.
        StorageError: the run or cache folder cannot be written.
    """
    store = ImageStore(cache, size=study.data.image_size, pad=study.data.pad)
    if not (run / DATA).is_file():
        manifest, notes = draft_sites(study, study_folder, report=report)
        manifest, left_out, split_notes = label_and_split(manifest, study)
        scales = site_scales(manifest, study, report=report)
        manifest = manifest.write(run / MANIFEST)
        _write_prepared(study, manifest, left_out, scales, store, run, [*notes, *split_notes])
    return load_prepared(study, run, cache, report=report, workers=workers)


def label_and_split(
    manifest: Manifest, study: Study
) -> tuple[Manifest, dict[str, Counter[tuple[str, str]]], list[str]]:
    """Map labels to the study's classes and assign the parts.

    Returns:
        The manifest with ``split`` and one more column, ``class`` (a class of the study or null); what was left out by site as counts
        of (source label, reason); sentences of the split.
    """
    import pandas as pd

    ontology = load_ontology()
    frame = manifest.frame.copy()
    left_out: dict[str, Counter[tuple[str, str]]] = {site: Counter() for site in study.sites}
    labels: list[str | None] = []
    nodes = _column(frame, "label")
    for site, own, node in zip(frame["site"], frame["source_label"], nodes, strict=True):
        target = None if node is None else ontology.to_class(node, study.classes)
        labels.append(target)
        if node is None:
            left_out[site][own, f"label '{own}' is not in the ontology"] += 1
        elif target is None:
            left_out[site][own, f"'{node}' is not a class of this study"] += 1
    frame["class"] = pd.Series(labels, dtype=object)
    usable = Manifest(frame[frame["class"].notna()], manifest.root)
    _refuse_empty(usable, study)
    held = usable.frame["site"].isin(list(study.held_out))
    # A held-out site is all test, whatever split its source prescribes; training sites keep theirs.
    outside = Manifest(usable.frame[held].assign(split="test"), manifest.root)
    fractions = {
        "train": study.data.split.train,
        "validation": study.data.split.validation,
        "test": study.data.split.test,
    }
    assigned, notes = assign_splits(usable.where(~held), fractions, study.data.split.seed, "class")
    rest = Manifest(frame[frame["class"].isna()].assign(split=None), manifest.root)
    return Manifest.concat([assigned, outside, rest]), left_out, list(notes.sentences)


def _refuse_empty(usable: Manifest, study: Study) -> None:
    counts = Counter(usable.frame["site"])
    for site in study.sites:
        if counts[site] == 0:
            raise DataError(
                f"Site '{site}': none of its images has a label of this study's classes ({', '.join(study.classes)}).",
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
        elif not study.data.field_um or not study.data.estimate_scale:
            scales[site] = SiteScale(None, "none")
        else:
            usable = rows.where(rows.frame["class"].notna() & rows.frame["sha256"].notna())
            scales[site] = estimate_scale(usable.files(), decode=decode, seed=study.data.split.seed)
    report(Event("scale", len(study.sites), len(study.sites), "scale of the sites"))
    return scales


def _write_prepared(
    study: Study,
    manifest: Manifest,
    left_out: Mapping[str, Counter[tuple[str, str]]],
    scales: Mapping[str, SiteScale],
    store: ImageStore,
    run: Path,
    notes: list[str],
) -> None:
    import pandas as pd

    frame = manifest.frame
    frame = frame[frame["class"].notna()].reset_index(drop=True)
    index = {name: i for i, name in enumerate(study.classes)}
    own = frame["um_per_px"].to_numpy(dtype=float)
    site_scale = frame["site"].map({s: scale.um_per_px for s, scale in scales.items()}).to_numpy(dtype=float)
    um_per_px = np.where(np.isnan(own), site_scale, own)
    crops = [crop_side(study.data.field_um, None if np.isnan(um) else float(um)) for um in um_per_px]
    hashes = _column(frame, "sha256")
    files = [manifest.file(p) for p in frame["path"]]
    keys = [None if h is None else store.key(Picture(f, h, c)) for f, h, c in zip(files, hashes, crops, strict=True)]
    ids = _image_ids(frame)
    clusters = [p if p is not None else i for p, i in zip(_column(frame, "patient"), ids, strict=True)]
    prepared = frame[["path", "site", "split", "sha256", "source_label"]].copy()
    prepared["id"], prepared["cluster"] = ids, clusters
    prepared["label"] = [index[name] for name in frame["class"]]
    prepared["crop_px"] = np.array([np.nan if crop is None else crop for crop in crops])
    prepared["key"] = pd.Series(keys, dtype=object)
    with writing(run / PREPARED) as temporary:
        prepared.to_parquet(temporary, index=False)
    info = {
        site: _site_info(site, study, manifest.for_site(site), prepared, left_out[site], scales[site])
        for site in study.sites
    }
    write_json(run / DATA, {"sites": info, "notes": notes, "prepared_sha256": sha256_file(run / PREPARED)})


def _image_ids(frame: pd.DataFrame) -> list[str]:
    """``site/path below the site's folder``: what results name an image by, free of the machine's own paths."""
    ids = [""] * len(frame)
    for site, rows in frame.groupby("site"):
        folders = [PurePosixPath(p).parent for p in rows["path"]]
        common = PurePosixPath(commonpath(folders)) if len(set(folders)) > 1 else folders[0]
        for at, path in zip(rows.index, rows["path"], strict=True):
            ids[at] = f"{site}/{PurePosixPath(path).relative_to(common)}"
    return ids


def _site_info(
    site: str,
    study: Study,
    rows: Manifest,
    prepared: pd.DataFrame,
    left_out: Counter[tuple[str, str]],
    scale: SiteScale,
) -> dict[str, Any]:
    here = prepared[prepared["site"] == site]
    counts = {
        name: {
            part: int(((here["label"] == i) & (here["split"] == part)).sum())
            for part in ("train", "validation", "test")
        }
        for i, name in enumerate(study.classes)
    }
    patients = rows.frame.loc[rows.frame["class"].notna(), "patient"]
    known = bool(patients.notna().all()) and len(patients) > 0
    sizes = rows.frame[["width", "height"]].dropna()
    crops = here["crop_px"].dropna()
    return {
        "role": "held_out" if site in study.held_out else "train",
        "source": "+".join(sorted(set(rows.frame["source"]))),
        "n": len(here),
        "patients": int(patients.nunique()) if known else None,
        "cluster_unit": "patient" if known else "image",
        "classes": counts,
        "left_out": [
            {"source_label": own, "n": n, "why": why} for (own, why), n in sorted(left_out.items(), key=lambda x: -x[1])
        ],
        "um_per_px": scale.um_per_px,
        "scale_from": scale.origin,
        "nucleus_px": scale.nucleus_px,
        "crop_px": int(crops.median()) if len(crops) else None,
        "image_px": [int(sizes["width"].median()), int(sizes["height"].median())] if len(sizes) else None,
    }


def load_prepared(
    study: Study,
    run: Path,
    cache: Path,
    *,
    report: Reporter = silent,
    workers: int | None = None,
    build: bool = True,
) -> Prepared:
    """Read back what :func:`prepare` wrote, and make sure that every picture is in the cache.

    Args:
        build: False in worker processes, where the cache is known to be complete.

    Raises:
        DataError: a training site has no readable training image.
        StorageError: the run folder is damaged.
    """
    import pandas as pd

    saved = read_json(run / DATA)
    if sha256_file(run / PREPARED) != saved["prepared_sha256"]:
        raise StorageError(f"{run / PREPARED} is damaged.", fix=f"remove {run / DATA}; the data are prepared again.")
    frame = pd.read_parquet(run / PREPARED)
    manifest_root = run
    store = ImageStore(cache, size=study.data.image_size, pad=study.data.pad)
    pictures = [
        Picture(manifest_root / path, digest, None if np.isnan(crop) else int(crop))
        for path, digest, crop in zip(
            frame["path"], _column(frame, "sha256"), frame["crop_px"].to_numpy(dtype=float), strict=True
        )
        if digest is not None
    ]
    info: dict[str, dict[str, Any]] = saved["sites"]
    notes = list(saved["notes"])
    failed: dict[str, str] = {}
    if build:
        done = store.ensure(pictures, workers=workers, report=report)
        failed = done.failed
        if done.rebuilt:
            notes.append(f"cache: {done.rebuilt} damaged pictures were made again")
    readable = frame["key"].isin(store.keys())
    _note_unreadable(frame[~readable], info, failed)
    frame = frame[readable].reset_index(drop=True)
    rows = store.rows_of(frame["key"])
    sets = {site: _parts(frame, rows, store, site, len(study.classes)) for site in study.sites}
    _refuse_untrainable(sets, study)
    units = {site: str(block["cluster_unit"]) for site, block in info.items()}
    return Prepared(sets, units, info, notes)


def _note_unreadable(lost: pd.DataFrame, info: dict[str, dict[str, Any]], failed: Mapping[str, str]) -> None:
    for site, rows in lost.groupby("site"):
        block = info[str(site)]
        block["n"] -= len(rows)
        for label, split in zip(rows["label"], rows["split"], strict=True):
            name = list(block["classes"])[int(label)]
            block["classes"][name][split] -= 1
        for label, n in Counter(rows["source_label"]).items():
            block["left_out"].append({"source_label": label, "n": n, "why": "the file cannot be read"})
        block["unreadable"] = sorted(Path(p).name for p in rows["path"])


def _parts(
    frame: pd.DataFrame, rows: np.ndarray[Any, np.dtype[np.int64]], store: ImageStore, site: str, classes: int
) -> dict[str, ImageSet]:
    parts = {}
    for split in ("train", "validation", "test"):
        here = ((frame["site"] == site) & (frame["split"] == split)).to_numpy()
        part = frame[here]
        parts[split] = ImageSet(
            store=store,
            rows=rows[here],
            labels=part["label"].to_numpy(dtype=np.int64),
            classes=classes,
            ids=part["id"].to_numpy(dtype=object),
            clusters=part["cluster"].to_numpy(dtype=object),
        )
    return parts


def _refuse_untrainable(sets: Mapping[str, Mapping[str, ImageSet]], study: Study) -> None:
    for site in study.training_sites:
        if len(sets[site]["train"]) < 2:
            raise DataError(
                f"Site '{site}' has {len(sets[site]['train'])} readable training images; at least 2 are needed.",
                fix=f"hold the site out (held_out = ['{site}']), or bring more images.",
            )
    for site in study.held_out:
        if len(sets[site]["test"]) == 0:
            raise DataError(f"Held-out site '{site}' has no readable image.", fix="check its folder.")
    counts = np.sum([sets[site]["train"].class_counts for site in study.training_sites], axis=0)
    if np.count_nonzero(counts) < 2:
        raise ConfigError("All training images are of one class.", fix="name other classes, or bring other sites.")


def _column(frame: pd.DataFrame, name: str) -> Sequence[str | None]:
    """A text column with None where it is null, under every pandas."""
    return [None if missing else str(v) for v, missing in zip(frame[name], frame[name].isna(), strict=True)]
