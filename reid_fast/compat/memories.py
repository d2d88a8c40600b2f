"""Cluster Contrast's `ClusterMemory` and SpCL's `HybridMemory`, whose rows move when the loss goes backward.

The engine's own memories move theirs with the loss. The published ones do so in `backward`, and training scripts may
rely on it: a loss that is only looked at leaves them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_fast import ops


class ClusterMemory(nn.Module):
    """A row per cluster (Dai et al., ACCV 2022).

    The gradient is that of the rows as they are in `forward`; the published one is taken in `backward`. They differ
    where `backward` of another loss of the same memory comes between the two.
    """

    def __init__(
        self, num_features: int, num_samples: int, temp: float = 0.05, momentum: float = 0.2, use_hard: bool = False
    ) -> None:
        """
        Args:
            num_features: D, the width of a row.
            num_samples: C, the number of clusters.
            temp: the temperature.
            momentum: share of the old row that is kept.
            use_hard: move a row once a batch, with its least similar feature, instead of with each in turn.
        """
        super().__init__()
        self.num_features, self.num_samples = num_features, num_samples
        self.temp, self.momentum, self.use_hard = temp, momentum, use_hard
        self.features: Tensor
        self.register_buffer("features", torch.zeros(num_samples, num_features))  # [C, D], L2-normalised

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The contrast of a batch with the rows, which its `backward` moves.

        Args:
            inputs: [B, D] features, normalised here; the gradient flows to them.
            targets: [B] int64 clusters.

        Returns:
            The mean cross entropy, a scalar.
        """
        x, rows = inputs.to(self.features.device), self.features
        loss = ops.cluster_nce(x, rows, targets, self.temp)
        unit, mode, momentum = F.normalize(x.detach()), "hard" if self.use_hard else "serial", self.momentum
        return _before_backward(loss, lambda: ops.memory_update(rows, unit, targets, momentum, mode))


class HybridMemory(nn.Module):
    """A row per image, whose `labels` tell the class (Ge et al., NeurIPS 2020).

    The published loss multiplies with all N rows; this one with the means of the C classes, which move with the rows.
    They are summed anew when `features` or `labels` is another tensor, or was written to (but not through `.data`,
    which torch does not count).
    """

    def __init__(self, num_features: int, num_samples: int, temp: float = 0.05, momentum: float = 0.2) -> None:
        """
        Args:
            num_features: D, the width of a row.
            num_samples: N, the number of images.
            temp: the temperature.
            momentum: share of the old row that is kept.
        """
        super().__init__()
        self.num_features, self.num_samples = num_features, num_samples
        self.temp, self.momentum = temp, momentum
        self.features: Tensor
        self.labels: Tensor
        self.register_buffer("features", torch.zeros(num_samples, num_features))  # [N, D], L2-normalised
        self.register_buffer("labels", torch.zeros(num_samples, dtype=torch.int64))  # [N]
        self._classes: _Classes | None = None

    def forward(self, inputs: Tensor, indexes: Tensor) -> Tensor:
        """The contrast of a batch with the classes, whose `backward` moves the rows.

        Args:
            inputs: [B, D] features, taken as they are: L2-normalised, as the published encoder returns them. The
                gradient flows to them, and is that of the rows as they are now.
            indexes: [B] int64, the row of each.

        Returns:
            The mean negative logarithm of each class's share, a scalar.
        """
        if self._classes is None or not self._classes.are_of(self.features, self.labels):
            self._classes = _Classes(self.features, self.labels)
        classes, x, momentum = self._classes, inputs.to(self.features.device), self.momentum
        loss = classes.contrast(x, indexes, self.temp)
        unit = x.detach()
        return _before_backward(loss, lambda: classes.move(unit, indexes, momentum))


class _Classes:
    """Rows, their labels and the classes' means, as long as nobody else writes to them."""

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self._rows, self._labels = rows, labels
        self._means = ops.class_means(rows, labels)
        self._seen = self._written()

    def are_of(self, rows: Tensor, labels: Tensor) -> bool:
        """Whether they are those of these tensors as they are now."""
        return self._rows is rows and self._labels is labels and self._seen == self._written()

    def contrast(self, x: Tensor, index: Tensor, temperature: float) -> Tensor:
        """See `ops.hybrid_nce`."""
        return ops.hybrid_nce(x, self._rows, self._labels, index, temperature, classes=self._means, normalize=False)

    def move(self, x: Tensor, index: Tensor, momentum: float) -> None:
        """See `ops.hybrid_update`."""
        ours = self._seen == self._written()
        ops.hybrid_update(self._rows, self._labels, self._means, x, index, momentum)
        if ours:
            self._seen = self._written()

    def _written(self) -> tuple[int, int]:
        """How often torch has seen them being written to."""
        return self._rows._version, self._labels._version


def _before_backward(loss: Tensor, update: Callable[[], None]) -> Tensor:
    """The loss, whose backward calls `update` first."""
    return _BeforeBackward.apply(loss, update)


class _BeforeBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, update: Callable[[], None]) -> Tensor:
        ctx.update = update
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None]:
        ctx.update()
        return by_loss, None
