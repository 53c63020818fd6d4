"""A folder of images → a manifest, with every guess said aloud and every file accounted for."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from morphfed.core.errors import ConfigError, DataError, did_you_mean
from morphfed.core.progress import Event, Reporter, silent, tracked
from morphfed.data.leaving_out import as_text, without_labels, without_sizes
from morphfed.data.manifest import COLUMNS, MASK, SITE_NAME, Manifest
from morphfed.data.ontology import COMMON, Table, load_ontology
from morphfed.data.sources import SOURCES, Folder, Record, Skipped, Source
from morphfed.data.sources._finding import SURE, find_sites, rank_sources, site_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COMMON_OPTIONS", "Draft", "TreeDraft", "draft", "draft_tree", "find_sites", "site_name"]

DRAW = 0.05
"""Two sources whose confidences differ by less than this are a draw, which the user decides."""

COMMON_OPTIONS: Mapping[str, str] = {
    "patient_pattern": "regular expression whose one group is the patient id, searched in the relative path",
    "leave_out_labels": "the site's own labels to leave out, separated by ';' (ERB; PLATELET)",
    "leave_out_px": "sizes of images to leave out, WIDTHxHEIGHT separated by ';' (366x369)",
}
"""Options of every source: what they are for."""


@dataclass(frozen=True)
class Draft:
    """A site's manifest and all that a person should know about how it came to be.

    Attributes:
        manifest: one row for every image of the site; ``root`` is the folder.
        guesses: sentences, each one guess or finding.
        skipped: reason → files that became no row.
        unmapped: the site's labels that the ontology does not know → number of images.
    """

    manifest: Manifest
    guesses: list[str]
    skipped: dict[str, list[Path]]
    unmapped: dict[str, int]


def draft(
    folder: Path,
    *,
    site: str,
    source: str | None = None,
    um_per_px: float | None = None,
    report: Reporter = silent,
    options: Mapping[str, str] | None = None,
    masks: bool = False,
) -> Draft:
    """Draft the manifest of one site.

    A file that cannot be opened keeps its row, with nulls: nothing is lost, and ``data check`` reports it.

    Args:
        folder: the site's images.
        site: its name, ``[a-z0-9_-]+``.
        source: adapter to use; the most confident one if not given.
        um_per_px: physical size of a pixel, where known; wins over what the source says.
        options: the adapter's own options, see ``Source.options`` and ``COMMON_OPTIONS``.
        masks: also say which file is each image's mask, in a column ``mask``.

    Raises:
        DataError: no image, no adapter that recognises the folder, or several that do; names the site.
        ConfigError: an unknown source or option, or a pattern that is none.
    """
    if not re.fullmatch(SITE_NAME, site):
        raise DataError(f"'{site}' is not a site's name.", fix=f"use {SITE_NAME}, for example '{site_name(site)}'.")
    if um_per_px is not None and not 0 < um_per_px < float("inf"):
        raise DataError(f"Site '{site}': um_per_px = {um_per_px} is not a positive size.", fix="give µm per pixel.")
    given = {key: as_text(value) for key, value in (options or {}).items()}
    found = Folder.scan(folder)
    if not found.images and not found.tables:
        raise DataError(_empty(site, found), fix=_empty_fix(found))
    adapter, why = _choose(found, site, source)
    _check_options(adapter, given, site)
    records, notes, skipped = _read(adapter, found, given)
    if not records:
        raise DataError(
            f"Site '{site}': source {adapter.name} finds no image in {folder}. {_counts(skipped)}",
            fix="check the folder, or choose another source.",
        )
    if "patient_pattern" in given:
        records = _with_patients(records, found.path, given["patient_pattern"])
    table = _table(adapter, records, given)
    if "leave_out_labels" in given:
        records = without_labels(records, given["leave_out_labels"], table, site, skipped, notes)
    frame = _frame(records, found.path, site, adapter.name, table, report, masks=masks)
    if "leave_out_px" in given:
        frame = without_sizes(frame, found.path, given["leave_out_px"], skipped, notes)
    if frame.empty:
        raise DataError(f"Site '{site}': every image is left out as asked for.", fix="leave out less.")
    scale, said = _scale(frame, table, um_per_px, nuclei=adapter.nuclei)
    manifest = Manifest(frame if scale is None else frame.assign(um_per_px=scale), found.path)
    labels = Counter(frame["source_label"][frame["label"].isna()])
    guesses = [
        f"source {adapter.name}, {why}",
        *_table_note(adapter, table, given),
        *notes,
        *said,
        *(f"label '{label}' is mapped to no cell type: {why}" for label, why in _unmapped(labels, table)),
        *_facts(manifest),
    ]
    return Draft(manifest, guesses, skipped, dict(labels.most_common()))


def _choose(found: Folder, site: str, asked: str | None) -> tuple[Source, str]:
    if asked is not None:
        return SOURCES[asked](), "as asked for"
    ranked = rank_sources(found)
    best, confidence = ranked[0]
    listed = ", ".join(f"{s.name} ({c:.2f})" for s, c in ranked if c > 0)
    if confidence < SURE:
        raise DataError(
            f"Site '{site}': no source recognises the layout of {found.path}"
            f"{f'; candidates: {listed}' if listed else ''}.",
            fix="make a folder per class, or name a source: `morphfed list sources` explains them.",
        )
    draws = [s.name for s, c in ranked if confidence - c < DRAW]
    if len(draws) > 1:
        raise DataError(
            f"Site '{site}': {found.path} can be read in {len(draws)} ways: {listed}.",
            fix=f"choose one: source = {' or '.join(draws)}.",
        )
    return best, f"because {best.layout}"


def _check_options(adapter: Source, given: Mapping[str, str], site: str) -> None:
    known = {**adapter.options, **COMMON_OPTIONS}
    for key in given:
        if key not in known:
            raise ConfigError(
                f"Site '{site}': source {adapter.name} has no option '{key}'.{did_you_mean(key, known)}",
                fix=f"its options are: {', '.join(known)}.",
            )
    tables = load_ontology().tables
    if "labels" in given and given["labels"] not in tables:
        raise ConfigError(
            f"Site '{site}': labels = '{given['labels']}' is no table of the ontology."
            f"{did_you_mean(given['labels'], tables)}",
            fix=f"choose one of: {', '.join(sorted(tables))}.",
        )


def _read(
    adapter: Source, found: Folder, given: Mapping[str, str]
) -> tuple[list[Record], list[str], dict[str, list[Path]]]:
    records, notes = [], []
    skipped: dict[str, list[Path]] = defaultdict(list)
    for litter in found.skipped:
        skipped[litter.reason].append(litter.path)
    for item in adapter.records(found, given):
        if isinstance(item, Record):
            records.append(item)
        elif isinstance(item, Skipped):
            skipped[item.reason].append(item.path)
        else:
            notes.append(item.text)
    return records, notes, dict(skipped)


def patient_finder(pattern: str, where: str = "") -> Callable[[str], str | None]:
    """A name → the patient in it; None: there is none.

    Args:
        pattern: regular expression with one group.
        where: begins the message, such as ``Site 'kampala': ``.

    Raises:
        ConfigError: it is no regular expression, or has not one group.
    """
    try:
        search = re.compile(pattern)
    except re.error as cause:
        raise ConfigError(
            f"{where}patient_pattern = '{pattern}': {cause}.", fix="correct the regular expression."
        ) from cause
    if search.groups != 1:
        raise ConfigError(
            f"{where}patient_pattern = '{pattern}' has {search.groups} groups.",
            fix="put ( ) around the patient id, once.",
        )

    def find(name: str) -> str | None:
        match = search.search(name)
        return match[1] if match else None

    return find


def _with_patients(records: Sequence[Record], root: Path, pattern: str) -> list[Record]:
    find = patient_finder(pattern)
    return [
        r if r.patient is not None else replace(r, patient=find(Path(os.path.relpath(r.path, root)).as_posix()))
        for r in records
    ]


def _unmapped(labels: Mapping[str, int], table: str) -> list[tuple[str, str]]:
    return [(label, why) for label in labels if (why := load_ontology().unmapped(label, table))]


def _table(adapter: Source, records: Sequence[Record], given: Mapping[str, str]) -> str:
    """The ontology's table that the labels are written in: asked for, the adapter's own, or the best fit."""
    ontology = load_ontology()
    if "labels" in given:
        return given["labels"]
    return adapter.name if adapter.name in ontology.tables else ontology.table_for(r.source_label for r in records)


def _table_note(adapter: Source, table: str, given: Mapping[str, str]) -> list[str]:
    if table in (adapter.name, COMMON):
        return []
    why = "as asked for" if "labels" in given else "because they are spelt as there"
    return [f"labels read as those of {table} ({load_ontology().tables[table].title}), {why}"]


def _frame(
    records: Sequence[Record], root: Path, site: str, source: str, table: str, report: Reporter, *, masks: bool
) -> pd.DataFrame:
    import pandas as pd

    ontology = load_ontology()
    nodes = {label: ontology.map(label, table) for label in {r.source_label for r in records}}
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        facts = pool.map(_file_facts, [r.path for r in records])
        measured = list(tracked(facts, report, f"draft/{site}", f"reading {site}", total=len(records)))
    rows = [
        (
            *(_below(r.path, root), site),
            *(r.patient, r.slide, r.source_label, nodes[r.source_label], r.split, r.um_per_px),
            *(width, height, digest, source),
        )
        for r, (width, height, digest) in zip(records, measured, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    if any(r.lesion is not None for r in records):
        frame["lesion"] = pd.Series([r.lesion for r in records], dtype=object)
    if masks:
        frame[MASK] = pd.Series([r.mask and _below(r.mask, root) for r in records], dtype=object)
    return frame.sort_values("path", ignore_index=True).astype({"label": object})


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _file_facts(path: Path) -> tuple[int | None, int | None, str | None]:
    """Width, height and SHA-256; from one read, without decoding."""
    from morphfed.data.decode import probe_bytes

    try:
        content = path.read_bytes()
    except OSError:  # the row stays, with nulls, and `data check` names the file
        return None, None, None
    digest = hashlib.sha256(content).hexdigest()
    try:
        facts = probe_bytes(content, path)
    except DataError:  # likewise: a row with a hash and no size is a file that is no image
        return None, None, digest
    return facts.width, facts.height, digest


def _scale(frame: pd.DataFrame, table: str, given: float | None, *, nuclei: bool) -> tuple[float | None, list[str]]:
    """The scale to write into every row, or None to leave the records' own; and what to say."""
    if given is not None:
        return given, [f"um_per_px {given:.4f} as given"]
    own = frame["um_per_px"].dropna()
    if len(own):
        return None, [f"um_per_px from the source for {len(own)} of {len(frame)} images"]
    about: Table = load_ontology().tables[table]
    if about.um_per_px is None or about.image_px is None:
        how = (
            "it can be given, or estimated from the cells"
            if nuclei
            else "it can be given; there are no cells to tell it"
        )
        return None, [f"um_per_px not known: {how}"]
    width, height = about.image_px
    fitting = int(((frame["width"] == width) & (frame["height"] == height)).sum())
    if 2 * fitting <= len(frame):
        return None, [
            f"um_per_px not known: {table} has {about.um_per_px:.4f} at {width}×{height} pixels, "
            f"but only {fitting} of {len(frame)} images have that size"
        ]
    return about.um_per_px, [
        f"um_per_px {about.um_per_px:.4f} from the source ({fitting} of {len(frame)} images are {width}×{height})"
    ]


def _facts(manifest: Manifest) -> list[str]:
    frame = manifest.frame
    n, patients, slides = len(frame), frame["patient"].dropna(), frame["slide"].dropna()
    said = []
    lesions = frame["lesion"].dropna() if "lesion" in frame.columns else frame["patient"].iloc[:0]
    if len(patients):
        rest = f"; the other {n - len(patients)} are split by image" if len(patients) < n else ""
        said.append(f"patient ids for {len(patients)} of {n} images ({patients.nunique()} patients){rest}")
    elif len(lesions):
        rest = f"; the other {n - len(lesions)} are split by image" if len(lesions) < n else ""
        said.append(f"no patient ids, lesion ids for {len(lesions)} of {n} images ({lesions.nunique()} lesions){rest}")
    else:
        by = "slide or field" if len(slides) else "image"
        said.append(f"no patient ids: splits will be by {by}")
    official = Counter(frame["split"].dropna())
    if official:
        counts = ", ".join(f"{name} {official[name]}" for name in ("train", "validation", "test") if official[name])
        said.append(f"the source's own split is kept: {counts}")
    unreadable = int(frame["width"].isna().sum())
    if unreadable:
        said.append(f"{unreadable} files are missing or are no images; their rows are kept without a size")
    return said


def _empty_fix(found: Folder) -> str:
    if any(skipped.path.suffix.lower() == ".npz" for skipped in found.skipped):
        return "of BloodMNIST write the pictures out first: morphfed data unpack bloodmnist FILE.npz NEW-FOLDER"
    if any(skipped.path.name.lower().endswith((".nii", ".nii.gz")) for skipped in found.skipped):
        return f"of volumes write the slices out first: morphfed data unpack saml_prostate {found.path} NEW-FOLDER"
    return f"check the folder; images end in {_suffixes()}."


def _empty(site: str, found: Folder) -> str:
    others = Counter(skipped.reason for skipped in found.skipped)
    seen = "; ".join(f"{n} × {reason}" for reason, n in others.most_common(5)) or "it is empty"
    return f"Site '{site}': {found.path} holds no image ({seen})."


def _counts(skipped: Mapping[str, Sequence[Path]]) -> str:
    return "; ".join(f"{len(paths)} × {reason}" for reason, paths in skipped.items())


def _suffixes() -> str:
    from morphfed.data.sources.base import IMAGE_SUFFIXES

    return ", ".join(sorted(IMAGE_SUFFIXES))


@dataclass(frozen=True)
class TreeDraft:
    """The drafts of a folder of sites.

    Attributes:
        drafts: site → draft.
        refused: name of a folder → why it is no site; not empty means that something was left out.
    """

    drafts: dict[str, Draft]
    refused: dict[str, DataError]

    @property
    def manifest(self) -> Manifest:
        """All sites' rows."""
        return Manifest.concat([d.manifest for d in self.drafts.values()])


def draft_tree(root: Path, *, report: Reporter = silent) -> TreeDraft:
    """Draft every site below ``root``, or ``root`` itself where it is one site.

    Raises:
        DataError: nothing there can be drafted; says why for every folder.
    """
    drafts: dict[str, Draft] = {}
    refused: dict[str, DataError] = {}
    places = find_sites(root)
    for done, (name, folder) in enumerate(places.items()):
        report(Event("draft", done, len(places), f"reading {name}"))
        try:
            drafts[name] = draft(folder, site=name, report=report)
        except DataError as cause:
            refused[name] = cause
    report(Event("draft", len(places), len(places)))
    if not drafts:
        reasons = " ".join(cause.message for cause in refused.values())
        fix = next((cause.fix for cause in refused.values()), "check the folder.")
        raise DataError(f"{root} holds no site that can be read. {reasons}", fix=fix)
    return TreeDraft(drafts, refused)
