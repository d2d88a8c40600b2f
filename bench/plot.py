"""Times of the engine and of what is beside them, on one logarithmic scale, as SVG or PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont
from table import Pair, duration

from reid_fast.errors import UserError

OURS, THEIRS, GREY, INK = "#1b6ca8", "#d1701f", "#b8b8b8", "#222222"
# Pixels: where the scale begins and how wide it is, what stands on its right, a row, what stands above the rows.
LEFT, SCALE, RIGHT, ROW, TOP = 290, 620, 90, 34, 92
FINE = 4  # a PNG is drawn this much larger, then reduced to twice the size


class Line(NamedTuple):
    """From one point to another."""

    x: float
    y: float
    to_x: float
    to_y: float
    colour: str = GREY
    width: float = 1.5


class Dot(NamedTuple):
    """A disc."""

    x: float
    y: float
    colour: str
    radius: float = 5.5


class Text(NamedTuple):
    """A line of text, centred on its height."""

    x: float
    y: float
    text: str
    anchor: str = "start"  # or middle, end
    size: int = 13
    colour: str = INK


Mark = Line | Dot | Text


class Figure(NamedTuple):
    """What is drawn."""

    width: int
    height: int
    marks: list[Mark]


def check(path: Path) -> None:
    """
    Raises:
        UserError: neither an SVG nor a PNG is asked for.
    """
    if path.suffix not in (".svg", ".png"):
        raise UserError(f"--plot {path} is neither .svg nor .png: give it one of these endings")


def plot(found: Sequence[Pair], caption: Sequence[str], path: Path) -> None:
    """Draw every pair that has two sides."""
    drawn = figure([pair for pair in found if pair.beside is not None], caption)
    if path.suffix == ".svg":
        path.write_text(svg(drawn))
    else:
        png(drawn).save(path)


def figure(found: Sequence[Pair], caption: Sequence[str]) -> Figure:
    """A line for each pair, from one time to the other, with the ratio at its end."""
    times = [side["seconds"] for pair in found for side in (pair.ours, pair.beside)]
    first, last = math.floor(math.log10(min(times)) - 0.6), math.ceil(math.log10(max(times)) + 0.3)
    bottom = TOP + ROW * len(found)

    def x(seconds: float) -> float:
        return LEFT + SCALE * (math.log10(seconds) - first) / (last - first)

    marks: list[Mark] = [Text(20, 28, "What each stage takes, on a logarithmic scale", size=17)]
    marks += _legend(sorted({pair.name for pair in found}))
    marks += [Text(LEFT + SCALE + RIGHT - 20, TOP - 38, "times faster", "end", 11, "#666666")]
    for power in range(first, last + 1):
        marks += [Line(x(10**power), TOP - 8, x(10**power), bottom, "#e4e4e4", 1)]
        marks += [Text(x(10**power), TOP - 18, _tick(power), "middle", 11, "#666666")]
    for number, pair in enumerate(found):
        marks += _row(pair, _apart(pair, found), TOP + ROW * (number + 0.5), x)
    marks += [Text(20, bottom + 24 + 17 * n, line, size=11, colour="#666666") for n, line in enumerate(caption)]
    return Figure(LEFT + SCALE + RIGHT, bottom + 24 + 17 * len(caption), marks)


def _tick(power: int) -> str:
    return f"1e{power} s" if power > 2 else f"{10**power} s" if power >= 0 else f"{10 ** (power + 3):g} ms"


def _legend(names: Sequence[str]) -> list[Mark]:
    ours, theirs = Dot(26, 54, OURS), Dot(126, 54, THEIRS)
    return [ours, Text(38, 54, "reid-fast"), theirs, Text(138, 54, ", ".join(names))]


def _apart(pair: Pair, found: Sequence[Pair]) -> str:
    """The sizes of a pair that not all of its stage have."""
    others = [set(other.sizes.split()) for other in found if other.stage == pair.stage]
    return " ".join(size for size in pair.sizes.split() if not all(size in sizes for sizes in others))


def _row(pair: Pair, sizes: str, y: float, x: Callable[[float], float]) -> list[Mark]:
    sides = sorted([(pair.ours["seconds"], OURS), (pair.beside["seconds"], THEIRS)])
    (low, left), (high, right) = sides
    return [
        Text(LEFT - 16, y - 7 * bool(sizes), pair.stage, "end"),
        *([Text(LEFT - 16, y + 9, sizes, "end", 9, "#666666")] if sizes else []),
        Line(x(low), y, x(high), y),
        Dot(x(low), y, left),
        Dot(x(high), y, right),
        Text(x(low) - 11, y, duration(low), "end", 11, left),
        Text(x(high) + 11, y, duration(high), "start", 11, right),
        Text(LEFT + SCALE + RIGHT - 20, y, f"{pair.faster:.3g}", "end"),
    ]


def svg(drawn: Figure) -> str:
    """The figure as text."""
    width, height, marks = drawn
    body = [f'<rect width="{width}" height="{height}" fill="white"/>']
    for mark in marks:
        if isinstance(mark, Line):
            ends = f'x1="{mark.x:.1f}" y1="{mark.y:.1f}" x2="{mark.to_x:.1f}" y2="{mark.to_y:.1f}"'
            body.append(f'<line {ends} stroke="{mark.colour}" stroke-width="{mark.width}"/>')
        elif isinstance(mark, Dot):
            body.append(f'<circle cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="{mark.radius}" fill="{mark.colour}"/>')
        else:
            place = f'x="{mark.x:.1f}" y="{mark.y:.1f}" text-anchor="{mark.anchor}" dominant-baseline="central"'
            body.append(f'<text {place} font-size="{mark.size}" fill="{mark.colour}">{escape(mark.text)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
    return "\n".join([head, *body, "</svg>", ""])


def png(drawn: Figure) -> Image.Image:
    """The figure as pixels, two for each of its own."""
    image = Image.new("RGB", (FINE * drawn.width, FINE * drawn.height), "white")
    draw = ImageDraw.Draw(image)
    for mark in drawn.marks:
        x, y = FINE * mark.x, FINE * mark.y
        if isinstance(mark, Line):
            draw.line((x, y, FINE * mark.to_x, FINE * mark.to_y), mark.colour, round(FINE * mark.width))
        elif isinstance(mark, Dot):
            radius = FINE * mark.radius
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), mark.colour)
        else:
            anchor = {"start": "lm", "middle": "mm", "end": "rm"}[mark.anchor]
            text = mark.text.replace("×", "x")  # which Pillow's own font lacks
            draw.text((x, y), text, mark.colour, ImageFont.load_default(FINE * mark.size), anchor)
    return image.reduce(FINE // 2)
