"""Times of the engine and of what is beside them, on one logarithmic scale, as SVG or PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from table import Pair, duration

from reid_fast.drawing import Dot, Figure, Line, Mark, Text, png, svg
from reid_fast.errors import UserError

OURS, THEIRS, FAINT, LIGHT = "#1b6ca8", "#d1701f", "#666666", "#e4e4e4"
# Pixels: where the scale begins and how wide it is, what stands on its right, a row, what stands above the rows.
LEFT, SCALE, RIGHT, ROW, TOP = 290, 620, 90, 34, 92


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
    marks += [Text(LEFT + SCALE + RIGHT - 20, TOP - 38, "times faster", "end", 11, FAINT)]
    for power in range(first, last + 1):
        marks += [Line(((x(10**power), TOP - 8), (x(10**power), bottom)), LIGHT, 1)]
        marks += [Text(x(10**power), TOP - 18, _tick(power), "middle", 11, FAINT)]
    for number, pair in enumerate(found):
        marks += _row(pair, _apart(pair, found), TOP + ROW * (number + 0.5), x)
    marks += [Text(20, bottom + 24 + 17 * n, line, size=11, colour=FAINT) for n, line in enumerate(caption)]
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
        *([Text(LEFT - 16, y + 9, sizes, "end", 9, FAINT)] if sizes else []),
        Line(((x(low), y), (x(high), y))),
        Dot(x(low), y, left),
        Dot(x(high), y, right),
        Text(x(low) - 11, y, duration(low), "end", 11, left),
        Text(x(high) + 11, y, duration(high), "start", 11, right),
        Text(LEFT + SCALE + RIGHT - 20, y, f"{pair.faster:.3g}", "end"),
    ]
