"""One-target softmax cross entropy against a memory, with the gradient from the same logits. Three launches.

The first two are those of `one_target`. In the last, one program a row takes the gradient through the L2 norm, and one
more sums the losses: so it is after the launches of `target_nce` and of `hybrid_nce`.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles
from reid_fast.kernels.one_target import Partial, stream


@triton.jit
def finish_row(
    x_ptr,  # [B, D] features
    factors_ptr,  # [B] from launch 2
    acc_ptr,  # [parts, B, D] from launch 2
    gradient_ptr,  # [B, D] out
    row,  # its number
    B,
    D,
    parts,
    BD: tl.constexpr,  # at least D
    NORMALIZE: tl.constexpr,
    GRAD: tl.constexpr,
):
    """The gradient of one row; reads neither the memory nor any other row."""
    if GRAD:
        d = tl.arange(0, BD)
        h = tl.zeros([BD], tl.float32)
        for part in range(parts):
            h += tl.load(acc_ptr + (part * B + row).to(tl.int64) * D + d, mask=d < D, other=0.0)
        x = tl.load(x_ptr + row.to(tl.int64) * D + d, mask=d < D, other=0.0).to(tl.float32)
        scale = 1.0
        if NORMALIZE:
            scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, axis=0)), 1e-12)
        h = tiles.through_norm(h * tl.load(factors_ptr + row), x, scale, NORMALIZE)
        tl.store(gradient_ptr + row.to(tl.int64) * D + d, h, mask=d < D)


@triton.jit
def sum_losses(
    losses_ptr,  # [B]
    loss_ptr,  # [] out: their sum
    B,
    BB: tl.constexpr,  # at least B
):
    """One program for all rows."""
    row = tl.arange(0, BB)
    tl.store(loss_ptr, tl.sum(tl.load(losses_ptr + row, mask=row < B, other=0.0), axis=0))


@triton.jit(do_not_specialize=["parts"])
def finish_kernel(
    x_ptr,  # these are the arguments of `finish_row` and `sum_losses`
    losses_ptr,
    factors_ptr,
    acc_ptr,
    loss_ptr,
    gradient_ptr,
    B,
    D,
    parts,
    BB: tl.constexpr,
    BD: tl.constexpr,
    NORMALIZE: tl.constexpr,
    GRAD: tl.constexpr,
):
    """Launch 3: a program a row, and one more."""
    row = tl.program_id(0)
    if row < B:
        finish_row(x_ptr, factors_ptr, acc_ptr, gradient_ptr, row, B, D, parts, BD, NORMALIZE, GRAD)
    else:
        sum_losses(losses_ptr, loss_ptr, B, BB)


def finish(x: torch.Tensor, partial: Partial, normalize: bool, needs_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gradient [B, D] or [0]) in float32: launch 3."""
    B, D = x.shape
    loss, gradient = tiles.results(x, needs_grad)
    finish_kernel[(B + 1,)](
        x_ptr=x,
        losses_ptr=partial.losses,
        factors_ptr=partial.factors,
        acc_ptr=partial.acc,
        loss_ptr=loss,
        gradient_ptr=gradient,
        B=B,
        D=D,
        parts=partial.parts,
        BB=triton.next_power_of_2(max(1, B)),
        BD=triton.next_power_of_2(D),
        NORMALIZE=normalize,
        GRAD=needs_grad,
    )
    return loss, gradient


def cluster_nce(
    x: torch.Tensor,
    memory: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    normalize: bool,
    spans: torch.Tensor | None,
    weights: torch.Tensor | None,
    needs_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gradient [B, D] or [0]) in float32. Three launches while C fits one turn."""
    partial = stream(x, memory, labels, temperature, normalize, spans, weights, None, needs_grad)
    return finish(x, partial, normalize, needs_grad)
