"""From the sites' folders to labelled, split, cached images, all written into the run folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os.path import commonpath, relpath
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.errors import DataError, StorageError
from morphfed.core.files import read_json, sha256_file, write_json, writing
from morphfed.core.progress import Reporter, silent
from morphfed.data.manifest import SPLITS, Manifest
from morphfed.data.ontology import load_ontology
from morphfed.data.scale import SiteScale
from morphfed.data.splits import Leak, leaks, owners_of
from morphfed.evaluation.predictions import ClusterUnit
from morphfed.experiment.assemble import LeftOut, column, draft_sites
from morphfed.experiment.coarse import coarse_block, coarse_notes
from morphfed.experiment.tasks import study_task
from morphfed.training.dataset import ImageSet

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from morphfed.experiment.study import Study

PREPARED = "prepared.parquet"
DATA = "data.json"
MANIFEST = "manifest.parquet"
UNKNOWN = "unknown"
"""Part of a site's images that show none of the study's classes; only with ``evaluation.unknown``."""
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
    whole: bool = True,
) -> Prepared:
    """Draft, map, split and cache all images; or read back what an earlier call left in ``run``.

    Args:
        whole: whether all of the study's sites are here; a site by itself may hold a single class.

    Raises:
        DataError: a site has nothing to train on; names the site.
        StorageError: the run or cache folder cannot be written.
    """
    if not (run / DATA).is_file():
        task = study_task(study)
        manifest, notes = draft_sites(study, study_folder, report=report)
        chosen = task.select(manifest, study, report=report)
        scales = task.scales(chosen.manifest, study, report=report)
        manifest = chosen.manifest.write(run / MANIFEST)
        notes += chosen.notes
        _write_prepared(study, manifest, chosen.left_out, scales, cache, run, notes, chosen.split_notes)
    return load_prepared(study, run, cache, report=report, workers=workers, whole=whole)


def _write_prepared(
    study: Study,
    manifest: Manifest,
    left_out: LeftOut,
    scales: Mapping[str, SiteScale],
    cache: Path,
    run: Path,
    notes: list[str],
    split_notes: list[str],
) -> None:
    frame = manifest.frame
    strange = _strange(frame, study)
    frame = frame.assign(split=frame["split"].mask(strange, UNKNOWN))
    frame = frame[frame["class"].notna() | frame["parent"].notna() | strange].reset_index(drop=True)
    own = frame["um_per_px"].to_numpy(dtype=float)
    site_scale = frame["site"].map({s: scale.um_per_px for s, scale in scales.items()}).to_numpy(dtype=float)
    um_per_px = np.where(np.isnan(own), site_scale, own)
    ids = _image_ids(frame)
    clusters = [_cluster(*known) for known in zip(column(frame, "patient"), _lesions(frame), ids, strict=True)]
    prepared = frame[["path", "site", "split", "sha256", "source_label"]].copy()
    prepared["id"], prepared["cluster"] = ids, clusters
    prepared["kind"] = frame["label"]
    scaled = Manifest(frame.assign(um_per_px=um_per_px), manifest.root)
    prepared = prepared.assign(**study_task(study).stock(study, run, cache).columns(scaled))
    prepared = study_task(study).with_targets(prepared, scaled.frame, study)
    with writing(run / PREPARED) as temporary:
        prepared.to_parquet(temporary, index=False)
    info = {
        site: _site_info(site, study, manifest.for_site(site), prepared, left_out[site], scales[site])
        for site in study.sites
    }
    about_training = [*split_notes, *(n for site in info for n in coarse_notes(site, info[site].get("coarse", ())))]
    said = {"notes": [*notes, *about_training], "split_notes": about_training}
    meaning = study_task(study).meaning(study)
    write_json(run / DATA, {"sites": info, **said, **meaning, "prepared_sha256": sha256_file(run / PREPARED)})


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
    usable = rows.frame[rows.frame["class"].notna()]
    patients, lesions = usable["patient"], [lesion for lesion in _lesions(usable) if lesion is not None]
    known = bool(patients.notna().all()) and len(patients) > 0
    by_lesion = not known and len(usable) > 0 and len(lesions) == len(usable)
    leaking = [asdict(leak) | {"part": part} for part in _JUDGED for leak in _leaks(usable, part)]
    sizes = rows.frame[["width", "height"]].dropna()
    crops = here["crop_px"].dropna() if "crop_px" in here else here["id"][:0]  # bags are not cut from anything
    return {
        "role": "held_out" if site in study.held_out else "train",
        "source": "+".join(sorted(set(rows.frame["source"]))),
        "n": len(here),
        "patients": int(patients.nunique()) if known else None,
        **({"lesions": len(set(lesions))} if by_lesion else {}),
        "cluster_unit": "patient" if known else "lesion" if by_lesion else study_task(study).unit,
        **study_task(study).counts(here, study),
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
    whole: bool = True,
) -> Prepared:
    """Read back what :func:`prepare` wrote, and make sure that every picture is in the cache.

    Args:
        build: False in worker processes, where the cache is known to be complete.
        whole: whether all of the study's sites are here.

    Raises:
        DataError: a training site has no readable training image.
        StorageError: the run folder is damaged.
    """
    import pandas as pd

    saved = read_json(run / DATA)
    if sha256_file(run / PREPARED) != saved["prepared_sha256"]:
        raise StorageError(f"{run / PREPARED} is damaged.", fix=f"remove {run / DATA}; the data are prepared again.")
    frame = pd.read_parquet(run / PREPARED)
    info: dict[str, dict[str, Any]] = saved["sites"]
    notes = list(saved["notes"])
    stock = study_task(study).stock(study, run, cache)
    if build:
        notes += stock.fill(frame, report=report, workers=workers)
    readable = stock.there(frame)
    _note_unreadable(frame[~readable], info, study)
    frame = frame[readable].reset_index(drop=True)
    targets = study_task(study).targets(frame, study, saved, run, cache, report=report, workers=workers, build=build)
    store, rows = stock.open(frame)

    def images(here: NDArray[np.bool_]) -> ImageSet:
        part = frame[here]
        ids, clusters = (part[name].to_numpy(dtype=object) for name in ("id", "cluster"))
        return targets(part, store=store, rows=rows[here], ids=ids, clusters=clusters)

    def parts(site: str) -> dict[str, ImageSet]:
        mine = (frame["site"] == site).to_numpy()
        return {split: images(mine & (frame["split"] == split).to_numpy()) for split in SPLITS}

    sets = {site: parts(site) for site in study.sites}
    refuse_untrainable(sets, study, whole=whole)
    units: dict[str, ClusterUnit] = {site: block["cluster_unit"] for site, block in info.items()}
    split_notes = list(saved.get("split_notes", ()))
    unknown = {}
    for site in study.sites if study.evaluation.unknown else ():
        here = ((frame["site"] == site) & (frame["split"] == UNKNOWN)).to_numpy()
        if here.any():
            unknown[site] = (images(here), frame["kind"][here].to_numpy().astype(str))
    return Prepared(sets, units, info, notes, split_notes, unknown)


def _note_unreadable(lost: pd.DataFrame, info: dict[str, dict[str, Any]], study: Study) -> None:
    for site, rows in lost.groupby("site"):
        block = info[str(site)]
        for kind in rows.loc[rows["split"] == UNKNOWN, "kind"]:
            block["unknown"][kind] -= 1
        block["unreadable"] = sorted(Path(p).name for p in rows["path"])
        rows = rows[rows["split"] != UNKNOWN]
        block["n"] -= len(rows)
        study_task(study).uncount(block, rows)
        for label, n in Counter(rows["source_label"]).items():
            block["left_out"].append({"source_label": label, "n": n, "why": "the file cannot be read"})


def refuse_untrainable(sets: Mapping[str, Mapping[str, ImageSet]], study: Study, *, whole: bool = True) -> None:
    """Refuse a site, or sites together (where all of them are here), without enough to train or to test on.

    Raises:
        DataError: names the site.
        ConfigError: there is nothing to tell apart in all training images together.
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
    if whole:
        study_task(study).refuse([sets[site]["train"] for site in study.training_sites], study)
