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
    from morphfed.data.partition import Partition

app = cyclopts.App(
    name="data", help="Draft a manifest from folders of images, check it before training, make bags of it."
)

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
    from morphfed.cli._pairs import pairs
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
            chosen = pairs(option, "--option", "table=cells.csv")
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


@app.command
def partition(
    manifest: Path,
    /,
    *,
    sites: int,
    dirichlet: float,
    out: Path,
    seed: int = 0,
    classes: str | None = None,
    name: str | None = None,
    least: int = 10,
    force: bool = False,
) -> int:
    """Deal a manifest's images out to simulated sites whose classes are skewed; write one manifest a site.

    For each class the sites' shares are drawn from a Dirichlet distribution. Patients and exact copies stay together.

    Args:
        manifest: a .csv or .parquet manifest.
        sites: how many sites.
        dirichlet: α; 0.1 leaves most classes at one or two sites, 100 deals evenly.
        out: folder for NAME-1.csv, NAME-2.csv, ….
        seed: of the draw.
        classes: the study's classes, such as neutrophil,lymphocyte,monocyte; default every label.
        name: of the simulated sites; default the manifest's only site, else 'site'.
        least: images that each site must have; draws with fewer are repeated.
        force: replace existing manifests.
    """
    from morphfed.core.errors import ConfigError, DataError
    from morphfed.data.manifest import Manifest
    from morphfed.data.partition import partition as run_partition

    for key, value, wanted in (("--sites", sites, 2), ("--least", least, 1)):
        if value < wanted:
            raise ConfigError(f"{key} is {value}, expected at least {wanted}.", fix="give a larger number.")
    if not 0 < dirichlet < float("inf"):
        raise ConfigError(f"--dirichlet is {dirichlet:g}, expected a number above 0.", fix="try 0.1, 0.5 or 100.")
    source = Manifest.read(manifest)
    called = name or (source.sites[0] if len(source.sites) == 1 else "site")
    chosen = [c.strip() for c in classes.split(",") if c.strip()] if classes is not None else []
    found = run_partition(source, sites=sites, alpha=dirichlet, seed=seed, name=called, classes=chosen, least=least)
    files = {site: out / f"{site}{manifest.suffix.lower()}" for site in found.sites}
    if taken := [str(file) for file in files.values() if file.exists() and not force]:
        raise DataError(f"{taken[0]} exists.", fix="name another folder with --out, or replace it with --force.")
    for site, part in found.sites.items():
        part.write(files[site])
    sys.stdout.write(_dealt(found, files))
    return 0


def _dealt(found: Partition, files: Mapping[str, Path]) -> str:
    kinds = sorted({kind for counts in found.counts.values() for kind in counts})
    width = max(len(word) for word in ("site", *files))
    columns = [max(len(kind), 6) for kind in kinds]
    head = "  ".join(f"{kind:>{w}}" for kind, w in zip(kinds, columns, strict=True))
    lines = [f"{'site':<{width}}  images  {head}"]
    for site, counts in found.counts.items():
        cells = "  ".join(f"{counts[kind]:>{w},}" for kind, w in zip(kinds, columns, strict=True))
        lines.append(f"{site:<{width}}  {counts.total():>6,}  {cells}")
    if found.left_out:
        named = ", ".join(f"'{label}' {n:,}" for label, n in found.left_out.most_common())
        lines.append(f"left out {found.left_out.total():,} images of none of the classes: {named}")
    lines.append(f"draws: {found.tries}")
    lines += [f"wrote {file}" for file in files.values()]
    return "\n".join(lines) + "\nnext: name them in a study as [sites.NAME] path = …\n"


@app.command
def bags(
    manifest: Path,
    /,
    *,
    model: str,
    out: Path,
    weights: str = "pretrained",
    image_size: int = 224,
    positive: str | None = None,
    share: float = 0.2,
    compose: int | None = None,
    cells: int = 50,
    seed: int = 0,
    cache: Path = Path("runs/.cache"),
) -> int:
    """Make bags of blood cells for multiple-instance learning: one .h5 of features a patient, and a slide table a site.

    A patient's label is that of its cells where they share one (a diagnosis). With --positive it follows from the film:
    positive from --share of that cell on. With --compose patients are made up from a site's cells, each in one patient.

    Args:
        manifest: a .csv or .parquet manifest of cells.
        model: encoder, any of timm's models.
        out: folder for SITE/PATIENT.h5 and SITE/slides.csv.
        weights: of the encoder: pretrained, or a .safetensors file.
        image_size: side in pixels that cells are resized to.
        positive: cell type that makes a patient positive, such as myeloblast.
        share: of a patient's cells from which on it is positive.
        compose: invent so many patients at each site.
        cells: of each invented patient.
        seed: of the invention.
        cache: of pictures and features.
    """
    from morphfed.cli.display import Display
    from morphfed.core.errors import ConfigError
    from morphfed.core.memory import keep_freed_memory
    from morphfed.data.manifest import Manifest
    from morphfed.experiment.patient_bags import Composition, Encoder, Invented, patients_of, write_patient_bags

    for key, value, least in (("--compose", compose, 2), ("--cells", cells, 1), ("--image-size", image_size, 16)):
        if value is not None and value < least:
            raise ConfigError(f"{key} is {value}, expected at least {least}.", fix="give a larger number.")
    source = Manifest.read(manifest)
    composition = None if positive is None else Composition(positive, share)
    invented = None if compose is None else Invented(compose, cells, seed)
    found, left_out = patients_of(source, composition, invented)
    keep_freed_memory()
    with Display() as display:
        written = write_patient_bags(source, found, Encoder(model, weights, image_size, cache), out, report=display)
    lines = [f"{s}: {', '.join(f'{n} {label}' for label, n in sorted(c.items()))}" for s, c in written.labels.items()]
    lines += [f"left out {n:,} cells: {why}" for why, n in left_out.items() if n]
    lines += [f"wrote {table}" for table in written.tables.values()]
    sys.stdout.write("\n".join(lines) + "\nnext: name the folders as sites of a study with task = 'mil'\n")
    return 0


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
