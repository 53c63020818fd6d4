"""Figures: what is drawn, the same every time, safe to stand beside others in one page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_hex

from morphfed.reporting.figures import Row, Series, dodged, forest, lines
from morphfed.reporting.matrices import confusion, heat_map
from morphfed.reporting.svg import Look, fitted, looks, swatch, text_width

SVG = "{http://www.w3.org/2000/svg}"
BLUE = Look("#0072b2", "D")


def texts(svg: str) -> list[str]:
    return ["".join(t.itertext()) for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def paths_with(svg: str, colour: str) -> list[str]:
    found = ElementTree.fromstring(svg).iter(f"{SVG}path")
    return [p.get("d", "") for p in found if colour in p.get("style", "")]


def example_forest(key: str = "f") -> str:
    rows = [Row("FedAvg", 0.8, 0.7, 0.9, BLUE, note="p 0.012"), Row("none", None)]
    return forest(rows, key=key, alt="two rows of a forest", title="kampala", xlabel="score", limits=(0.5, 1.0))


def test_forest_draws_point_interval_and_names() -> None:
    svg = example_forest()
    shown = texts(svg)
    assert {"FedAvg", "none", "not available", "p 0.012", "kampala", "score"} <= set(shown)
    spans = [np.array(re.findall(r"[\d.]+", d), float) for d in paths_with(svg, BLUE.colour)]
    horizontal = [s for s in spans if len(s) == 4 and s[1] == s[3]]
    # where the ticks say that 0.7 and 0.9 are
    root = ElementTree.fromstring(svg)
    at = {t.text: float(t.get("x", "nan")) for t in root.iter(f"{SVG}text") if re.fullmatch(r"0\.\d", t.text or "")}
    assert [sorted((s[0], s[2])) for s in horizontal] == [pytest.approx([at["0.7"], at["0.9"]], abs=0.1)]


def test_ids_start_with_the_key_so_that_figures_can_share_a_page() -> None:
    one, two = example_forest("one"), example_forest("two")
    ids = re.findall(r' id="([^"]*)"', one)
    assert ids
    assert all(i.startswith("one-") for i in ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', one)) == set(ids)
    assert one.replace("one-", "two-") == two
    with pytest.raises(ValueError, match="cannot start an id"):
        example_forest('x" onload="')


def test_output_is_fixed_and_holds_no_date_or_foreign_address() -> None:
    assert example_forest() == example_forest()
    rest = example_forest().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|<!DOCTYPE|<metadata|<script|20\d\d-\d\d", rest)


def test_names_are_text_never_mathematics_or_markup() -> None:
    svg = forest([Row("$x_1$ <b>&", 0.5)], key="f", alt='"quoted" & <b>', xlabel="score", limits=(0, 1))
    assert "$x_1$ <b>&" in texts(svg)
    assert ElementTree.fromstring(svg).get("aria-label") == '"quoted" & <b>'


def test_long_names_are_cut_in_the_middle() -> None:
    name = "university-hospital-of-a-long-name-03"
    cut = fitted(name, 120)
    assert text_width(cut) <= 120
    assert cut.startswith("univ")
    assert cut.endswith("03")
    assert fitted("short", 120) == "short"


def test_confusion_shows_counts_and_row_shares() -> None:
    counts = [[30, 10, 0], [0, 5, 15], [0, 0, 0]]
    svg = confusion(["a", "b", "c"], counts, key="c", alt="confusion of three classes", title="FedAvg")
    assert [t for t in texts(svg) if t.isdigit()] == ["30", "10", "5", "15"]
    cividis = colormaps["cividis"]
    for share in (0.75, 0.25):  # 30/40, 15/20 and 10/40, 5/20
        assert len(paths_with(svg, f"fill:{to_hex(cividis(share))}")) == 2


def test_heat_map_writes_every_number_and_leaves_gaps() -> None:
    svg = heat_map(
        ["kampala", "munich"], ["kampala", "munich"], [[0.91, 0.402], [None, 0.0]], key="h", alt="two by two sites",
        xlabel="tested on", ylabel="trained on", limits=(0, 1), boxed=[(0, 0)], row_break=1, column_break=1,
    )  # fmt: skip
    assert [t for t in texts(svg) if "." in t] == ["0.91", "0.40", "0.00"]


def test_text_on_cells_can_be_read() -> None:
    svg = heat_map(
        ["r"], [f"{i}" for i in range(11)], [[i / 10 for i in range(11)]], key="h", alt="all the colours",
        xlabel="x", ylabel="y", limits=(0, 1),
    )  # fmt: skip
    root = ElementTree.fromstring(svg)
    inks = {t.text: t.get("fill") for t in root.iter(f"{SVG}text") if re.fullmatch(r"\d\.\d\d", t.text or "")}
    for text, ink in inks.items():
        cell = luminance(to_hex(colormaps["cividis"](float(text or 0))))
        written = luminance(ink or "#000000")  # black is SVG's default and left out
        light, dark = max(cell, written), min(cell, written)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text}: WCAG contrast"


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.1."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_lines_draw_thin_seeds_under_a_thick_mean() -> None:
    series = Series(BLUE, [(1, 0.5), (2, 0.6)], thin=[[(1, 0.4), (2, 0.5)], [(1, 0.6), (2, 0.7)]], marks=[(2, 0.5)])
    svg = lines(
        [series], key="l", alt="a curve of two seeds", title="kampala", xlabel="round", ylabel="score",
        xlimits=(1, 2), ylimits=(0, 1), whole_x=True,
    )  # fmt: skip
    widths = re.findall(
        r"stroke:#0072b2;stroke-opacity:0.45;stroke-width:([\d.]+)|stroke:#0072b2;stroke-width:([\d.]+)", svg
    )
    assert [a for a, _ in widths if a] == ["0.7", "0.7"]
    assert "1.9" in [b for _, b in widths]


def test_dodged_keeps_unknown_points_out() -> None:
    svg = dodged(
        ["neutrophil", "monocyte"], [(BLUE, [(0.5, 0.4, 0.6), (None, None, None)])], key="d", alt="recall of classes",
        xlabel="recall", limits=(0, 1), notes=["12", "0"], note_title="test images",
    )  # fmt: skip
    assert {"neutrophil", "monocyte", "12", "0", "test images"} <= set(texts(svg))
    assert len([d for d in paths_with(svg, BLUE.colour) if d.count("L") == 1]) == 1  # one interval


def test_every_arm_looks_different_without_colour() -> None:
    kinds = {"local (own site)": "own", "centralised": "pooled"} | {f"arm-{i}": "federated" for i in range(12)}
    found = looks(kinds)
    without_colour = [(look.marker, look.dashes) for look in found.values()]
    assert len(set(without_colour)) == len(without_colour)
    assert len({look.colour for look in list(found.values())[:8]}) == 8


def test_swatch_has_no_ids_and_is_decoration() -> None:
    mark = swatch(BLUE)
    assert "id=" not in mark
    assert 'aria-hidden="true"' in mark
    assert ElementTree.fromstring(mark).get("viewBox") == "0 0 34 12"
