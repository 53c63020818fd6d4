"""One style for all figures, and SVG that is small, the same every time and safe to put inside a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, FAINT = "#1b1f24", "#59636e", "#d5dae0"
FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
TEXT_PX, SMALL_PX = 12.0, 11.0

# Okabe & Ito, "Color universal design" (2008), without the yellow, which is too pale on white paper.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("D", "^", "v", "P", "X", "p", "<", ">")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (7, 2, 1.5, 2), (3, 1), (9, 3))

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: searchable, readable aloud
    "svg.hashsalt": "morphfed",
    "text.parse_math": False,  # a name with two dollar signs is a name
    "font.family": "DejaVu Sans",  # comes with matplotlib and is wide: real fonts fit where it fits
    "font.size": TEXT_PX,
    "axes.titlesize": TEXT_PX,
    "axes.labelsize": TEXT_PX,
    "xtick.labelsize": SMALL_PX,
    "ytick.labelsize": SMALL_PX,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "path.simplify": False,
}

_NUMBER = re.compile(r"-?\d+\.\d+")
_KEY = re.compile(r"[a-z][a-z0-9-]*")
_NAMESPACE = re.compile(r"^\{[^}]*\}")


@dataclass(frozen=True)
class Look:
    """How one model is drawn everywhere: colour, marker and dashes, so that it is known without colour."""

    colour: str = QUIET
    marker: str = "o"
    dashes: tuple[float, ...] = ()

    @property
    def line(self) -> tuple[int, tuple[float, ...]] | str:
        """Matplotlib's line style."""
        return (0, self.dashes) if self.dashes else "-"


def looks(kinds: Mapping[str, str]) -> dict[str, Look]:
    """A look for every model: grey for local ones, black for pooled data, colours for the federated.

    Args:
        kinds: model's key → ``own``, ``mean``, ``best``, ``single``, ``pooled`` or ``federated``, in the report's
            order.
    """
    found: dict[str, Look] = {}
    counts = {"own": 0, "mean": 0, "best": 0, "single": 0, "pooled": 0, "federated": 0}
    for key, kind in kinds.items():
        n = counts[kind]
        counts[kind] += 1
        if kind == "federated":
            # 6 × 8 × 5: no two of 120 arms look alike.
            found[key] = Look(PALETTE[n % len(PALETTE)], MARKERS[n % len(MARKERS)], DASHES[n % len(DASHES)])
        elif kind == "pooled":
            found[key] = Look(INK, "s", DASHES[n % len(DASHES)])
        else:
            found[key] = Look("#7d8791" if kind == "single" else QUIET, "o", (1.5, 1.5))
    return found


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure of ``width`` × ``height`` CSS pixels in the fixed style."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        yield Figure(figsize=(width / 72, height / 72))


def axes(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Axes with margins in pixels."""
    width, height = (float(v) * 72 for v in figure.get_size_inches())
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )


def text_width(text: str, size: float = TEXT_PX) -> float:
    """Width of a line of text in pixels, in the widest of the fonts that may be used."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    properties = FontProperties(family="DejaVu Sans", size=size)
    return float(TextToPath().get_text_width_height_descent(text, properties, ismath=False)[0])


def fitted(text: str, width: float, size: float = TEXT_PX) -> str:
    """``text``, cut with an ellipsis in the middle where it is wider than ``width`` pixels."""
    if text_width(text, size) <= width:
        return text
    keep = len(text)
    while keep > 2:
        keep -= 1
        head = (keep + 1) // 2
        cut = f"{text[:head].rstrip()}…{text[len(text) - (keep - head) :].lstrip()}"
        if text_width(cut, size) <= width:
            return cut
    return "…"


def widest(texts: Sequence[str], size: float = TEXT_PX) -> float:
    """Width of the widest text in pixels."""
    return max((text_width(t, size) for t in texts), default=0.0)


def panel_title(plane: Axes, title: str, width: float) -> None:
    """A panel's name at its left upper corner, above the axis labels rather than above the axes."""
    from matplotlib.transforms import ScaledTranslation

    figure = plane.get_figure(root=True)
    assert figure is not None
    corner = figure.transFigure + ScaledTranslation(2 / 72, -8 / 72, figure.dpi_scale_trans)
    shown = fitted(title, width - 6)
    figure.text(0, 1, shown, transform=corner, ha="left", va="top", fontweight="bold", color=INK)


def finish(figure: Figure, *, key: str, alt: str) -> str:
    """Turn a figure into an SVG element.

    Args:
        figure: drawn inside :func:`canvas`.
        key: unique on the page, ``[a-z][a-z0-9-]*``; ids inside the SVG start with it.
        alt: what a reader who cannot see the figure should know.

    Returns:
        One ``<svg>`` element: no declaration, dates, foreign addresses or ids that others may have.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} cannot start an id")
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    _rename_ids(root, key)
    box = root.get("viewBox", "0 0 1 1")
    width = float(box.split()[2])
    body = "".join(_write(child) for child in root)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{_short(box)}" width="{width:.0f}" role="img" '
        f'aria-label="{escape(alt)}" font-family="{FONT}" stroke-linejoin="round">'
        f"{body}</svg>"
    )


def swatch(look: Look) -> str:
    """A line with a marker, for legends in the page; it has no ids, so it can stand there many times."""
    from matplotlib.markers import MarkerStyle
    from matplotlib.patches import PathPatch
    from matplotlib.transforms import Affine2D

    with canvas(34, 12) as figure:
        plane = figure.add_axes((0, 0, 1, 1))
        plane.set_axis_off()
        plane.set(xlim=(0, 34), ylim=(0, 12))
        plane.plot([1, 33], [6, 6], color=look.colour, linestyle=look.line, lw=1.8, clip_on=False)
        shape = MarkerStyle(look.marker)
        path = shape.get_path().transformed(shape.get_transform() + Affine2D().scale(7).translate(17, 6))
        plane.add_patch(PathPatch(path, fc=look.colour, ec="white", lw=0.8, clip_on=False))
        drawn = finish(figure, key="swatch", alt="")
    # The name stands beside it, so it is decoration.
    return drawn.replace('role="img" aria-label=""', 'aria-hidden="true"')


def _strip(root: ElementTree.Element) -> None:
    for parent in root.iter():
        for child in list(parent):
            name = _NAMESPACE.sub("", child.tag) if isinstance(child.tag, str) else ""
            is_style = name == "defs" and any(_NAMESPACE.sub("", c.tag) == "style" for c in child)
            if not name or name == "metadata" or is_style:
                parent.remove(child)


def _rename_ids(root: ElementTree.Element, key: str) -> None:
    """Drop ids that nothing refers to; the others become ``key-1``, ``key-2`` … in order of appearance."""
    used: set[str] = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                used.add(value.removeprefix("#"))
            used.update(re.findall(r"url\(#([^)]*)\)", value))
    names: dict[str, str] = {}
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used and own is not None:
            names.setdefault(own, f"{key}-{len(names) + 1}")
            element.set("id", names[own])
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name.endswith("href"):
                del element.attrib[name]
                picture = value.startswith("data:image/")
                element.set("href", "".join(value.split()) if picture else f"#{names[value.removeprefix('#')]}")
            elif "url(#" in value:
                element.set(name, re.sub(r"url\(#([^)]*)\)", lambda m: f"url(#{names[m.group(1)]})", value))


def _write(element: ElementTree.Element) -> str:
    tag = _NAMESPACE.sub("", element.tag)
    attributes = {_NAMESPACE.sub("", k): _tidy(k, v) for k, v in element.attrib.items()}
    if tag == "text":
        attributes = _text_attributes(attributes)
    inside = escape((element.text or "").strip(), quote=False) + "".join(_write(c) for c in element)
    if (tag == "g" and not attributes) or (tag in {"g", "defs"} and not inside):
        return inside  # a group that groups nothing
    written = "".join(f' {k}="{escape(v)}"' for k, v in attributes.items() if v)
    return f"<{tag}{written}>{inside}</{tag}>" if inside else f"<{tag}{written}/>"


def _tidy(name: str, value: str) -> str:
    if name == "d":
        value = " ".join(value.split())
        value = re.sub(r" ?([MLCQzZ]) ?", r"\1", value)
    if name == "style":
        value = value.replace(": ", ":").replace("; ", ";")
    return _short(value)


def _short(value: str) -> str:
    """Numbers to a hundredth of a pixel."""
    return _NUMBER.sub(lambda m: f"{round(float(m.group(0)), 2) + 0.0:.2f}".rstrip("0").rstrip("."), value)


def _text_attributes(attributes: dict[str, str]) -> dict[str, str]:
    """Text's style as attributes, without the font family (the root has it) and without turns by nothing."""
    style = dict(part.split(":", 1) for part in attributes.pop("style", "").split(";") if ":" in part)
    style.pop("font-family", None)
    if "font" in style:  # shorthand: "bold 10px family"
        words = style.pop("font").split("px", 1)[0].split()
        style["font-size"] = f"{words[-1]}px"
        if len(words) > 1:
            style["font-weight"] = words[0]
    if attributes.get("transform", "").startswith(("rotate(-0 ", "rotate(0 ")):
        del attributes["transform"]
    return {**attributes, **{k: v.removesuffix("px") for k, v in style.items()}}
