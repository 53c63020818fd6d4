"""What communication does to each site, as the page shows it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.reporting.example_results import with_retrogress
from tests.reporting.test_report import check_page

from morphfed.reporting.blocks import Bullets, Details, Figure, Page, Section, Table, Text
from morphfed.reporting.report import render
from morphfed.reporting.results import Results
from morphfed.reporting.sawtooth import Rank, Teeth, sawtooth
from morphfed.reporting.sections.communication import communication
from morphfed.reporting.svg import QUIET, Look

SVG = "{http://www.w3.org/2000/svg}"
RED = Look("#d55e00", "^")


@pytest.fixture(scope="module")
def judged(small: dict[str, Any]) -> dict[str, Any]:
    """The small study with a record of what was just trained. Do not change it: copy it."""
    return with_retrogress(copy.deepcopy(small))


def section(results: dict[str, Any]) -> Section:
    made = communication(Page(Results(results)))
    assert made is not None
    return made


def test_the_page_has_the_section_after_the_learning_curves(
    judged: dict[str, Any], parse_html: Callable[[str], Any]
) -> None:
    tree = check_page(render(Results(judged)), parse_html)
    sections = [n.attributes["id"] for n in tree.all("main")[0].all("section")]
    assert sections[sections.index("learning") + 1] == "communication"
    assert tree.by_id("figure-teeth-balanced-accuracy-0")
    assert tree.by_id("figure-teeth-loss-0")
    assert "retrogress-resilient" in tree.by_id("methods").text()


def test_results_without_the_record_have_no_such_section(small: dict[str, Any]) -> None:
    assert communication(Page(Results(small))) is None
    assert 'id="communication"' not in render(Results(small))


def test_the_table_shows_the_block(judged: dict[str, Any]) -> None:
    table = next(b for b in section(judged).blocks if isinstance(b, Table))
    wanted = {(e["model"], e["scope"]): e for e in judged["retrogress"] if e["metric"] == "balanced_accuracy"}
    scopes = ["kampala", "munich", "mean_training"]
    assert [c.text for c in table.head] == ["Arm", "kampala", "munich", "mean, training sites"]
    assert [row[0].text for row in table.rows] == ["FedAvg", "FedMedian"]
    for row, model in zip(table.rows, ("fedavg", "fedmedian"), strict=True):
        for cell, scope in zip(row[1:], scopes, strict=True):
            e = wanted[model, scope]
            assert cell.text == f"{e['mean']:+.3f}".replace("-", "\u2212")
            low, high = (f"{e[k]:.3f}".replace("-", "\u2212") for k in ("low", "high"))
            assert cell.sub == f"{low} to {high}\nsd {e['sd']:.3f}\nhurt {100 * e['hurt']:.0f} %"
    counts = judged["data"]["sites"]["kampala"]["classes"].values()
    assert table.head[1].sub == f"{sum(c['validation'] for c in counts)} validation images"


def test_sentences_follow_the_numbers(judged: dict[str, Any]) -> None:
    changed = copy.deepcopy(judged)
    for e in changed["retrogress"]:
        if e["metric"] == "balanced_accuracy":
            sign = 1 if e["model"] == "fedavg" else -1
            e |= {"mean": sign * 0.04, "low": sign * 0.04 - 0.05, "high": sign * 0.04 + 0.05, "communications": 12}
            e |= {"hurt": 0.75, "helped": 0.25} if sign > 0 else {"hurt": 0.25, "helped": 0.5}
            if (e["model"], e["scope"]) == ("fedavg", "munich"):
                e |= {"mean": 0.09, "low": 0.06, "high": 0.12, "images": 1}
    said = next(b for b in section(changed).blocks if isinstance(b, Bullets)).items
    assert said == [
        "FedAvg: at a communication a site lost 0.040 of balanced accuracy on average (95 % interval of the drop "
        "−0.010 to 0.090, so it may be none). Of 12 communications 9 hurt the site and 3 helped it.",
        "FedMedian: at a communication a site gained 0.040 of balanced accuracy on average (95 % interval of the drop "
        "−0.090 to 0.010, so it may be none). Of 12 communications 3 hurt the site and 6 helped it.",
        "The largest mean drop is that of FedAvg at munich, judged on 1 validation image: 0.090 (95 % interval of the "
        "drop 0.060 to 0.120).",
    ]
    lead = section(changed).blocks[0]
    assert isinstance(lead, Text)
    assert lead.text.endswith(
        "Not shown, because nothing was sent or recorded there: Local (own site) and Centralised."
    )


def test_a_method_that_no_download_touches_is_explained(judged: dict[str, Any]) -> None:
    changed = copy.deepcopy(judged)
    for e in changed["retrogress"]:
        if e["model"] == "fedavg":
            e |= {"mean": 0.0, "sd": 0.0, "low": 0.0, "high": 0.0, "hurt": 0.0, "helped": 0.0}
    said = next(b for b in section(changed).blocks if isinstance(b, Bullets)).items
    assert said[0].startswith("FedAvg: no site's balanced accuracy changed at any of ")
    assert "by construction" in said[0]


def test_one_seed_has_no_interval(
    make_results: Callable[..., dict[str, Any]], parse_html: Callable[[str], Any]
) -> None:
    one = with_retrogress(
        make_results(training=("a",), held_out=(), arms=("local", "fedavg"), seeds=(0,), rounds=1, resamples=50)
    )
    made = section(one)
    assert not any(isinstance(b, Details) and b.title.startswith("Second half") for b in made.blocks)
    table = next(b for b in made.blocks if isinstance(b, Table))
    assert table.rows[0][1].sub.startswith("no interval\nhurt ")
    assert "none with one seed" in table.note
    check_page(render(Results(one)), parse_html)


def test_many_arms_are_split_over_figures(judged: dict[str, Any], parse_html: Callable[[str], Any]) -> None:
    many = copy.deepcopy(judged)
    names = [f"arm-{i}" for i in range(7)]
    units = [u for u in many["arms"] if u["model"] == "fedavg"]
    many["arms"] = [{**u, "arm": n, "model": n} for n in names for u in units]
    many["study"]["arms"] = names
    rows = [e for e in many["retrogress"] if e["model"] == "fedavg"]
    many["retrogress"] = [{**e, "model": n, "arm": n, "mean": e["mean"] + i} for i, n in enumerate(names) for e in rows]
    made = section(many)
    figures = [b for b in made.blocks if isinstance(b, Figure)]
    assert [f.key for f in figures] == ["teeth-balanced-accuracy-0", "teeth-balanced-accuracy-6"]
    said = next(b for b in made.blocks if isinstance(b, Bullets)).items
    assert [s.partition(":")[0] for s in said[:2]] == ["arm-0", "arm-6"]  # the ends only
    check_page(render(Results(many)), parse_html)


def test_folds_have_the_table_and_leave_the_lines_to_their_reports(judged: dict[str, Any]) -> None:
    joined = copy.deepcopy(judged)
    joined["study"] |= {"held_out": joined["study"]["training_sites"], "holdout": "each"}
    joined["folds"] = [
        {
            "held_out": s,
            "training_sites": [],
            "n": 5,
            "n_train": 5,
            "units": 1,
            "done": 1,
            "results": None,
            "report": None,
        }
        for s in joined["study"]["training_sites"]
    ]
    for unit in joined["arms"]:
        del unit["history"]
    made = section(joined)
    assert not any(isinstance(b, Figure) for b in made.blocks)
    table = next(b for b in made.blocks if isinstance(b, Table))
    assert "reports of the folds" in table.note


# ── the figure ──────────────────────────────────────────────────────────────────────────────────────────────────
def _strokes(svg: str, colour: str) -> list[list[float]]:
    """Upright lines of a colour as ``[x, from, x, to]`` in pixels, drawn from before to after."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d", ""))]
        style = path.get("style", "")
        wanted = f"stroke:{colour}" in style and "linecap" not in style and path.get("clip-path")
        if wanted and len(numbers) == 4 and numbers[0] == numbers[2]:
            found.append(numbers)
    return found


def test_a_stroke_goes_from_before_to_after_and_tells_loss_from_gain() -> None:
    def draw(*, rise_is_loss: bool) -> str:
        teeth = Teeth([(1.0, 0.8, 0.4), (2.0, 0.6, 0.7)], note="drop +0.150")
        return sawtooth(
            [Rank("FedAvg", RED, [teeth, Teeth()])],
            [("kampala", "20 validation images"), ("munich", "none")],
            key="t",
            alt="two panels of teeth",
            ylabel="score",
            xlimits=(0.5, 2.5),
            ylimits=(0.0, 1.0),
            rise_is_loss=rise_is_loss,
        )

    svg = draw(rise_is_loss=False)
    (lost,), gained = _strokes(svg, RED.colour), _strokes(svg, QUIET)
    assert lost[3] - lost[1] == pytest.approx(0.4 * 92, abs=0.1)  # down by 0.4 of a panel of 92 pixels
    assert [s[1] - s[3] for s in gained] == [pytest.approx(0.1 * 92, abs=0.1)]
    assert len(_strokes(draw(rise_is_loss=True), RED.colour)) == 1
    assert _strokes(draw(rise_is_loss=True), RED.colour)[0][0] == gained[0][0]
    texts = {"".join(t.itertext()) for t in ElementTree.fromstring(svg).iter(f"{SVG}text")}
    assert {"kampala", "20 validation images", "FedAvg", "drop +0.150", "not recorded", "round", "score"} <= texts
    assert svg == draw(rise_is_loss=False)
