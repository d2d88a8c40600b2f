"""The memory of cluster prototypes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Contrast(torch.autograd.Function):
    """Logits of unit rows, whose backward moves the memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor, rows: Tensor, momentum: float) -> Tensor:
        ctx.save_for_backward(x, labels)
        ctx.rows, ctx.momentum = rows, momentum
        return x @ rows.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, labels = ctx.saved_tensors
        to_x = gradient @ ctx.rows
        for one, label in zip(x, labels, strict=True):
            moved = ctx.momentum * ctx.rows[label] + (1 - ctx.momentum) * one
            ctx.rows[label] = moved / moved.norm()
        return to_x, None, None, None


class ClusterMemory(nn.Module):
    """A row per cluster."""

    def __init__(self, num_features: int, num_samples: int, temp: float = 0.05, momentum: float = 0.2) -> None:
        super().__init__()
        self.temp, self.momentum = temp, momentum
        self.register_buffer("features", torch.zeros(num_samples, num_features))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The contrast of features [B, D] with the rows."""
        logits = _Contrast.apply(F.normalize(inputs), targets, self.features, self.momentum)
        return F.cross_entropy(logits / self.temp, targets)
