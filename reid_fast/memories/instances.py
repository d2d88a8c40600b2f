"""A memory of every image (Ge et al., SpCL, NeurIPS 2020)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reid_fast import ops
from reid_fast.device import to_device
from reid_fast.memories.buffers import VaryingBuffers


class InstanceMemory(VaryingBuffers):
    """An L2-normalised row per image, kept for the whole run; their classes are those of the epoch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.labels: Tensor
        self.means: Tensor
        self.counts: Tensor
        self.register_buffer("rows", torch.empty(0, width))  # [N, D]
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))  # [N], the class of each row
        # The running means of the classes drift by rounding, so they are saved, not computed again on resumption.
        self.register_buffer("means", torch.empty(0, width))  # [C, D], not normalised
        self.register_buffer("counts", torch.empty(0, dtype=torch.int64))  # [C]

    def fill(self, features: Tensor) -> None:
        """Take over the [N, D] L2-normalised features of all images: steps write into them, for a copy may not fit."""
        self.rows = features

    def relabel(self, labels: np.ndarray) -> None:
        """Take the [N] int64 classes of an epoch; numbers may be unused."""
        self.labels = to_device(labels, self.rows.device)
        self.means, self.counts = ops.class_means(self.rows, self.labels)

    def step(self, x: Tensor, index: Tensor, temperature: float, momentum: float, focal: float = 0.0) -> Tensor:
        """The contrast of a batch with the classes as they are; its features then move their own rows.

        Args:
            x: [B, D] L2-normalised features.
            index: [B] int64, each feature's own row.
            temperature: τ.
            momentum: share of the old row that is kept; rows named twice are moved in batch order.
            focal: exponent of the focal weight; see `ops.hybrid_nce`.

        Returns:
            The loss, a scalar; its gradient is that of the rows before the update.
        """
        classes = ops.ClassMeans(self.means, self.counts)
        loss = ops.hybrid_nce(x, self.rows, self.labels, index, temperature, focal, classes=classes)
        ops.hybrid_update(self.rows, self.labels, classes, x.detach(), index, momentum)
        return loss
