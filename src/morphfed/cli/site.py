"""``morphfed site``: what a hospital runs to take part in a federation over a network."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Any

import cyclopts

app = cyclopts.App(name="site", help="Take part in a federation over a network: review, approve, join, ledger.")

SITE = Path("site")
"""Folder of a site where none is named."""


@app.command
def review(study: Path, /) -> int:
    """Say in plain words what a study trains, what would leave this site and what stays. Nothing is run or sent.

    Args:
        study: the study file (.toml) that the coordinator gave you.
    """
    from morphfed.deploy.agreed import load_agreed
    from morphfed.deploy.review import review as text_of

    sys.stdout.write(text_of(load_agreed(study)).text)
    sys.stdout.write(f"\nnext: morphfed site approve {study}\n")
    return 0


@app.command
def approve(
    study: Path | None = None, /, *, folder: Path = SITE, list_: bool = False, withdraw: str | None = None
) -> int:
    """Allow a study to train at this site. Only its exact hash is allowed: any change needs a new approval.

    Args:
        study: the study file, as reviewed.
        folder: the site's folder.
        list_: show what is approved instead.
        withdraw: take back the approval of the study with this hash instead.
    """
    from morphfed.core.errors import ConfigError
    from morphfed.deploy import consent

    if list_:
        for known in consent.approvals(folder):
            sys.stdout.write(f"{known.hash}  {known.name}  approved by {known.by}, {known.time}\n")
        return 0
    if withdraw is not None:
        consent.withdraw(folder, withdraw)
        sys.stdout.write(f"withdrawn: {withdraw}. This site refuses that study from now on.\n")
        return 0
    if study is None:
        raise ConfigError("Which study?", fix="name the study file, or --list, or --withdraw HASH.")
    from morphfed.deploy.agreed import load_agreed
    from morphfed.deploy.review import review as text_of

    made = consent.approve(folder, study, text_of(load_agreed(study)))
    sys.stdout.write(
        f"approved: study {made.name}, {made.hash}, by {made.by}\nwritten to {folder / consent.APPROVED}\n"
    )
    return 0


@app.command
def join(
    bundle: Path,
    /,
    *,
    data: Path,
    folder: Path = SITE,
    source: str | None = None,
    um_per_px: float | None = None,
    option: list[str] | None = None,
    label: list[str] | None = None,
    stay: bool = False,
) -> int:
    """Take part in a federation: connects outwards, trains what is approved, ends when the study is over.

    Args:
        bundle: the .zip that the coordinator gave you.
        data: this site's images: a .csv or .parquet manifest, or a folder; or its bags: a folder or a slide table.
        folder: the site's folder: approvals, ledger, private state, prepared images, models.
        source: adapter that reads a folder; `morphfed list sources` explains them.
        um_per_px: size of a pixel in µm, where known.
        option: NAME=VALUE for the source or the bags, such as bags=features; may be given several times.
        label: OWN=CLASS, a label of this site's bags and the study's class for it; may be given several times.
        stay: wait for further studies when this one is over.
    """
    from morphfed.cli._pairs import pairs
    from morphfed.cli.display import Display
    from morphfed.core.errors import DataError
    from morphfed.deploy.join import join as run
    from morphfed.experiment.study import SiteConfig

    if not data.exists():
        raise DataError(f"{data} does not exist.", fix="name this site's manifest; `morphfed data init` drafts one.")
    options = pairs(option, "--option", "bags=features")
    labels = pairs(label, "--label", "benign=normal")
    config = SiteConfig(path=str(data.resolve()), source=source, um_per_px=um_per_px, options=options, labels=labels)
    with Display() as display:
        run(bundle, folder, config, stay=stay, report=display)
    sys.stdout.write(f"the study is over; models are in {folder / 'models'}\nnext: morphfed site ledger {folder}\n")
    return 0


@app.command
def ledger(folder: Path = SITE, /, *, last: int = 20, json: bool = False) -> int:
    """Show and verify what left this site. Leaves with 9 if a record was changed.

    Args:
        folder: the site's folder, or a ledger file.
        last: how many records to show; 0: all.
        json: print the records as they are, one a line, and the verdict last.
    """
    from morphfed.privacy.ledger import records, verify

    path = folder / "ledger.jsonl" if folder.is_dir() else folder
    verdict = verify(path)
    if not path.exists():
        sys.stdout.write(f"{path}: nothing has left this site yet.\n")
        return 0
    every = list(records(path))[: verdict.records]
    shown = every[-last:] if last else every
    for record in shown:
        sys.stdout.write((jsonlib.dumps(record, ensure_ascii=False) if json else _line(record)) + "\n")
    if json:
        found = {"sound": verdict.sound, "records": verdict.records, "head": verdict.head}
        broken = {"line": verdict.line, "why": verdict.why} if not verdict.sound else {}
        sys.stdout.write(jsonlib.dumps(found | broken) + "\n")
        return 0 if verdict.sound else 9
    if len(shown) < len(every):
        sys.stdout.write(f"({len(every) - len(shown)} earlier records; --last 0 shows all)\n")
    moved = sum(int(record.get("bytes", 0)) for record in every)
    sys.stdout.write(f"\n{verdict.records} records, {moved:,} bytes left this site\n")
    if verdict.sound:
        sys.stdout.write(f"sound: every record is as it was written; last hash {verdict.head}\n")
        return 0
    sys.stdout.write(f"BROKEN at line {verdict.line}: {verdict.why}. The records above it are sound.\n")
    return 9


_SHOWN = 12
"""Numbers of a record that a terminal gets."""


def _line(record: dict[str, Any]) -> str:
    """One record for a terminal."""
    where = f"{record['time'][:19].replace('T', ' ')}  #{record['n']}"
    if "kind" in record:
        return f"{where}  {record['kind']}: {record['text']}"
    items = record["items"]
    tensors = [item for item in items if "sha256" in item and "values" not in item]
    rows = [item for item in items if "values" in item]
    numbers = [f"{item['name']}={item['value']:.4g}" for item in items if item.get("value") is not None]
    if len(numbers) > _SHOWN:
        numbers = [*numbers[:_SHOWN], f"{len(numbers) - _SHOWN} more numbers (--json shows all)"]
    parts = [f"{len(tensors)} tensors" if tensors else "", *(f"{r['name']}={r['values']}" for r in rows), *numbers]
    what = ", ".join(part for part in parts if part)
    why = f"({record['purpose']}; noise {record['noise']})"
    return f"{where}  round {record['round']}  {record['bytes']:,} bytes: {what}  {why}"
