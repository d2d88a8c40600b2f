"""BatchNorm in training over groups of images that lie on several ranks: torch's SyncBatchNorm, by groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from reid_fast.ranks import Split


def spanned_bn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    group: int,
    momentum: float,
    eps: float,
    split: Split,
) -> Tensor:
    """`ops.grouped_bn` of one domain where groups span ranks; all of them call it together, forward and backward.

    Two exchanges of [groups, 2, C] float64 sums, one in either direction.

    Args:
        x: [b, C, ...], this rank's part of the batch.
        weight, bias: [C].
        running_mean, running_var: [C], changed in place as by the first group.
        group: images of a group, whichever ranks hold them; 0: all of the batch.
        momentum: the share of the new statistics in the running ones.
        eps: added to the variance.
        split: which part this is.

    Returns:
        [b, C, ...] of x's type. The gradients of weight and bias are those of this rank's images.
    """
    return _SpannedBatchNorm.apply(x, weight, bias, (running_mean, running_var), group, momentum, eps, split)


class _SpannedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running: tuple[Tensor, Tensor],
        group: int,
        momentum: float,
        eps: float,
        split: Split,
    ) -> Tensor:
        parts = _Parts(x, group, split)
        sums = parts.zeros()
        for g, rows in parts:
            var, mean = torch.var_mean(_pixels(x[rows]), (0, 2), correction=0)
            n, var, mean = parts.pixels * (rows.stop - rows.start), var.double(), mean.double()
            sums[g] = n * torch.stack([mean, var + mean * mean])
        dist.all_reduce(sums, group=split.ranks.group)
        mean, square = (sums / parts.count[:, None, None]).unbind(1)
        var = (square - mean * mean).clamp_(min=0)
        n = parts.count[0]
        running[0].lerp_(mean[0].to(running[0].dtype), momentum)
        running[1].lerp_((var[0] * n / (n - 1)).to(running[1].dtype), momentum)
        mean, rstd = mean.float(), (var + eps).rsqrt().float()
        y = torch.empty_like(x)
        for g, rows in parts:
            unit = (x[rows] - _as_channels(mean[g], x)) * _as_channels(rstd[g], x)
            y[rows] = (unit * _as_channels(weight, x) + _as_channels(bias, x)).to(x.dtype)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.parts = parts
        return y

    @staticmethod
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        parts, sums = ctx.parts, ctx.parts.zeros()
        units = {g: (x[rows] - _as_channels(mean[g], x)) * _as_channels(rstd[g], x) for g, rows in parts}
        for g, rows in parts:
            by = _pixels(by_y[rows])
            sums[g] = torch.stack([by.sum((0, 2)), (by * _pixels(units[g])).sum((0, 2))])
        own = sums.sum(0).to(weight.dtype)
        dist.all_reduce(sums, group=parts.split.ranks.group)
        sums = (sums / parts.count[:, None, None]).float()
        by_x = torch.empty_like(x)
        for g, rows in parts:
            total, product = (_as_channels(values, x) for values in sums[g])
            by_x[rows] = (_as_channels(weight * rstd[g], x) * (by_y[rows] - total - units[g] * product)).to(x.dtype)
        return by_x, own[1], own[0], None, None, None, None, None


class _Parts:
    """The groups that a rank's images belong to: iterates over (number, its rows among them)."""

    def __init__(self, x: Tensor, group: int, split: Split) -> None:
        self.split = split
        self.pixels = x[0, 0].numel()
        B = split.batch_size
        size = group if 0 < group < B else B
        starts = torch.arange(0, B, size, device=x.device)
        self.count = ((starts + size).clamp(max=B) - starts).double() * self.pixels  # values a channel, of each group
        self._size, self._zeros = size, x.new_zeros(len(starts), 2, x.shape[1], dtype=torch.float64)

    def zeros(self) -> Tensor:
        """[groups, 2, C] float64."""
        return self._zeros.clone()

    def __iter__(self) -> Iterator[tuple[int, slice]]:
        first, last = self.split.share.start, self.split.share.stop
        for g in range(first // self._size, -(-last // self._size)):
            start, stop = max(first, g * self._size), min(last, (g + 1) * self._size)
            yield g, slice(start - first, stop - first)


def _pixels(x: Tensor) -> Tensor:
    """[b, C, pixels] float32."""
    return x.float().flatten(2) if x.ndim > 2 else x.float()[:, :, None]


def _as_channels(values: Tensor, x: Tensor) -> Tensor:
    """[C] -> what broadcasts over x."""
    return values.view(1, -1, *[1] * (x.ndim - 2))
