"""Figures: SVG and PNG show the same marks, and text cannot become markup."""

from xml.etree import ElementTree

import pytest

from reid_fast.drawing import Box, Dot, Figure, Line, Text, png, svg

SVG = "{http://www.w3.org/2000/svg}"
RED, GREEN, BLUE = "#d00000", "#00d000", "#0000d0"
DRAWN = Figure(
    61,
    41,
    [Box(3, 5, 20, 30, RED, "3 <s>"), Line(((3, 20), (30, 20), (30, 39)), GREEN, 2), Dot(50, 10, BLUE, 6, 'a"b')],
)


@pytest.mark.parametrize(
    ("x", "y", "colour"),
    [(5, 7, RED), (21, 33, RED), (10, 20, GREEN), (30, 33, GREEN), (50, 10, BLUE), (45, 3, None), (58, 38, None)],
)
def test_a_png_has_two_pixels_for_one_of_the_figure(x, y, colour):
    image = png(DRAWN)
    assert image.size == (122, 82)
    expected = tuple(bytes.fromhex(colour[1:])) if colour else (255, 255, 255)
    assert image.getpixel((2 * x, 2 * y)) == expected


def test_an_svg_has_the_same_marks_in_the_same_order():
    root = ElementTree.fromstring(svg(DRAWN))
    assert (root.get("width"), root.get("height")) == ("61", "41")
    background, box, line, dot = root
    assert background.get("fill") == "white"
    assert [box.get(name) for name in ("x", "y", "width", "height", "fill")] == ["3.0", "5.0", "20.0", "30.0", RED]
    assert line.get("points") == "3.0,20.0 30.0,20.0 30.0,39.0"
    assert (dot.get("cx"), dot.get("r")) == ("50.0", "6")
    assert [mark.find(f"{SVG}title").text for mark in (box, dot)] == ["3 <s>", 'a"b']


def test_inside_a_page_it_takes_the_width_and_the_colours_of_the_page():
    root = ElementTree.fromstring(svg(DRAWN, {RED: "var(--red)"}, background=None))
    assert root.get("viewBox") == "0 0 61 41"
    assert root.get("width") is None
    assert [mark.get("fill") for mark in root] == ["var(--red)", "none", BLUE]


def test_hostile_text_stays_text():
    hostile = '</text><script>alert("1")</script>&'
    (_, text) = ElementTree.fromstring(svg(Figure(9, 9, [Text(1, 1, hostile)])))
    assert text.text == hostile
    assert len(text) == 0
