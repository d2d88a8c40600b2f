"""Where a run's decoded images are held: in the first of device, host's memory and file that takes them, or nowhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from reid_fast.device import free_bytes, host_memory

_GIB = 2**30
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Held:
    """Where decoded images are held; its truth value is whether they are, `str` says where, and why not before that.

    Attributes:
        tier: memory of the device; of its host, where the device is CUDA; a file of the cache folder; or nowhere: they
            are decoded at every use.
        images: N.
        needed: GiB that they take.
        place: as the user is told it.
        reason: why no tier before holds them.
    """

    tier: Literal["device", "host", "file", "stream"]
    images: int
    needed: float
    place: str
    reason: str = ""

    @classmethod
    def judge(
        cls,
        images: int,
        size: tuple[int, int],
        limit: float,
        device: torch.device,
        *,
        folder: Path | None = None,
        beside: float = 0.0,
        ranks: int = 1,
    ) -> Held:
        """Choose by what images of (H, W) pixels take as uint8 RGB, 3·H·W bytes each.

        Memory holds them up to `limit` GiB, and leaves half of what is free on a CUDA device, half of what the machine
        has on its host. Whether the disk has room turns out when the file is made: see `without_file`.

        Args:
            images: N.
            size: (H, W) in pixels.
            limit: GiB of memory that all held images may take.
            device: where images are wanted.
            folder: the cache folder; None: there is none.
            beside: GiB that other images are held in already.
            ranks: processes of this machine that hold copies of their own in its memory.
        """
        needed = images * 3 * math.prod(size) / _GIB
        reason = f"more than {f'the {limit - beside:.2f} GiB left of ' if beside else ''}--cache {limit:g}"
        if needed <= limit - beside:
            room, reason = _room(device, beside, ranks), ""
            if needed <= room:
                return cls("device", images, needed, f"on {device}")
            reason = f"more than the {room:.2f} GiB that {device} can spare"
            if device.type == "cuda":
                room = _room(_CPU, beside, ranks)
                if needed <= room:
                    return cls("host", images, needed, "in the host's memory", reason)
                reason += f", and the {room:.2f} GiB that its host can"
        if folder is not None:
            return cls("file", images, needed, f"in {folder}", reason)
        return cls("stream", images, needed, "", f"{reason}; --cache-dir would hold them in a file")

    def without_file(self, error: OSError) -> Held:
        """The same where the cache folder cannot hold them after all."""
        reason = f"{self.reason}; the file {self.place} cannot be made ({error.strerror or error})"
        return replace(self, tier="stream", place="", reason=reason)

    @property
    def in_memory(self) -> float:
        """GiB of memory that they take."""
        return self.needed if self.tier in ("device", "host") else 0.0

    def __bool__(self) -> bool:
        return self.tier != "stream"

    def __str__(self) -> str:
        where = f"held decoded {self.place}" if self else "decoded at every use"
        text = f"images are {where}: {self.images:,} of them take {self.needed:.2f} GiB"
        return f"{text}, {self.reason}" if self.reason else text


def _room(device: torch.device, beside: float, ranks: int) -> float:
    """GiB that images may take in the memory of a device. What lies on CUDA already is not free there."""
    return _memory(device) / 2 if device.type == "cuda" else _memory(device) / 2 / ranks - beside


def _memory(device: torch.device) -> float:
    """GiB that are free on a CUDA device, or that this process may have on its host."""
    if device.type == "cuda":
        return free_bytes(device) / _GIB
    return host_memory()[0] / _GIB
