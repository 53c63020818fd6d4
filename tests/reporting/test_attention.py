"""Heat maps: colours by rank, in the right place; the figure is one safe SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import colormaps

from morphfed.reporting.attention import (
    COLOURS,
    COVER,
    attention_figure,
    contact_sheet,
    data_uri,
    heat_map,
    most_attended,
    ranks,
)

CORNERS = np.array([[0, 0], [100, 0], [0, 100], [300, 100]])
ATTENTION = np.array([0.05, 0.9, 0.03, 0.02])


def test_ranks_worked_by_hand() -> None:
    assert ranks(ATTENTION).tolist() == pytest.approx([2 / 3, 1, 1 / 3, 0])
    assert ranks(np.array([1.0, 1.0, 1.0])).tolist() == [0.5, 0.5, 0.5]
    assert ranks(np.array([0.2, 0.2, 0.6])).tolist() == [0.25, 0.25, 1.0]
    assert ranks(np.array([1.0])).tolist() == [0.5]


def test_every_tile_has_its_colour_and_its_place() -> None:
    picture = np.full((200, 400, 3), 200, np.uint8)
    drawn = heat_map(CORNERS, ATTENTION, side=100, size=(400, 200), picture=picture)
    assert drawn.shape == (200, 400, 3)
    for (x, y), rank in zip(CORNERS, ranks(ATTENTION), strict=True):
        colour = np.array(colormaps[COLOURS](float(rank))[:3]) * 255
        expected = np.rint(200 * (1 - COVER) + colour * COVER)
        assert np.abs(drawn[y + 5 : y + 95, x + 5 : x + 95] - expected).max() <= 1
    assert (drawn[120:180, 120:280] == 200).all()  # no tile there


def test_where_tiles_overlap_their_ranks_are_averaged() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    drawn = heat_map(np.array([[0, 0], [50, 0]]), np.array([0.1, 0.9]), side=100, size=(200, 100), picture=picture)
    middle = np.rint(np.array(colormaps[COLOURS](0.5)[:3]) * 255 * COVER)
    assert np.abs(drawn[50, 75] - middle).max() <= 1


def test_without_a_picture_the_tiles_are_drawn_alone() -> None:
    drawn = heat_map(CORNERS, ATTENTION, side=100, size=(40_000, 20_000))
    assert max(drawn.shape) <= 480
    assert (drawn == 235).all(axis=2).mean() > 0.9


def test_weights_and_tiles_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="3 weights"):
        heat_map(CORNERS, ATTENTION[:3], side=100, size=(400, 200))


def test_most_attended() -> None:
    assert most_attended(ATTENTION, 2).tolist() == [1, 0]
    assert most_attended(np.array([0.3, 0.3, 0.4]), 9).tolist() == [2, 0, 1]


def test_contact_sheet() -> None:
    tiles = [np.full((50, 50, 3), 10 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(tiles, columns=3, px=20)
    assert sheet.shape == (44, 68, 3)
    assert [int(sheet[10, 24 * i + 10, 0]) for i in range(3)] == [0, 10, 20]
    assert [int(sheet[34, 24 * i + 10, 0]) for i in range(3)] == [30, 40, 255]


def test_the_figure_is_one_element_without_foreign_addresses() -> None:
    picture = np.full((200, 400, 3), 200, np.uint8)
    options = {"side": 100.0, "size": (400, 200), "picture": picture, "title": "slide <a> & b: tumour 0.97"}
    svg = attention_figure(CORNERS, ATTENTION, key="heat-1", tiles=[picture[:50, :50]] * 3, **options)  # type: ignore[arg-type]
    root = ElementTree.fromstring(svg)
    images = [e for e in root.iter() if e.tag.endswith("image")]
    assert len(images) == 4  # slide, heat map, scale, tiles
    for element in images:
        assert element.get("href", "").startswith("data:image/png;base64,")
        assert not any(c.isspace() for c in element.get("href", ""))
    for element in root.iter():
        for name, value in element.attrib.items():
            assert "http" not in value, (name, value)
    text = " ".join(root.itertext())
    assert "slide <a> & b: tumour 0.97" in text
    assert "most attended first" in text
    assert svg == attention_figure(CORNERS, ATTENTION, key="heat-1", tiles=[picture[:50, :50]] * 3, **options)  # type: ignore[arg-type]
    alone = attention_figure(CORNERS, ATTENTION, key="heat-2", side=100, size=(400, 200), title="bag")
    assert alone.count("<image") == 2


def test_data_uri_is_without_loss() -> None:
    import base64
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8)
    back = Image.open(io.BytesIO(base64.b64decode(data_uri(pixels).removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(back), pixels)
