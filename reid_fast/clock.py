"""Seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Clock(dict[str, float]):
    """Seconds by stage."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[], None]]:
        """Add the seconds spent inside to `name`, at the end and at each call of the function it yields.

        Waits for the GPU each time.
        """
        start = self._now()

        def lap() -> None:
            nonlocal start
            now = self._now()
            self[name] = self.get(name, 0.0) + now - start
            start = now

        yield lap
        lap()

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()
