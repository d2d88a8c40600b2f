"""Seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


class Clock(dict[str, float]):
    """Seconds by stage."""

    def __init__(self, device: torch.device, seconds: Mapping[str, float] | None = None) -> None:
        """
        Args:
            device: where the stages compute: on CUDA, the clock waits for it.
            seconds: what has been measured before.
        """
        super().__init__(seconds or {})
        self._device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[], None]]:
        """Add the seconds spent inside to `name`, at the end and at each call of the function it yields.

        Waits for the device each time.
        """
        start = self._now()

        def lap() -> None:
            nonlocal start
            now = self._now()
            self[name] = self.get(name, 0.0) + now - start
            start = now

        yield lap
        lap()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
