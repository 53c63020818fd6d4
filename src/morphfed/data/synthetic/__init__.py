"""Synthetic blood films: stained single cells of imaginary laboratories, for the demo and the tests."""

from morphfed.data.synthetic.films import write_films
from morphfed.data.synthetic.render import CELL_CLASSES, render_cell
from morphfed.data.synthetic.sites import PRESETS, Film, SyntheticSite

__all__ = ["CELL_CLASSES", "PRESETS", "Film", "SyntheticSite", "render_cell", "write_films"]
