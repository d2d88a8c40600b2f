"""A loader that begins again at its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class IterLoader:
    """Batches for as long as they are asked for."""

    def __init__(self, loader: Iterable[Any], length: int | None = None) -> None:
        self.loader, self.length = loader, length

    def __len__(self) -> int:
        return self.length

    def new_epoch(self) -> None:
        """Begin a pass."""
        self.batches = iter(self.loader)

    def next(self) -> Any:
        """The next batch, of this pass or of a new one."""
        try:
            return next(self.batches)
        except StopIteration:
            self.new_epoch()
            return next(self.batches)
