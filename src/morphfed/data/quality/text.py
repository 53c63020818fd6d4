"""A check's report for the terminal."""

from __future__ import annotations

from morphfed.data.quality.context import plural
from morphfed.data.quality.findings import CheckReport, Level

_MARKS: dict[Level, tuple[str, str]] = {
    "error": ("ERROR", "bold red"),
    "warning": ("WARNING", "yellow"),
    "info": ("info", "cyan"),
}


def render_text(report: CheckReport, *, width: int = 110, colour: bool = False) -> str:
    """The findings as a table, with examples and fixes, and a summary line.

    Args:
        report: of :func:`morphfed.data.quality.check`.
        width: columns of the terminal.
        colour: whether to colour the levels with ANSI codes.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=True, header_style="bold", expand=True, pad_edge=False, show_lines=True)
    table.add_column("level", no_wrap=True)
    table.add_column("site", overflow="fold")
    table.add_column("finding", ratio=1, overflow="fold")
    for finding in report.findings:
        mark, style = _MARKS[finding.level]
        told = Text(f"{finding.message}  [{finding.code}]")
        for example in finding.examples:
            told.append(f"\n  · {example}", style="dim")
        if finding.count > len(finding.examples) >= 5:
            told.append(f"\n  · … of {finding.count}", style="dim")
        told.append(f"\nfix: {finding.fix}", style="italic")
        table.add_row(Text(mark, style=style), finding.site or "between sites", told)
    console = Console(width=width, force_terminal=colour, no_color=not colour, highlight=False, legacy_windows=False)
    with console.capture() as capture:
        if report.findings:
            console.print(table)
        console.print(Text(_summary(report)))
    return capture.get()


def _summary(report: CheckReport) -> str:
    total = sum(report.images.values())
    sites = ", ".join(f"{site} {n:,}" for site, n in report.images.items())
    words: dict[Level, str] = {"error": "error", "warning": "warning", "info": "note"}
    levels = ", ".join(plural(report.count(level), word) for level, word in words.items())
    sites_named = plural(len(report.images), "site")
    return f"{plural(total, 'image')} at {sites_named} ({sites}): {levels}. Status: {report.status}."
