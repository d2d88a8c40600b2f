"""Figures of a few marks, written as SVG or drawn by Pillow: the same marks give the same picture both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from PIL import Image

GREY, INK = "#b8b8b8", "#222222"
_FINE = 4  # a PNG is drawn this much larger, then reduced to twice the size


class Line(NamedTuple):
    """Through its points."""

    points: tuple[tuple[float, float], ...]
    colour: str = GREY
    width: float = 1.5


class Dot(NamedTuple):
    """A disc; a page says its title under the pointer."""

    x: float
    y: float
    colour: str
    radius: float = 5.5
    title: str = ""


class Box(NamedTuple):
    """A filled rectangle; a page says its title under the pointer."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str = ""


class Text(NamedTuple):
    """A line of text, centred on its height."""

    x: float
    y: float
    text: str
    anchor: str = "start"  # or middle, end
    size: int = 13
    colour: str = INK


Mark: TypeAlias = Line | Dot | Box | Text


class Figure(NamedTuple):
    """What is drawn, in pixels from the upper left corner; a later mark lies over an earlier one."""

    width: int
    height: int
    marks: list[Mark]


def svg(
    drawn: Figure, colours: Mapping[str, str] | None = None, *, background: str | None = "white", label: str = ""
) -> str:
    """The figure as a document of its own, or, without a background, to stand in a page and take its width.

    Args:
        drawn: the figure.
        colours: what to write in place of a colour, such as a CSS variable of the page.
        background: a colour; None: what lies below shows through.
        label: what a page says of the figure to those who do not see it.
    """
    shown = dict(colours or {})
    width, height, marks = drawn
    size = f'width="{width}" height="{height}"'
    body = [f'<rect {size} fill="{background}"/>'] if background else []
    body += [_element(mark, shown.get(mark.colour, mark.colour)) for mark in marks]
    view = size if background else f'viewBox="0 0 {width} {height}" role="img" aria-label={quoteattr(label)}'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view} font-family="sans-serif">'
    return "\n".join([head, *body, "</svg>", ""])


def _element(mark: Mark, colour: str) -> str:
    if isinstance(mark, Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{mark.width}"/>'
    if isinstance(mark, Text):
        place = f'x="{mark.x:.1f}" y="{mark.y:.1f}" text-anchor="{mark.anchor}" dominant-baseline="central"'
        return f'<text {place} font-size="{mark.size}" fill="{colour}">{escape(mark.text)}</text>'
    title = f"<title>{escape(mark.title)}</title>" if mark.title else ""
    if isinstance(mark, Dot):
        return f'<circle cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="{mark.radius}" fill="{colour}">{title}</circle>'
    size = f'width="{mark.width:.1f}" height="{mark.height:.1f}"'
    return f'<rect x="{mark.x:.1f}" y="{mark.y:.1f}" {size} fill="{colour}">{title}</rect>'


def png(drawn: Figure) -> Image.Image:
    """The figure as pixels, two for each of its own, on white."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_FINE * drawn.width, _FINE * drawn.height), "white")
    draw = ImageDraw.Draw(image)
    for mark in drawn.marks:
        if isinstance(mark, Line):
            points = [(_FINE * x, _FINE * y) for x, y in mark.points]
            draw.line(points, mark.colour, round(_FINE * mark.width), joint="curve")
            continue
        x, y = _FINE * mark.x, _FINE * mark.y
        if isinstance(mark, Dot):
            radius = _FINE * mark.radius
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), mark.colour)
        elif isinstance(mark, Box):
            draw.rectangle((x, y, x + _FINE * mark.width, y + _FINE * mark.height), mark.colour)
        else:
            anchor = {"start": "lm", "middle": "mm", "end": "rm"}[mark.anchor]
            text = mark.text.replace("×", "x")  # which Pillow's own font lacks
            draw.text((x, y), text, mark.colour, ImageFont.load_default(_FINE * mark.size), anchor)
    return image.reduce(_FINE // 2)
