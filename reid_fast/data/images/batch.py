"""Where the data path and a method meet."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B pictures and what is known of them, on the training device."""

    views: tuple[Tensor, ...]  # one [B, 3, H, W] per view that the method asks for
    labels: Tensor  # [B] int64 pseudo labels
    index: Tensor  # [B] int64, the pictures' places among the N training pictures
    cams: Tensor  # [B] int64, -1 = unknown
    epoch: int = 0  # finished epochs of the run
    step: int = 0  # finished steps of the run, over all epochs
