"""How long a call takes: on the CPU by the clock, on CUDA by events in the stream."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch


def measure(function: Callable[[], object], n: int = 20) -> tuple[float, float]:
    """(median, spread) of n calls in seconds, after two calls to warm up; the spread is from quartile to quartile."""
    for _ in range(2):
        function()
    seconds = _on_cuda(function, n) if torch.cuda.is_available() else _on_cpu(function, n)
    low, median, high = statistics.quantiles(seconds, n=4)
    return median, high - low


def _on_cpu(function: Callable[[], object], n: int) -> list[float]:
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def _on_cuda(function: Callable[[], object], n: int) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in pairwise(events)]
