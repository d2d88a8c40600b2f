"""The frame of a chart: ticks at round numbers, their lines, and where a value lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from reid_fast.drawing import INK, Dot, Line, Mark, Text

FAINT, LIGHT = "#666666", "#e4e4e4"
SERIES = ("#1b6ca8", "#d1701f", "#2a8c4a", "#b03060", "#6b4fb3", "#8a6d00", "#00838f", "#8d6e63")
# Pixels of every chart: its width, what stands on the plot's left and right and above it, the plot's height, a line.
WIDTH, LEFT, RIGHT, TOP, HEIGHT, LINE = 420, 56, 14, 50, 150, 17


class Scale(NamedTuple):
    """A part of the numbers from one tick to the last, and how they are written."""

    ticks: list[float]
    write: Callable[[float], str]

    def share(self, value: float) -> float:
        """0 at the first tick, 1 at the last."""
        return (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])


def round_scale(values: Sequence[float], write: Callable[[float], str], *, most: int = 5, whole: bool = False) -> Scale:
    """A scale that holds all values, with 2 to about `most` ticks at multiples of 1, 2, 2.5 or 5 powers of ten.

    Args:
        values: at least one finite number.
        write: writes a tick.
        most: ticks to aim at.
        whole: only whole numbers.
    """
    low, high = min(values), max(values)
    if low == high:
        low, high = (low - 1, high + 1) if whole else (low - abs(low) / 2, high + abs(high) / 2 or 1.0)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10)]
    step = next(step for step in steps if step >= rough * (1 - 1e-9))
    if whole:
        step = max(1, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale([number * step for number in range(first, last + 1)], write)


def frame(title: str, note: str, across: Scale, up: Scale) -> list[Mark]:
    """Title, note and the ticks of both axes; the plot's corners are those of `at`."""
    marks: list[Mark] = [Text(8, 16, title, size=14), Text(8, 34, note, size=11, colour=FAINT)]
    for tick in up.ticks:
        y = at(0, up.share(tick))[1]
        marks += [Line(((LEFT, y), (WIDTH - RIGHT, y)), LIGHT, 1), Text(LEFT - 6, y, up.write(tick), "end", 11, FAINT)]
    for tick in across.ticks:
        x, y = at(across.share(tick), 0)
        marks.append(Text(x, y + 14, across.write(tick), "middle", 11, FAINT))
    return marks


def at(across: float, up: float) -> tuple[float, float]:
    """Where a share of the plot's width and one of its height lie."""
    return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + (1 - up) * HEIGHT


def legend(names: Sequence[tuple[str, str]], columns: int = 1) -> tuple[list[Mark], int]:
    """A dot and a name for each (colour, name), below the plot's axis; and how high the whole chart is."""
    top = TOP + HEIGHT + 36
    marks: list[Mark] = []
    for place, (colour, name) in enumerate(names):
        row, column = divmod(place, columns)
        x, y = 16 + column * (WIDTH - 16) / columns, top + row * LINE
        marks += [Dot(x, y, colour, 4.5), Text(x + 12, y, shortened(name, 56 // columns), size=11, colour=INK)]
    rows = -(-len(names) // columns)
    return marks, top - 8 + rows * LINE if names else TOP + HEIGHT + 28


def shortened(name: str, most: int) -> str:
    """A name that fits: its end, where names of runs differ."""
    return name if len(name) <= most else "…" + name[1 - most :]
