"""`morphfed federation status` and `watch`: the status document in words, once or live."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from morphfed.deploy.status import Status, condition, exit_code, read_status

if TYPE_CHECKING:
    from rich.console import RenderableType

    from morphfed.deploy.status import Condition, SiteStatus

LOOK = 1.0
"""Seconds between two looks at the document."""

GRACE = 60.0
"""Seconds for which a coordinator that was killed may come back (systemd starts it again after ten)."""

_BAR, _WIDE = 40, 110  # columns
_COLOURS = {"late": "yellow", "away": "yellow", "refused": "red", "revoked": "red", "working": "cyan"}
_CONDITIONS: dict[Condition, str] = {
    "not started": "not started",
    "running": "running",
    "killed": "killed: the coordinator does not run, and did not say why it ended",
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
}


# ── words ───────────────────────────────────────────────────────────────────────────────────────────────────
def clock(when: datetime | None) -> str:
    """Time of day on this machine, with the day if it is another one."""
    if when is None:
        return "–"
    here = when.astimezone()
    return f"{here:%H:%M}" if here.date() == datetime.now().date() else f"{here:%d %b %H:%M}"


def size(count: float) -> str:
    """Bytes, to three digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def span(seconds: float) -> str:
    """A length of time."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 129600 else f"{seconds / 86400:.1f} days"


def said(site: SiteStatus, *, live: bool) -> str:
    """A site's state."""
    if not live:  # of a run that has ended: how it was then
        if site.state in ("refused", "revoked"):
            return site.state if site.state == "refused" else "certificate revoked"
        return "was not connected" if site.state in ("away", "unknown") else "was connected"
    if site.state == "away":
        return f"not connected since {clock(site.seen)}" if site.seen else "never connected"
    if site.state == "revoked":
        return "certificate revoked"
    if site.state in ("working", "late", "refused"):
        return f"{site.state} since {clock(site.since)}"
    if site.state == "unknown":
        return "not seen yet"
    return "connected, answer in" if site.answered else "connected"


def headline(status: Status) -> str:
    """Where the run is."""
    unit = status.unit
    if unit is None:
        return f"{status.done} of {len(status.units)} units done"
    text = (
        f"unit {unit.number} of {len(status.units)}: {unit.key}, {unit.round} of {unit.rounds} rounds done; "
        f"{status.done} of {len(status.units)} units done"
    )
    if unit.best_round is not None and unit.best_score is not None:
        text += f"; best {unit.metric} {unit.best_score:.3f} in round {unit.best_round}"
    return text


def figures(status: Status) -> str:
    """What it has cost so far; empty before the first round."""
    unit = status.unit
    if unit is None or not unit.round:
        return ""
    parts = [f"models to sites {size(unit.bytes_down)}", f"uploads {size(unit.bytes_up)}"]
    if unit.epsilon is not None:
        parts.append(f"ε {unit.epsilon:.3g} at δ {unit.delta:g}")
    if condition(status) == "running" and unit.seconds_left:
        parts.append(f"this unit is done in about {span(unit.seconds_left)}")
    return "; ".join(parts)


def snapshot(status: Status | None, folder: Path, *, ledgers: bool = False) -> list[str]:
    """All of it as plain lines."""
    state = condition(status)
    if status is None:
        return [f"{folder}: not started", f"next: morphfed coordinator start {folder}"]
    lines = [
        f"federation {status.federation}: {_CONDITIONS[state]}",
        f"study {status.study}, hash {status.study_hash}",
        headline(status),
    ]
    if cost := figures(status):
        lines.append(cost)
    if state == "running" and status.doing:
        lines.append(f"now: {status.doing} ({clock(status.written)})")
    lines += [_line(site, status, live=state == "running") for site in status.sites]
    lines += [f"  {line.time.astimezone():%H:%M:%S} {line.text}" for line in status.lines[-10:]]
    if ledgers:
        lines += [f"ledger of {site.name}: {site.ledger}" for site in status.sites if site.ledger]
    if status.failure is not None:
        failure = status.failure
        lines += [f"error {failure.code}: {failure.message}", f"  fix: {failure.fix}"]
    if state in ("killed", "stopped", "failed"):
        lines.append(f"next: morphfed coordinator start {folder}   (goes on at the last finished round)")
    return lines


def _line(site: SiteStatus, status: Status, *, live: bool) -> str:
    parts = [f"site {site.name}: {said(site, live=live)}"]
    if live and site.until is not None:
        parts.append(f"goes on without it at {clock(site.until)}")
    metric = status.unit.metric if status.unit else ""
    if (value := site.validation.get(metric)) is not None:
        parts.append(f"{metric} {value:.3f}")
    if site.loss is not None:
        parts.append(f"loss {site.loss:.3g}")
    if site.missed:
        parts.append(f"{site.missed} rounds missed")
    parts.append(f"{size(site.bytes_down)} down, {size(site.bytes_up)} up")
    return ", ".join(parts) + (f"\n  {site.why}" if site.why else "")


def as_json(status: Status | None, *, indent: int | None = 2) -> str:
    """The document, with what became of the coordinator."""
    told = {"condition": condition(status), **({} if status is None else status.model_dump(mode="json"))}
    return json.dumps(told, indent=indent, ensure_ascii=False)


# ── the live view ───────────────────────────────────────────────────────────────────────────────────────────
def view(status: Status | None, folder: Path, *, width: int = 120) -> RenderableType:
    """What the terminal shows."""
    from rich.console import Group
    from rich.text import Text

    state = condition(status)
    footer = Text("Ctrl-C leaves this view; the federation goes on.", style="dim")
    if status is None:
        return Group(Text(f"{folder}: not started yet. Waiting for `morphfed coordinator start {folder}`."), footer)
    live = state == "running"
    colour = {"running": "cyan", "done": "green", "failed": "red", "killed": "red"}.get(state, "yellow")
    parts: list[RenderableType] = [
        Text.assemble((f"federation {status.federation}", "bold"), "  ", (_CONDITIONS[state], colour)),
        Text(f"study {status.study}, hash {status.study_hash[:12]}", style="dim"),
        Text(headline(status)),
    ]
    if unit := status.unit:
        done = round(_BAR * unit.round / unit.rounds)
        parts.append(Text.assemble(("━" * done, "cyan"), ("─" * (_BAR - done), "dim")))
    if cost := figures(status):
        parts.append(Text(cost))
    if live and status.doing:
        parts.append(Text(f"now: {status.doing}"))
    parts += [Text(), _table(status, live=live, wide=width >= _WIDE)]
    parts += [Text(f"{site.name}: {site.why}", style="red") for site in status.sites if site.why]
    parts.append(Text())
    for line in status.lines[-6:]:
        style = "yellow" if line.level == "warning" else "dim"
        parts.append(Text(f"{line.time.astimezone():%H:%M:%S} {line.text}", style=style))
    parts.append(Text.assemble((f"as of {status.written.astimezone():%H:%M:%S}. ", "dim"), footer))
    return Group(*parts)


def _table(status: Status, *, live: bool, wide: bool) -> RenderableType:
    """A row a site; on a narrow terminal without bytes and without what its state says anyway."""
    from rich.table import Table
    from rich.text import Text

    metric = status.unit.metric if status.unit else "validation"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("site", overflow="fold")
    table.add_column("state", no_wrap=True)
    for title in ("goes on without it", "loss", metric.replace("_", " "), "rounds missed"):
        table.add_column(title)
    for title in ("last seen", "to it", "from it") if wide else ():
        table.add_column(title, no_wrap=True)
    for site in status.sites:
        value = site.validation.get(metric)
        more = (clock(site.seen), size(site.bytes_down), size(site.bytes_up)) if wide else ()
        table.add_row(
            Text(site.name),
            Text(said(site, live=live), style=_COLOURS.get(site.state, "green") if live else ""),
            clock(site.until) if live and site.until else "",
            "–" if site.loss is None else f"{site.loss:.3g}",
            "–" if value is None else f"{value:.3f}",
            str(site.missed),
            *more,
        )
    return table


def follow(folder: Path, *, json: bool, sleep: Callable[[float], None] = time.sleep) -> int:
    """Show a federation until it ends.

    Returns:
        The exit code of its run; 1 if its coordinator was killed and is not started again within a minute.
    """
    status = read_status(folder)
    if json:
        return _follow(folder, status, _json_lines(), sleep)
    if not sys.stdout.isatty():
        return _follow(folder, status, _plain_lines(folder), sleep)
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, auto_refresh=False, screen=True) as live:
        code = _follow(folder, status, lambda s: live.update(view(s, folder, width=console.width), refresh=True), sleep)
    sys.stdout.write("\n".join(snapshot(read_status(folder), folder)) + "\n")  # stays when the screen is gone
    return code


def _follow(
    folder: Path, status: Status | None, show: Callable[[Status | None], None], sleep: Callable[[float], None]
) -> int:
    missing = 0.0
    while True:
        show(status)
        state = condition(status)
        if state in ("done", "failed", "stopped") or missing > GRACE:
            return exit_code(status)
        missing = missing + LOOK if state == "killed" else 0.0
        sleep(LOOK)
        status = read_status(folder)


def _json_lines() -> Callable[[Status | None], None]:
    """One document a line, whenever it has changed."""
    last = ""

    def show(status: Status | None) -> None:
        nonlocal last
        text = as_json(status, indent=None)
        if text != last:
            last = text
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    return show


def _plain_lines(folder: Path) -> Callable[[Status | None], None]:
    """Everything once, then a line whenever a round or a site's state has changed, and what is said."""
    before: Status | None = None
    known = None

    def show(status: Status | None) -> None:
        nonlocal before, known
        if status is None or before is None or condition(status) != condition(before) or status.pid != before.pid:
            if (text := snapshot(status, folder)) != known:
                known = text
                sys.stdout.write("\n".join(text) + "\n")
        else:
            sys.stdout.writelines(f"{line}\n" for line in _news(before, status))
        sys.stdout.flush()
        before = status

    return show


def _news(before: Status, status: Status) -> list[str]:
    lines = [f"{line.time.astimezone():%H:%M:%S} {line.text}" for line in status.lines if line not in before.lines]
    then = {site.name: site for site in before.sites}
    now = f"{status.written.astimezone():%H:%M:%S}"
    if status.unit is not None and (before.unit is None or _at(before) != _at(status)):
        lines.append(f"{now} {headline(status)}")
    for site in status.sites:
        if site.name not in then or then[site.name].state != site.state:
            lines.append(f"{now} {_line(site, status, live=True)}")
    return lines


def _at(status: Status) -> tuple[str, int]:
    return (status.unit.key, status.unit.round) if status.unit else ("", 0)
