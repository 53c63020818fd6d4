"""``morphfed data``: from folders of images to a manifest, and from a manifest to what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts

if TYPE_CHECKING:
    from morphfed.data.drafting import Draft
    from morphfed.data.manifest import Manifest

app = cyclopts.App(name="data", help="Draft a manifest from folders of images, and check it before training.")

_SHOWN = 3  # files named for each reason of skipping


@app.command
def init(
    folder: Path,
    /,
    *,
    site: str | None = None,
    source: str | None = None,
    um_per_px: float | None = None,
    option: list[str] | None = None,
    out: Path = Path("manifest.csv"),
    force: bool = False,
) -> int:
    """Draft a manifest from a folder: one row an image; what was guessed is printed.

    With --site, --source, --option or --um-per-px the folder is one site, else its sites are found in it. Leaves with 1
    when a folder was refused.

    Args:
        folder: the images of one site, or a folder of sites.
        site: the site's name; default the folder's.
        source: adapter that reads the layout; `morphfed list sources` explains them.
        um_per_px: size of a pixel in µm, where known.
        option: of the adapter, as NAME=VALUE; may be given several times (--option table=cells.csv).
        out: the manifest to write, .csv or .parquet.
        force: replace an existing manifest.
    """
    from morphfed.cli.display import Display
    from morphfed.core.errors import DataError
    from morphfed.data.drafting import draft, draft_tree, site_name
    from morphfed.data.manifest import Manifest

    if out.exists() and not force:
        raise DataError(
            f"{out} exists; labels or splits may have been edited in it.",
            fix="name another file with --out, or replace it with --force.",
        )
    refused: Mapping[str, DataError] = {}
    with Display() as display:
        if site is None and source is None and um_per_px is None and not option:
            tree = draft_tree(folder, report=display)
            drafts, refused = tree.drafts, tree.refused
        else:
            name = site or site_name(folder.absolute().name)
            chosen = _options(option or [])
            one_site = draft(folder, site=name, source=source, um_per_px=um_per_px, report=display, options=chosen)
            drafts = {name: one_site}
        manifest = Manifest.concat([one.manifest for one in drafts.values()]).write(out)
    for name, one in drafts.items():
        sys.stdout.write(_describe(name, one))
    for name, cause in refused.items():
        sys.stdout.write(f"\n{name}: left out. {cause.message}\n  fix: {cause.fix}\n")
    sys.stdout.write(f"\n{_written(out, manifest)}\nnext: morphfed data check {out}\n")
    return 1 if refused else 0


@app.command
def unpack(kind: str, source: Path, out: Path, /, *, margin: float = 0.1, all_slices: bool = False) -> int:
    """Write one picture a cell or slice from a published set that has none: archives, boxes on fields, volumes.

    The folder can then be named as a site; the source of the same name reads it. The published files stay as they are.

    Args:
        kind: bccd, bloodmnist, leukemiaattri or saml_prostate.
        source: the published file or folder, such as bloodmnist_224.npz or H_100X_C1.
        out: folder to write into.
        margin: added on each side of a box, as a share of its longer side.
        all_slices: of volumes also the slices in which nothing is marked.
    """
    from morphfed.data.unpack import unpack as run_unpack

    done = run_unpack(kind, source, out, margin=margin, all_slices=all_slices)
    lines = [f"{kind}: {done.labels.total():,} pictures"]
    lines += [f"  {label}: {n:,}" for label, n in done.labels.most_common()]
    lines += [f"  skipped {n:,}: {reason}" for reason, n in done.skipped.most_common()]
    lines += [f"  note: {text}" for text in done.remarks]
    sys.stdout.write("\n".join(lines) + f"\nwrote {done.table}\nnext: morphfed data init {out} --source {kind}\n")
    return 0


def _options(given: list[str]) -> dict[str, str]:
    from morphfed.core.errors import ConfigError

    pairs = [text.partition("=") for text in given]
    for (name, separator, value), text in zip(pairs, given, strict=True):
        if not (name and separator and value):
            raise ConfigError(f"--option {text}: not NAME=VALUE.", fix="write for example --option table=cells.csv.")
    return {name: value for name, _, value in pairs}


@app.command
def check(
    manifest: Path,
    /,
    *,
    classes: str | None = None,
    min_per_class: int = 10,
    json: bool = False,
    figure: Path | None = None,
) -> int:
    """Read every image of a manifest and say what is wrong: files, labels, duplicates, patients, looks.

    Leaves with 0 when all is well, 1 after warnings, 2 after errors.

    Args:
        manifest: a .csv or .parquet manifest.
        classes: the study's classes, such as neutrophil,lymphocyte,monocyte; default every label.
        min_per_class: images of a class that a site should have.
        json: print the findings as JSON.
        figure: also draw the sites' colours, .png, .svg or .pdf.
    """
    import json as jsonlib
    import shutil

    from morphfed.cli.display import Display
    from morphfed.data.manifest import Manifest
    from morphfed.data.quality import check as run_check
    from morphfed.data.quality import colour_figure, render_text

    chosen = [name.strip() for name in classes.split(",") if name.strip()] if classes is not None else None
    with Display(quiet=json) as display:
        found = run_check(Manifest.read(manifest), classes=chosen, min_per_class=min_per_class, report=display)
    if figure is not None:
        colour_figure(found, figure)
    if json:
        sys.stdout.write(jsonlib.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return found.exit_code
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 120
    sys.stdout.write(render_text(found, width=width, colour=terminal))
    if figure is not None:
        sys.stdout.write(f"colours of the sites: {figure}\n")
    sys.stdout.write(_after_check(manifest, found.status))
    return found.exit_code


def _after_check(manifest: Path, status: str) -> str:
    if status == "errors":
        return f"next: mend the errors above, then morphfed data check {manifest}\n"
    return f"next: name {manifest} in a study, then morphfed plan STUDY.toml\n"


def _describe(name: str, one: Draft) -> str:
    frame = one.manifest.frame
    lines = ["", f"{name}: {len(frame):,} images", *(f"  guessed: {guess}" for guess in one.guesses)]
    counts = frame["label"].value_counts()
    if len(counts):
        lines.append("  labels: " + ", ".join(f"{label} {n:,}" for label, n in counts.items()))
    if one.unmapped:
        known = ", ".join(f"'{label}' {n:,}" for label, n in one.unmapped.items())
        lines.append(f"  unknown labels (left out unless you write 'label' yourself): {known}")
    for reason, files in one.skipped.items():
        shown = ", ".join(file.name for file in files[:_SHOWN]) + (", …" if len(files) > _SHOWN else "")
        lines.append(f"  skipped {len(files):,}: {reason} ({shown})")
    return "\n".join(lines) + "\n"


def _written(out: Path, manifest: Manifest) -> str:
    sites = len(manifest.sites)
    return f"wrote {out}: {len(manifest):,} images of {sites} site{'' if sites == 1 else 's'}."
