"""Whether a run's images fit into memory once they are decoded."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from reid_fast.device import free_bytes

_GIB = 2**30


@dataclass(frozen=True)
class Held:
    """Whether images are held decoded, which is its truth value; `str` says why."""

    images: int
    needed: float  # GiB that they take
    limit: float  # GiB that they may take
    room: float  # GiB that the device can spare: half of its memory, for training has yet to take its own
    device: torch.device

    @classmethod
    def judge(cls, images: int, size: tuple[int, int], limit: float, device: torch.device) -> Held:
        """Compare what images of (H, W) pixels take as uint8 RGB with `limit` GiB and half of the device's memory.

        Of a CUDA device what is free counts, otherwise what the machine has.
        """
        return cls(images, images * 3 * math.prod(size) / _GIB, limit, _memory(device) / 2, device)

    def __bool__(self) -> bool:
        return self.needed <= min(self.limit, self.room)

    def __str__(self) -> str:
        if self:
            return f"images are held decoded on {self.device}: {self.images:,} of them take {self.needed:.2f} GiB"
        over_limit, spare = self.needed > self.limit, f"the {self.room:.2f} GiB that {self.device} can spare"
        return (
            f"images are decoded at every use: {self.images:,} of them take {self.needed:.2f} GiB, "
            f"more than {f'--cache {self.limit:g}' if over_limit else spare}"
        )


def _memory(device: torch.device) -> float:
    """GiB that are free on a CUDA device, or that the machine has."""
    if device.type == "cuda":
        return free_bytes(device) / _GIB
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
