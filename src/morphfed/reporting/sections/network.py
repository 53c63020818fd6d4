"""What a report of a federation over a network lacks, and why."""

from __future__ import annotations

from morphfed.reporting.blocks import Block, Bullets, Cell, Details, Page, Section, Table, Text


def network(page: Page) -> Section | None:
    """What stayed at the sites, and what was not told; None for a study on one machine."""
    block = page.results.raw.get("network")
    if not block:
        return None
    lead = (
        "Each site trained and judged on its own images, in its own place. It told how many images it has of what, and "
        "of each model the scores on its test part with their resamples; the means, intervals and comparisons here are "
        "made of these. What each told is in its own ledger. Not in this report:"
    )
    blocks: list[Block] = [Text(lead), Bullets([str(said) for said in block.get("left_out") or ()])]
    if gaps := block.get("missing") or ():
        head = [Cell(name, words=True) for name in ("Site", "Model, seed", "Why")]
        rows = [[Cell(str(gap[key]), words=True) for key in ("site", "unit", "why")] for gap in gaps]
        table = Table("not-told", "Scores that sites have not told; morphfed coordinator start asks again.", head, rows)
        blocks.append(Details(f"{len(rows)} missing", [table], open=len(rows) <= 10))
    return Section("network", "What stayed at the sites", blocks)
