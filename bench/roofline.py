"""Writes the tables of docs/gpu.md: what each op must cost on a GPU, what was measured, what the compiler made of it.

python bench/roofline.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from op_cases import Case, cases
from report import CARDS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/gpu.md"
RESULTS = ROOT / "bench/results"
BEGIN, END = "<!-- bench/roofline.py writes {} from here -->", "<!-- to here: {} -->"
# What well-made kernels reach of either limit, and what a launch behind another adds: the estimate's two numbers.
REACHED, LAUNCH = 0.7, 2.5e-6
DTYPES = (torch.bfloat16, torch.float32)
ARCHITECTURES = (80, 90, 100)


def ops() -> Iterator[str]:
    """The table of the ops."""
    yield "| op | sizes | type | MB | GFLOP | launches | floor, H200 | A100 | estimate, H200 | measured |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    taken = measured()
    for dtype in DTYPES:
        for case in cases("cpu", dtype, large=True):
            if case.fused is not None:
                yield op(case, dtype, taken.get((case.name, case.sizes, str(dtype)[6:]), ""))


def op(case: Case, dtype: torch.dtype, taken: str) -> str:
    """One op at one size."""
    floors = {name: card.floor(case.bytes, case.operations, dtype) for name, card in CARDS.items()}
    estimate = floors["H200"] / REACHED + LAUNCH * case.launches
    times = (microseconds(seconds) for seconds in (floors["H200"], floors["A100"], estimate))
    moved, work = f"{case.bytes / 1e6:.1f}", f"{case.operations / 1e9:.2f}"
    return row(f"`{case.name}`", case.sizes, str(dtype)[6:], moved, work, str(case.launches), *times, taken)


def measured() -> dict[tuple[str, str, str], str]:
    """What a GPU took, by op, sizes and type; nothing while none has been measured."""
    path = RESULTS / "ops-gpu.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {
        (each["op"], each["sizes"], each["dtype"]): microseconds(list(each["fused"].values())[-1]["us"] / 1e6)
        for each in rows
        if "fused" in each
    }


def kernels() -> Iterator[str]:
    """The table of the compiled kernels; a cell holds sm_80 / 90 / 100 where they differ."""
    (path,) = RESULTS.glob("ops-static-*.json")
    rows = [each for each in json.loads(path.read_text())["rows"] if f"torch.{each['dtype']}" in map(str, DTYPES)]
    yield "| kernel | type | registers | shared KiB | blocks an SM | buffers | ahead | copy | load | store |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    shown = set()
    for name, group in groupby(rows, key=lambda each: (each["kernel"], each["dtype"])):
        variants = list(group)
        # A kernel that several ops launch is shown once: its variants differ by a few registers.
        if name not in shown and len(variants) == len(ARCHITECTURES):
            shown.add(name)
            yield kernel_row(*name, variants)


def kernel_row(kernel: str, dtype: str, variants: list[dict[str, Any]]) -> str:
    """One kernel in one type."""

    def over(name: str, unit: int = 1) -> str:
        values = [each[name] // unit for each in variants]
        return " / ".join(map(str, values if len(set(values)) > 1 else values[:1]))

    # Without a product there is nothing to pipeline.
    pipeline = [over(name) if variants[0]["products"] else "" for name in ("buffers", "ahead", "copy_bytes")]
    return row(
        f"`{kernel}`",
        dtype,
        over("registers"),
        over("shared_bytes", 1024),
        over("blocks_per_sm"),
        *pipeline,
        over("load_bytes"),
        over("store_bytes"),
    )


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def microseconds(seconds: float) -> str:
    """Two digits that count."""
    value = 1e6 * seconds
    return f"{value:.0f} µs" if value >= 10 else f"{value:.1f} µs"


def main() -> None:
    """Write each table between its marks."""
    text = PAGE.read_text()
    for name, lines in {"the ops": ops(), "the kernels": kernels()}.items():
        before, rest = text.split(BEGIN.format(name))
        table = "\n".join(lines)
        text = f"{before}{BEGIN.format(name)}\n\n{table}\n\n{END.format(name)}{rest.split(END.format(name))[1]}"
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
