"""What a site leaves out on purpose while its manifest is drafted: labels and sizes of images, counted and said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from morphfed.core.errors import ConfigError, did_you_mean
from morphfed.data.ontology import load_ontology
from morphfed.data.sources import Record

if TYPE_CHECKING:
    import pandas as pd


def as_text(value: object) -> str:
    """An option as a command line gives it: a list of a study file is joined by ``;``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _listed(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(";") if entry.strip()]


def without_labels(
    records: Sequence[Record],
    text: str,
    table: str,
    site: str,
    skipped: dict[str, list[Path]],
    notes: list[str],
) -> list[Record]:
    """The records with other labels than those of ``text``, which ``;`` separates; those left out are counted.

    Args:
        table: the ontology's table that the labels are written in.
        skipped: reason → files; added to.
        notes: sentences; added to.

    Raises:
        ConfigError: a label that no image has and the table does not know: a slip of the pen.
    """
    ontology, there = load_ontology(), {r.source_label for r in records}
    for label in (wanted := _listed(text)):
        if label not in there:
            if ontology.map(label, table) is None and not ontology.unmapped(label, table):
                raise ConfigError(
                    f"Site '{site}': leave_out_labels names '{label}', which no image has.{did_you_mean(label, there)}",
                    fix=f"the labels are: {', '.join(sorted(there))}.",
                )
            notes.append(f"no image is labelled '{label}', which was to be left out")
    for record in records:
        if record.source_label in wanted:
            skipped.setdefault(f"label '{record.source_label}' left out as asked for", []).append(record.path)
    return [r for r in records if r.source_label not in wanted]


def without_sizes(
    frame: pd.DataFrame, root: Path, text: str, skipped: dict[str, list[Path]], notes: list[str]
) -> pd.DataFrame:
    """The rows of other sizes than those of ``text`` (366x369; 360x360). A file that cannot be read keeps its row.

    Args:
        root: folder that the rows' paths are relative to.
        skipped: reason → files; added to.
        notes: sentences; added to.

    Raises:
        ConfigError: no size.
    """
    for entry in _listed(text):
        size = re.fullmatch(r"(\d+)\s*[x×]\s*(\d+)", entry)
        if size is None:
            raise ConfigError(f"leave_out_px: '{entry}' is no size.", fix="write WIDTHxHEIGHT, such as 366x369.")
        fits = (frame["width"] == int(size[1])) & (frame["height"] == int(size[2]))
        if not fits.any():
            notes.append(f"no image is {size[1]}×{size[2]} pixels, which was to be left out")
            continue
        skipped[f"{size[1]}×{size[2]} pixels, left out as asked for"] = [root / p for p in frame["path"][fits]]
        frame = frame[~fits].reset_index(drop=True)
    return frame
