"""What every benchmark row carries: timings with their spread, the machine, versions and commit."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

Row = dict[str, Any]


class Card(NamedTuple):
    """What a GPU can do at most, by its maker's data sheet."""

    bandwidth: float  # bytes/s of its memory
    low: float  # operations/s, bf16 products, dense
    tf32: float  # operations/s, tf32 products, dense

    def floor(self, bytes: float, operations: float, dtype: torch.dtype) -> float:
        """Seconds that the work takes at least; a float32 product is three of tf32."""
        peak = self.tf32 / 3 if dtype == torch.float32 else self.low
        return max(bytes / self.bandwidth, operations / peak)


CARDS = {
    "H200": Card(4.8e12, 989e12, 494e12),
    "H100": Card(3.35e12, 989e12, 494e12),
    "A100": Card(2.04e12, 312e12, 156e12),
}


def card() -> tuple[str, Card]:
    """This machine's GPU; an H200 where there is none, or another."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next(((key, value) for key, value in CARDS.items() if key in name), ("H200", CARDS["H200"]))


class Lap(NamedTuple):
    """What one call took."""

    seconds: float
    processor: float  # seconds over all cores, its ended children's too: what a neighbour on the machine cannot stretch
    peak_mb: float | None = None  # as the function of this name has it, where it was asked for

    def __truediv__(self, parts: int) -> Lap:
        return self._replace(seconds=self.seconds / parts, processor=self.processor / parts)


def lap(work: Callable[[], Any], *, peak: bool = False) -> tuple[Any, Lap]:
    """The result of a call and what it took."""
    if peak:
        found: list[tuple[Any, Lap]] = []
        megabytes = peak_mb(lambda: found.append(lap(work)))
        result, taken = found[0]
        return result, taken._replace(peak_mb=megabytes)
    start, used = time.perf_counter(), _processor_seconds()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, Lap(time.perf_counter() - start, _processor_seconds() - used)


def _processor_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def summed_up(laps: Sequence[Lap]) -> Row:
    """The median, spread and number of laps, and the largest of their peaks."""
    seconds, processor, peaks = zip(*laps, strict=True)
    numbers = {"seconds": statistics.median(seconds), "processor": statistics.median(processor)}
    numbers |= {"min": min(seconds), "max": max(seconds)}
    known = [peak for peak in peaks if peak is not None]
    more = {"peak_mb": max(known)} if known else {}
    return {name: significant(value) for name, value in numbers.items()} | {"n": len(laps)} | more


def significant(value: float) -> float:
    """A number of seconds to the tenth of a millisecond, or to four digits where it is shorter."""
    return float(f"{value:.4g}") if abs(value) < 1 else round(value, 4)


def timed(work: Callable[[], Any], runs: int) -> tuple[Any, Row]:
    """The last result of `runs` calls, and the median, spread and number of what they took."""
    laps = []
    for _ in range(runs):
        result, taken = lap(work)
        laps.append(taken)
    return result, summed_up(laps)


def interleaved(sides: Sequence[Callable[[], Lap]], runs: int) -> list[Row]:
    """What each side took, all of them in turn: a machine that gets slower does so for all."""
    laps = [[side() for side in sides] for _ in range(runs)]
    return [summed_up(of_side) for of_side in zip(*laps, strict=True)]


def spread(work: Callable[[], object], runs: int) -> tuple[float, float]:
    """(median, from quartile to quartile) of the seconds of `runs` calls, after two to warm up.

    On CUDA by events in the stream, between calls that follow one another: for work too short for `timed`.
    """
    for _ in range(2):
        work()
    seconds = _between_events(work, runs) if torch.cuda.is_available() else _by_the_clock(work, runs)
    low, median, high = statistics.quantiles(seconds, n=4)
    return median, high - low


def _by_the_clock(work: Callable[[], object], runs: int) -> list[float]:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def _between_events(work: Callable[[], object], runs: int) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in pairwise(events)]


def ratio(slow: Row, fast: Row) -> float:
    """How many times faster one is than the other."""
    return round(slow["seconds"] / fast["seconds"], 2)


def peak_mb(work: Callable[[], Any]) -> float | None:
    """Megabytes of resident memory that `work` needs above what is there, or None where Linux does not tell."""
    try:
        # Freed memory that the allocator keeps would hide what the work takes.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_mb("VmRSS")
        work()
        return round(_status_mb("VmHWM") - before, 1)
    except (OSError, AttributeError):
        return None


def _status_mb(field: str) -> float:
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def machine() -> Row:
    """Processor, cores, versions and commit."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpu.read_text()) if cpu.exists() else None
    revision = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "commit": subprocess.run(revision, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip(),
        "load": os.getloadavg()[0],
    }


def where(about: Row) -> str:
    """`machine`'s answer in a line."""
    cores, load = f"{about['cores']} cores", f"load {about['load']:.1f}"
    return f"{about['gpu'] or about['cpu']}, {cores}, torch {about['torch']}, commit {about['commit']}, {load}"


def save(program: str, rows: list[Row], folder: Path) -> Path:
    """Write the rows and the machine to `folder`/program-device.json."""
    path = _file(program, folder)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return path


def save_stage(program: str, stage: str, rows: list[Row], folder: Path) -> Path:
    """Put a stage's rows, with the machine, into `folder`/program-device.json beside those of its other stages."""
    path = _file(program, folder)
    stages = json.loads(path.read_text()) if path.exists() else {}
    stages[stage] = {"machine": machine(), "rows": rows}
    path.write_text(json.dumps(stages, indent=1) + "\n")
    return path


def _file(program: str, folder: Path) -> Path:
    device = "gpu" if torch.cuda.is_available() else f"cpu{len(os.sched_getaffinity(0))}"
    return folder / f"{program}-{device}.json"
