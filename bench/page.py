"""Writes the manual's tables and its drawing from what `bench/run.py` has kept: python bench/page.py [FILE]."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from plot import plot
from report import Row, where
from table import markdown, pairs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/benchmarks.md"
KEPT = ROOT / "bench/results/run-cpu2.json"
BEGIN, END = "<!-- bench/page.py writes {} from here -->", "<!-- to here: {} -->"
STAGES = ("epoch", "overhead", "whole", "retrieval")
DRAWN = ROOT / "docs/images/epoch-beside-published.svg"


def written(kept: Row) -> Iterator[str]:
    """The table of a stage, below where it was measured."""
    yield f"{where(kept['machine'])}."
    yield ""
    yield from markdown(pairs(kept["rows"]))


def named(rows: Iterable[Row]) -> Iterator[str]:
    """What the rows were measured with, where all have the same; `peer` is the published code."""
    first, *others = (pair.sizes.split() for pair in pairs(rows))
    yield " ".join(size for size in first if all(size in sizes for sizes in others))
    yield "peer: the published code of Cluster Contrast, on the same pictures and encoder in the same run"


def main() -> None:
    """Write each table between its marks."""
    kept = json.loads(Path(*sys.argv[1:] or [KEPT]).read_text())
    text = PAGE.read_text()
    for stage in STAGES:
        begin, end = BEGIN.format(stage), END.format(stage)
        before, rest = text.split(begin)
        lines = "\n".join(written(kept[stage])) if stage in kept else "Not measured yet."
        text = f"{before}{begin}\n\n{lines}\n\n{end}{rest.split(end)[1]}"
    PAGE.write_text(text)
    if "epoch" in kept:
        epoch = kept["epoch"]
        plot(list(pairs(epoch["rows"])), [*named(epoch["rows"]), where(epoch["machine"])], DRAWN)


if __name__ == "__main__":
    main()
