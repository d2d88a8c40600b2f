"""A memory of class prototypes (Dai et al., Cluster Contrast, ACCV 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast import ops
from reid_fast.memories.buffers import VaryingBuffers, label_means


@dataclass(frozen=True)
class Update:
    """How the features of a batch move the prototypes of their classes; see `ops.memory_update`."""

    momentum: float  # share of the old prototype that is kept
    mode: str = "serial"
    temperature: float | None = None  # of mode="weighted"
    scores: Tensor | None = None  # [B], of mode="pick"


class PrototypeMemory(VaryingBuffers):
    """A row per class: a source's identities, kept over the epochs, then the clusters of the epoch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.register_buffer("rows", torch.empty(0, width))  # [C, D]

    def fill(self, features: Tensor, labels: np.ndarray, *, kept: int = 0, normalize: bool = True) -> None:
        """Rebuild the clusters' rows: the mean of each cluster's features.

        Args:
            features: [N, D], L2-normalised.
            labels: [N] int64 clusters; -1 is left out.
            kept: rows of a source in front, which stay.
            normalize: L2-normalise the means.
        """
        means = label_means(features, labels)
        self.rows = torch.cat([self.rows[:kept], F.normalize(means) if normalize else means])

    def step(
        self,
        x: Tensor,
        labels: Tensor,
        temperature: float,
        update: Update | None = None,
        *,
        targets: Tensor | None = None,
        normalize: bool = True,
        smoothing: float = 0.0,
    ) -> Tensor:
        """The contrast of a batch with the rows as they are, which it then updates.

        Args:
            x: [B, D] features.
            labels: [B] int64 classes.
            temperature: τ.
            update: how the rows move; None leaves them.
            targets: [B, C] soft ones, for the loss in place of the labels.
            normalize, smoothing: as in `ops.cluster_nce`; only where the rows stay.

        Returns:
            The loss, a scalar; its gradient is that of the rows before the update.
        """
        if update is None:
            return ops.cluster_nce(
                x, self.rows, labels, temperature, normalize=normalize, smoothing=smoothing, targets=targets
            )
        how, scores = (update.momentum, update.mode), update.scores
        if targets is None:
            return ops.cluster_step(
                x, self.rows, labels, temperature, *how, update_temperature=update.temperature, scores=scores
            )
        loss = ops.cluster_nce(x, self.rows, labels, temperature, targets=targets)
        ops.memory_update(self.rows, F.normalize(x.detach()), labels, *how, update.temperature, scores=scores)
        return loss
