"""From the sites' folders to labelled, split, cached images, all written into the run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os.path import commonpath, relpath
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.errors import ConfigError, DataError, StorageError
from morphfed.core.files import read_json, sha256_file, write_json, writing
from morphfed.core.progress import Reporter, silent
from morphfed.data.cache import ImageStore, Picture
from morphfed.data.manifest import Manifest
from morphfed.data.ontology import load_ontology
from morphfed.data.scale import SiteScale, crop_side
from morphfed.data.splits import Leak, leaks, owners_of
from morphfed.evaluation.predictions import ClusterUnit
from morphfed.experiment.assemble import LeftOut, column, draft_sites, label_and_split, site_scales
from morphfed.training.dataset import ImageSet

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from morphfed.experiment.study import Study
    from morphfed.tasks.coarse import Parents

PREPARED = "prepared.parquet"
DATA = "data.json"
MANIFEST = "manifest.parquet"
UNKNOWN = "unknown"
"""Part of a site's images that show none of the study's classes; only with ``evaluation.unknown``."""
NO_CLASS = -1
_JUDGED = ("validation", "test")


@dataclass(frozen=True)
class Prepared:
    """A study's images, ready to train on.

    Attributes:
        sets: site → split → images; a held-out site has ``test`` only.
        cluster_units: site → ``patient``, ``lesion`` or ``image``.
        info: site → the ``data.sites`` block of results.json.
        notes: sentences that a user should see.
        split_notes: those of them that are about a site's training part; each starts with its site's name.
        unknown: site → images of none of the classes, labelled -1, and the type of each cell; only with
            ``evaluation.unknown``, and only sites that hold some.
    """

    sets: dict[str, dict[str, ImageSet]]
    cluster_units: dict[str, ClusterUnit]
    info: dict[str, dict[str, Any]]
    notes: list[str]
    split_notes: list[str] = field(default_factory=list)
    unknown: dict[str, tuple[ImageSet, NDArray[np.str_]]] = field(default_factory=dict)


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
        manifest, left_out, split_notes = label_and_split(manifest, study, report=report)
        scales = site_scales(manifest, study, report=report)
        manifest = manifest.write(run / MANIFEST)
        _write_prepared(study, manifest, left_out, scales, store, run, notes, split_notes)
    return load_prepared(study, run, cache, report=report, workers=workers)


def _write_prepared(
    study: Study,
    manifest: Manifest,
    left_out: LeftOut,
    scales: Mapping[str, SiteScale],
    store: ImageStore,
    run: Path,
    notes: list[str],
    split_notes: list[str],
) -> None:
    import pandas as pd

    frame = manifest.frame
    strange = _strange(frame, study)
    frame = frame.assign(split=frame["split"].mask(strange, UNKNOWN))
    frame = frame[frame["class"].notna() | frame["parent"].notna() | strange].reset_index(drop=True)
    parents = coarser_labels(study)
    index = {name: i for i, name in enumerate((*study.classes, *parents))}
    own = frame["um_per_px"].to_numpy(dtype=float)
    site_scale = frame["site"].map({s: scale.um_per_px for s, scale in scales.items()}).to_numpy(dtype=float)
    um_per_px = np.where(np.isnan(own), site_scale, own)
    crops = [crop_side(study.data.field_um, None if np.isnan(um) else float(um)) for um in um_per_px]
    hashes = column(frame, "sha256")
    files = [manifest.file(p) for p in frame["path"]]
    keys = [None if h is None else store.key(Picture(f, h, c)) for f, h, c in zip(files, hashes, crops, strict=True)]
    ids = _image_ids(frame)
    clusters = [_cluster(*known) for known in zip(column(frame, "patient"), _lesions(frame), ids, strict=True)]
    prepared = frame[["path", "site", "split", "sha256", "source_label"]].copy()
    prepared["id"], prepared["cluster"] = ids, clusters
    targets = [name or parent for name, parent in zip(column(frame, "class"), column(frame, "parent"), strict=True)]
    prepared["label"] = [NO_CLASS if name is None else index[name] for name in targets]
    prepared["kind"] = frame["label"]
    prepared["crop_px"] = np.array([np.nan if crop is None else crop for crop in crops])
    prepared["key"] = pd.Series(keys, dtype=object)
    with writing(run / PREPARED) as temporary:
        prepared.to_parquet(temporary, index=False)
    info = {
        site: _site_info(site, study, manifest.for_site(site), prepared, left_out[site], scales[site])
        for site in study.sites
    }
    about_training = [*split_notes, *(n for site in info for n in coarse_notes(site, info[site].get("coarse", ())))]
    said = {"notes": [*notes, *about_training], "split_notes": about_training}
    coarser = {node: list(below) for node, below in parents.items()}
    write_json(run / DATA, {"sites": info, **said, "parents": coarser, "prepared_sha256": sha256_file(run / PREPARED)})


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


def _strange(frame: pd.DataFrame, study: Study) -> pd.Series[bool]:
    """Rows of images that show a cell of none of the classes; all False unless the study asks for them."""
    ontology = load_ontology()
    found = [
        study.evaluation.unknown and name is None and node is not None and ontology.is_outside(node, study.classes)
        for name, node in zip(column(frame, "class"), column(frame, "label"), strict=True)
    ]
    return frame["class"].isna() & np.array(found, dtype=bool)


def _lesions(frame: pd.DataFrame) -> Sequence[str | None]:
    return column(frame, "lesion") if "lesion" in frame.columns else [None] * len(frame)


def _cluster(patient: str | None, lesion: str | None, image: str) -> str:
    """What the bootstrap draws an image with."""
    return patient or lesion or image


def _leaks(rows: pd.DataFrame, part: str) -> list[Leak]:
    """What one site's split has both in train and in ``part``; only a split that was given from outside has any."""
    return leaks(owners_of(rows), column(rows, "split"), part)


def _image_ids(frame: pd.DataFrame) -> list[str]:
    """``site/path below the site's folder``: what results name an image by, free of the machine's own paths.

    Images with a coarser label have no say in which folder that is: the others' names, and with them the draws of the
    bootstrap, are the same without them.
    """
    ids = [""] * len(frame)
    for site, rows in frame.groupby("site"):
        folders = [PurePosixPath(p).parent for p in rows.loc[rows["parent"].isna(), "path"]]
        common = PurePosixPath(commonpath(folders)) if len(set(folders)) > 1 else folders[0]
        for at, path in zip(rows.index, rows["path"], strict=True):
            ids[at] = f"{site}/{PurePosixPath(relpath(path, common))}"
    return ids


def _site_info(
    site: str,
    study: Study,
    rows: Manifest,
    prepared: pd.DataFrame,
    left_out: Counter[tuple[str, str]],
    scale: SiteScale,
) -> dict[str, Any]:
    strange = prepared[(prepared["site"] == site) & (prepared["split"] == UNKNOWN)]
    here = prepared[(prepared["site"] == site) & (prepared["split"] != UNKNOWN)]
    counts = {
        name: {
            part: int(((here["label"] == i) & (here["split"] == part)).sum())
            for part in ("train", "validation", "test")
        }
        for i, name in enumerate(study.classes)
    }
    usable = rows.frame[rows.frame["class"].notna()]
    patients, lesions = usable["patient"], [lesion for lesion in _lesions(usable) if lesion is not None]
    known = bool(patients.notna().all()) and len(patients) > 0
    by_lesion = not known and len(usable) > 0 and len(lesions) == len(usable)
    leaking = [asdict(leak) | {"part": part} for part in _JUDGED for leak in _leaks(usable, part)]
    sizes = rows.frame[["width", "height"]].dropna()
    crops = here["crop_px"].dropna()
    return {
        "role": "held_out" if site in study.held_out else "train",
        "source": "+".join(sorted(set(rows.frame["source"]))),
        "n": len(here),
        "patients": int(patients.nunique()) if known else None,
        **({"lesions": len(set(lesions))} if by_lesion else {}),
        "cluster_unit": "patient" if known else "lesion" if by_lesion else "image",
        "classes": counts,
        **({"leaks": leaking} if leaking else {}),
        "left_out": [
            {"source_label": own, "n": n, "why": why} for (own, why), n in sorted(left_out.items(), key=lambda x: -x[1])
        ],
        **({"coarse": coarse_block(study, rows.frame)} if study.data.coarse == "parent" else {}),
        **({"unknown": dict(Counter(strange["kind"]).most_common())} if study.evaluation.unknown else {}),
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
            frame["path"], column(frame, "sha256"), frame["crop_px"].to_numpy(dtype=float), strict=True
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
    index = {name: i for i, name in enumerate(study.classes)}
    parents = tuple(tuple(index[name] for name in below) for below in saved.get("parents", {}).values())
    sets = {site: _parts(frame, rows, store, site, len(index), parents) for site in study.sites}
    refuse_untrainable(sets, study)
    units: dict[str, ClusterUnit] = {site: block["cluster_unit"] for site, block in info.items()}
    split_notes = list(saved.get("split_notes", ()))
    return Prepared(sets, units, info, notes, split_notes, _unknown(frame, rows, store, study))


def _note_unreadable(lost: pd.DataFrame, info: dict[str, dict[str, Any]], failed: Mapping[str, str]) -> None:
    for site, rows in lost.groupby("site"):
        block = info[str(site)]
        names = list(block["classes"])
        coarse = {str(entry["label"]): entry for entry in block.get("coarse", ())}
        for kind in rows.loc[rows["split"] == UNKNOWN, "kind"]:
            block["unknown"][kind] -= 1
        block["unreadable"] = sorted(Path(p).name for p in rows["path"])
        rows = rows[rows["split"] != UNKNOWN]
        block["n"] -= len(rows)
        for label, kind, split in zip(rows["label"], rows["kind"], rows["split"], strict=True):
            if label < len(names):
                block["classes"][names[int(label)]][split] -= 1
            else:
                coarse[str(kind)]["n"] -= 1
        for label, n in Counter(rows["source_label"]).items():
            block["left_out"].append({"source_label": label, "n": n, "why": "the file cannot be read"})


def _parts(
    frame: pd.DataFrame, rows: NDArray[np.int64], store: ImageStore, site: str, classes: int, parents: Parents
) -> dict[str, ImageSet]:
    parts = {}
    for split in ("train", "validation", "test"):
        here = ((frame["site"] == site) & (frame["split"] == split)).to_numpy()
        parts[split] = _image_set(frame[here], rows[here], store, classes, parents)
    return parts


def _unknown(
    frame: pd.DataFrame, rows: NDArray[np.int64], store: ImageStore, study: Study
) -> dict[str, tuple[ImageSet, NDArray[np.str_]]]:
    found = {}
    for site in study.sites if study.evaluation.unknown else ():
        here = ((frame["site"] == site) & (frame["split"] == UNKNOWN)).to_numpy()
        if here.any():
            part = frame[here]
            images = _image_set(part, rows[here], store, len(study.classes))
            found[site] = (images, part["kind"].to_numpy().astype(str))
    return found


def _image_set(
    part: pd.DataFrame, rows: NDArray[np.int64], store: ImageStore, classes: int, parents: Parents = ()
) -> ImageSet:
    return ImageSet(
        store=store,
        rows=rows,
        labels=part["label"].to_numpy(dtype=np.int64),
        classes=classes,
        ids=part["id"].to_numpy(dtype=object),
        clusters=part["cluster"].to_numpy(dtype=object),
        parents=parents,
    )


def refuse_untrainable(sets: Mapping[str, Mapping[str, ImageSet]], study: Study) -> None:
    """Refuse a site, or sites together, without enough to train or to test on.

    Raises:
        DataError: names the site.
        ConfigError: all training images are of one class.
    """
    for site in study.training_sites:
        exact = int(sets[site]["train"].exact.sum())
        if exact < 2:
            raise DataError(
                f"Site '{site}' has {exact} readable training images of a class; at least 2 are needed.",
                fix=f"hold the site out (held_out = ['{site}']), or bring more images.",
            )
    for site in study.held_out:
        if len(sets[site]["test"]) == 0:
            raise DataError(f"Held-out site '{site}' has no readable image.", fix="check its folder.")
    counts = np.sum([sets[site]["train"].class_counts for site in study.training_sites], axis=0)
    if np.count_nonzero(counts) < 2:
        without = f" without {', '.join(study.held_out)}" if study.held_out else ""
        raise ConfigError(
            f"All training images{without} are of one class.", fix="name other classes, or bring other sites."
        )
