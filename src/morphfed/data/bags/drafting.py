"""A site's bags → a manifest: a row a bag, with what can be said of it without reading it whole.

Nothing is lost on the way. A slide without a file, a file without a label, an empty slide and a file that cannot be
read keep their row, with the reason in the column ``problem``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from morphfed.core.errors import ConfigError, DataError, did_you_mean
from morphfed.core.progress import Reporter, silent, tracked
from morphfed.data.bags import files, sets, tables
from morphfed.data.bags.store import facts_at, fingerprint_at
from morphfed.data.drafting import patient_finder
from morphfed.data.manifest import COLUMNS, Manifest
from morphfed.data.partition import partition
from morphfed.data.sources.base import split_of

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "bags"
"""Value of the manifest's column ``source``."""

OPTIONS: Mapping[str, str] = {
    "table": "slide table (case_id, slide_id, label …), relative to the site's folder; default the only one in it",
    "bags": "folder of the bag files, relative to the table's, where the site is named by its table",
    "institute": "only the slides of this centre, where a table has several",
    "splits": "CLAM's splits_<i>.csv, relative to the site's folder",
    "patient_pattern": "regular expression whose one group is the patient id, searched in the slide's id",
    **{f"{role}_column": f"column with the {role}" for role in tables.COLUMNS},
    "part": "with 'of': only this part, from 1, of the bags dealt out to simulated sites",
    "of": "number of simulated sites that the bags are dealt out to",
    "dirichlet": "with 'of': α of the class shares' Dirichlet distribution; default 0.5, 100 deals evenly",
    "deal_seed": "with 'of': seed of the draw; default 0",
}
"""Options of a site of bags: what they are for."""

PROBLEM, INSTANCES, DIM, ENCODER, DTYPE = "problem", "instances", "dim", "encoder", "dtype"
MONTHS, CENSORSHIP = "survival_months", "censorship"
"""Columns of a bag manifest beyond those of every manifest."""

CONTRADICTED = -np.inf
"""Months of a slide whose rows disagree about them."""

NO_LABEL = "(no label)"
NO_FILE, NO_INSTANCE = "no bag file", "no instance: an empty slide"


@dataclass(frozen=True)
class _Bag:
    path: Path
    slide: str | None
    label: str | None
    patient: str | None = None
    split: str | None = None
    months: float | None = None
    censorship: int | None = None
    problem: str | None = None


def draft_bags(
    path: Path, *, site: str, options: Mapping[str, object] | None = None, report: Reporter = silent
) -> tuple[Manifest, list[str]]:
    """Draft the manifest of one site.

    Args:
        path: a folder of bag files, a slide table, or a CSV set.
        site: its name.
        options: see :data:`OPTIONS`.

    Returns:
        The manifest, its ``label`` null (classes are those that a study names), and sentences of what was guessed.

    Raises:
        DataError: nothing there is a bag, or a table cannot be used; names the site or the file.
        ConfigError: an unknown option, or a value that cannot be used.
    """
    given = {key: str(value) for key, value in (options or {}).items()}
    for key in given:
        if key not in OPTIONS:
            raise ConfigError(
                f"Site '{site}': bags have no option '{key}'.{did_you_mean(key, OPTIONS)}",
                fix=f"their options are: {', '.join(OPTIONS)}.",
            )
    bags, root, notes = _found(path, site, given)
    if "patient_pattern" in given:
        bags = _with_patients(bags, given["patient_pattern"], site)
    frame = _frame(bags, root, site, report)
    manifest = Manifest(frame, root)
    if "of" in given or "part" in given:
        manifest, said = _dealt(manifest, given, site)
        notes.append(said)
    return manifest, [*notes, *_facts(manifest)]


# ── what is there ───────────────────────────────────────────────────────────────────────────────────────────
def _found(path: Path, site: str, options: Mapping[str, str]) -> tuple[list[_Bag], Path, list[str]]:
    if path.is_dir():
        return _in_folder(path, path, site, options)
    if not path.is_file():
        raise DataError(f"Site '{site}': {path} does not exist.", fix=f"correct sites.{site}.path or data.root.")
    if sets.looks_like_a_set(path):
        found = sets.read_set(path)
        bags = [_Bag(path.with_name(f"{path.name}{sets.BETWEEN}{b}"), None, label) for b, label in found.labels.items()]
        return bags, path.parent, [f"a set of {len(bags)} bags in {path.name}, {len(found.features):,} instances"]
    folder = path.parent / Path(options.get("bags", ".")).expanduser()
    if not folder.is_dir():
        raise DataError(f"Site '{site}': the folder of bags {folder} does not exist.", fix="correct the option bags.")
    return _in_folder(folder, path.parent, site, {**options, "table": path.name})


def _in_folder(folder: Path, base: Path, site: str, options: Mapping[str, str]) -> tuple[list[_Bag], Path, list[str]]:
    there, notes = _bag_files(folder)
    table = _table(base, options)
    if not there:
        raise DataError(
            f"Site '{site}': {folder} holds no bag file ({', '.join(files.SUFFIXES)}).",
            fix="name the folder of features (h5_files, pt_files, features_ENCODER), or embed the slides first.",
        )
    if table is None:
        bags = [_Bag(p, slide, _class_folder(p, folder)) for slide, p in there.items()]
        if not any(bag.label for bag in bags):
            raise DataError(
                f"Site '{site}': {folder} has no slide table, and its bags lie in no class folders.",
                fix="put a CSV with the columns case_id, slide_id and label there, or name one with the option table.",
            )
        notes.append("labels from the names of the folders")
    else:
        bags, said = _from_table(table, there, folder, options)
        notes += said
    if "splits" in options:
        bags = _with_splits(bags, base / Path(options["splits"]).expanduser())
    return bags, folder, notes


def _bag_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Slide → its file; of several files of one slide the first of ``files.SUFFIXES``."""
    by_slide: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in files.SUFFIXES and path.is_file() and not path.name.startswith("."):
            by_slide[files.slide_id(path)].append(path)
    coordinates = _coordinates_only(by_slide)
    notes = [f"{coordinates} files of coordinates without features are not bags"] if coordinates else []
    found: dict[str, Path] = {}
    both: Counter[str] = Counter()
    for slide, paths in by_slide.items():
        if not paths:
            continue
        order = sorted(paths, key=lambda p: files.SUFFIXES.index(p.suffix.lower()))
        same = [p for p in order if p.suffix.lower() == order[0].suffix.lower()]
        if len(same) > 1:
            raise DataError(
                f"The slide {slide} has {len(same)} files: {' and '.join(map(str, same[:2]))}.",
                fix="name the folder of one encoder, or remove one of the two.",
            )
        found[slide] = order[0]
        both.update(p.suffix for p in order[1:])
    notes += [f"{n} {suffix} files are not used: their slides have another file" for suffix, n in both.items()]
    return found, notes


def _coordinates_only(by_slide: dict[str, list[Path]]) -> int:
    """Take out CLAM's and TRIDENT's files of coordinates where a slide has its features beside them; how many."""
    taken = 0
    for slide, paths in by_slide.items():
        if len(paths) == 1:
            continue
        kept = [p for p in paths if p.parent.name != "patches" and not p.stem.endswith(files.PATCHES)]
        if kept:
            taken += len(paths) - len(kept)
            by_slide[slide] = kept
    return taken


def _table(base: Path, options: Mapping[str, str]) -> Path | None:
    if "table" in options:
        return base / Path(options["table"]).expanduser()
    there = [p for p in sorted(base.glob("*.csv")) if not re.fullmatch(r"splits_\d+", p.stem) and tables.has_slides(p)]
    if len(there) > 1:
        raise DataError(
            f"{base} has several slide tables: {', '.join(p.name for p in there)}.", fix="choose with the option table."
        )
    return there[0] if there else None


def _class_folder(path: Path, folder: Path) -> str | None:
    parts = [p for p in path.relative_to(folder).parts[:-1] if p not in ("h5_files", "pt_files") and not split_of(p)]
    return parts[-1] if parts else None


def _from_table(
    path: Path, there: Mapping[str, Path], folder: Path, options: Mapping[str, str]
) -> tuple[list[_Bag], list[str]]:
    every = tables.read_slides(path, options)
    listed = {row.slide for row in every}
    rows = every
    if "institute" in options:
        rows = [row for row in every if row.institute == options["institute"]]
        if not rows:
            known = sorted({row.institute for row in every if row.institute})
            raise DataError(
                f"{path} has no slide of '{options['institute']}'.{did_you_mean(options['institute'], known)}",
                fix=f"its institutes are: {', '.join(known) or 'none'}.",
            )
    by_slide: dict[str, list[tables.SlideRow]] = defaultdict(list)
    for row in rows:
        by_slide[row.slide].append(row)
    followed = any(row.survival_months is not None for row in every)
    bags = [_of_rows(slide, own, there, folder, followed=followed) for slide, own in by_slide.items()]
    bags += [
        _Bag(file, slide, None, problem=f"a bag without a label: {path.name} does not list its slide")
        for slide, file in there.items()
        if slide not in listed
    ]
    notes = [f"labels of {len(by_slide)} slides from {path.name}"]
    if again := len(rows) - len(by_slide):
        notes.append(f"{path.name} lists {again} slides again")
    return bags, notes


def _of_rows(
    slide: str, rows: Sequence[tables.SlideRow], there: Mapping[str, Path], folder: Path, *, followed: bool
) -> _Bag:
    first = rows[0]
    problem = None
    if len({row.label for row in rows}) > 1:
        problem = f"different labels in its rows ({' and '.join(str(row.label) for row in rows[:2])})"
    elif first.label is None and not followed:  # what a table of survival lacks is its task's to say
        problem = "its row has no label"
    elif slide not in there:
        problem = f"a label without a bag: {NO_FILE}"
    split = split_of(first.split) if first.split else None
    path = there.get(slide, folder / f"{slide}.h5")
    months, censorship = first.survival_months, first.censorship
    if len({(row.survival_months, row.censorship) for row in rows}) > 1:
        months, censorship = CONTRADICTED, None
    return _Bag(path, slide, first.label, first.patient, split, months, censorship, problem)


def _with_splits(bags: Sequence[_Bag], path: Path) -> list[_Bag]:
    parts = tables.read_splits(path)
    unlisted = f"not in {path.name}"
    return [
        replace(
            bag, split=parts.get(bag.slide or ""), problem=bag.problem or (None if bag.slide in parts else unlisted)
        )
        for bag in bags
    ]


def _with_patients(bags: Sequence[_Bag], pattern: str, site: str) -> list[_Bag]:
    find = patient_finder(pattern, f"Site '{site}': ")
    return [bag if bag.patient is not None else replace(bag, patient=find(bag.slide or "")) for bag in bags]


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────
def _frame(bags: Sequence[_Bag], root: Path, site: str, report: Reporter) -> pd.DataFrame:
    import pandas as pd

    with ThreadPoolExecutor(4) as pool:
        looked = tracked(pool.map(_looked_at, bags), report, f"draft/{site}", f"reading {site}", total=len(bags))
        facts = list(looked)
    rows = [
        (
            *(_below(bag.path, root), site, bag.patient, bag.slide, bag.label or NO_LABEL, None, bag.split),
            *(None, None, None, digest, SOURCE),
            *(found.instances if found else None, found.dim if found else None, found.encoder if found else None),
            *(found.dtype if found else None, bag.months, bag.censorship, problem),
        )
        for bag, (found, digest, problem) in zip(bags, facts, strict=True)
    ]
    names = [*COLUMNS, INSTANCES, DIM, ENCODER, DTYPE, MONTHS, CENSORSHIP, PROBLEM]
    frame = pd.DataFrame(rows, columns=names).sort_values("path", ignore_index=True)
    for name in (INSTANCES, DIM, CENSORSHIP):
        frame[name] = frame[name].astype("Int64")
    for name in (ENCODER, DTYPE, PROBLEM):
        frame[name] = pd.Series([None if pd.isna(v) else v for v in frame[name]], dtype=object)
    frame[MONTHS] = frame[MONTHS].astype("float64")
    return frame


def _looked_at(bag: _Bag) -> tuple[files.BagFacts | None, str | None, str | None]:
    """Facts and fingerprint of a bag, and what is wrong with it."""
    if bag.problem is not None and not (bag.path.is_file() and bag.label is None):
        return None, None, bag.problem
    try:
        found = facts_at(bag.path)
        if found.instances == 0:
            return found, None, bag.problem or NO_INSTANCE
        return found, fingerprint_at(bag.path), bag.problem
    except DataError as cause:
        return None, None, bag.problem or _reason(cause, bag.path)


def _reason(cause: DataError, path: Path) -> str:
    """An error's message without the file's folder: it is counted by reason, and shown to others."""
    return cause.message.replace(str(path), "").lstrip(" :").rstrip(".") or "it cannot be read"


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _dealt(manifest: Manifest, options: Mapping[str, str], site: str) -> tuple[Manifest, str]:
    """One part of the bags, dealt out with skewed labels; every site of the set draws the same deal."""
    try:
        part, of = int(options["part"]), int(options["of"])
        alpha, seed = float(options.get("dirichlet", "0.5")), int(options.get("deal_seed", "0"))
    except (KeyError, ValueError) as cause:
        raise ConfigError(
            f"Site '{site}': the options part and of belong together and are whole numbers ({cause}).",
            fix="write for example options = { part = 1, of = 4, dirichlet = 0.5 }.",
        ) from cause
    if not (of >= 2 and 1 <= part <= of and 0 < alpha < np.inf):
        raise ConfigError(
            f"Site '{site}': part {part} of {of} at dirichlet = {alpha:g}.",
            fix="give 1 ≤ part ≤ of, of ≥ 2, dirichlet > 0.",
        )
    sound = manifest.frame[PROBLEM].isna()
    whole = Manifest(manifest.frame.assign(label=manifest.frame["source_label"])[sound], manifest.root)
    found = partition(whole, sites=of, alpha=alpha, seed=seed, name="part")
    mine = set(found.sites[f"part-{part}"].frame["path"])
    # What cannot be used is counted once, at the first of the simulated sites.
    kept = manifest.frame["path"].isin(mine) | (~sound & (part == 1))
    return manifest.where(kept), f"part {part} of {of}, dealt out with α = {alpha:g}, seed {seed}"


def _facts(manifest: Manifest) -> list[str]:
    frame = manifest.frame
    sizes = frame[INSTANCES].dropna().to_numpy(dtype=np.int64)
    said = []
    if len(sizes):
        said.append(
            f"{len(frame)} bags, {np.median(sizes):.0f} instances in the median ({sizes.min()}–{sizes.max():,})"
        )
    patients = frame["patient"].dropna()
    if len(patients):
        rest = f"; the other {len(frame) - len(patients)} are split by bag" if len(patients) < len(frame) else ""
        said.append(f"patient ids for {len(patients)} of {len(frame)} bags ({patients.nunique()} patients){rest}")
    else:
        said.append("no patient ids: splits will be by bag")
    return said
