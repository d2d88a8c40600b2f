"""The rows of all stages as pairs of times, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from report import Row, ratio
from rich.table import Table

# What a time may be held against, by its key in a row; a row with the last one says itself what it is.
BESIDE = ("pillow", "faiss_flat", "published_dense", "sparse_reference", "published", "waited_for", "beside")
SIZES = ("set", "arch", "size", "pooling", "amp", "n", "images", "B", "C", "D", "iters", "threads")


class Pair(NamedTuple):
    """A time of the engine's, and the one beside it if there is one."""

    stage: str
    sizes: str
    ours: Row
    beside: Row | None
    name: str  # of what is beside
    added: str  # by the engine to what is beside

    @property
    def faster(self) -> float | None:
        """How many times faster than what is beside it."""
        return None if self.beside is None else ratio(self.beside, self.ours)


def pairs(rows: Iterable[Row]) -> Iterator[Pair]:
    """Every time of the engine's in the rows, whether it stands in a row or in a part of one."""
    for row in rows:
        sizes = " ".join(f"{key}={_plain(row[key])}" for key in SIZES if row.get(key) is not None)
        for part, found in {"": row, **row}.items():
            if isinstance(found, dict) and isinstance(found.get("ours"), dict) and "seconds" in found["ours"]:
                key = next((key for key in BESIDE if key in found), None)
                stage = f"{row['stage']}, {part}".removesuffix(", ").replace("_", " ")
                name = "" if key is None else found.get("beside_is", key.replace("_", " "))
                yield Pair(stage, sizes, found["ours"], found.get(key), name, _overhead(found))


COLUMNS = ("stage", "sizes", "reid-fast", "beside it", "which is", "times faster", "processor", "peak MB")


def cells(pair: Pair) -> tuple[str, ...]:
    """A pair by columns: medians with least and most; of both sides, processor seconds and memory."""
    beside = pair.beside or {}
    return (
        pair.stage,
        pair.sizes,
        with_spread(pair.ours),
        with_spread(beside) if beside else "",
        pair.name + pair.added,
        f"{pair.faster:.3g}" if pair.faster else "",
        _both(pair.ours.get("processor"), beside.get("processor"), duration),
        _both(pair.ours.get("peak_mb"), beside.get("peak_mb"), lambda megabytes: f"{megabytes:,.0f}"),
    )


def table(found: Iterable[Pair]) -> Table:
    """The pairs for a terminal."""
    shown = Table(box=None, header_style="bold")
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name in ("stage", "sizes", "which is") else "right")
    for pair in found:
        shown.add_row(*cells(pair))
    return shown


def markdown(found: Iterable[Pair]) -> Iterator[str]:
    """The pairs for a page."""
    yield from (f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *map(cells, found)))


def _both(ours: float | None, beside: float | None, told: Callable[[float], str]) -> str:
    return " / ".join(told(value) for value in (ours, beside) if value is not None)


def with_spread(times: Row) -> str:
    """A median, least and most, in a unit that suits them."""
    return f"{duration(times['seconds'])} ({duration(times['min'])} – {duration(times['max'])})"


def duration(seconds: float) -> str:
    """Seconds to three digits, in a unit that suits them."""
    if seconds >= 1000:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _overhead(row: Row) -> str:
    added = row.get("overhead_per_cent")
    return "" if added is None else f": {added['seconds']:+.1f} %"


def _plain(value: object) -> str:
    return "×".join(map(str, value)) if isinstance(value, list | tuple) else str(value).removeprefix("torch.")
