"""Momentum updates of memory rows: one program a touched row, in place, without atomics.

The launch has one program a sample; the one that holds the first member of a cluster owns its row, keeps it
in registers and walks the members in batch order, the others leave at once. So any group size, any order and
any repetition is legal, nothing is sorted, and the host learns nothing. The chain of a group of 16 costs 16
reductions of D numbers inside one program; the Gram form of the same recursion would need a 17×17 product
first, and then as many.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def unit_row(x, member, d, D, NORMALIZE: tl.constexpr):
    row = tl.load(x + member.to(tl.int64) * D + d, mask=d < D, other=0.0).to(tl.float32)
    if NORMALIZE:
        row = row / tl.maximum(tl.sqrt(tl.sum(row * row, axis=0)), 1e-12)
    return row


@triton.jit
def blend(row, other, momentum):
    row = momentum * row + (1 - momentum) * other
    return row / tl.sqrt(tl.sum(row * row, axis=0))


@triton.jit
def update_row(
    memory, x, labels, scores, first, B, D, momentum, temperature,
    MODE: tl.constexpr, NORMALIZE: tl.constexpr, BB: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Update the row that sample `first` names, if no earlier sample names it."""
    position = tl.arange(0, BB)
    d = tl.arange(0, BD)
    label = tl.load(labels + first)
    same = tl.load(labels + position, mask=position < B, other=-1) == label
    if tl.sum((same & (position < first)).to(tl.int32), axis=0) == 0:
        at = memory + label.to(tl.int64) * D + d
        row = tl.load(at, mask=d < D, other=0.0).to(tl.float32)
        member = first
        chosen = unit_row(x, member, d, D, NORMALIZE)
        best = float("-inf")
        weight = 0.0
        while member < B:
            x_row = unit_row(x, member, d, D, NORMALIZE)
            if MODE == "serial":
                row = blend(row, x_row, momentum)
            elif MODE == "weighted":
                score = -tl.sum(x_row * row, axis=0) / temperature
                peak = tl.maximum(best, score)
                keep, gain = tl.exp(best - peak), tl.exp(score - peak)
                chosen = chosen * keep + x_row * gain
                weight = weight * keep + gain
                best = peak
            else:
                score = -tl.sum(x_row * row, axis=0) if MODE == "hard" else tl.load(scores + member).to(tl.float32)
                chosen = tl.where(score > best, x_row, chosen)
                best = tl.maximum(best, score)
            member = tl.min(tl.where(same & (position > member), position, B), axis=0)
        if MODE == "weighted":
            chosen = chosen / weight
        if MODE != "serial":
            row = blend(row, chosen, momentum)
        tl.store(at, row.to(memory.dtype.element_ty), mask=d < D)


@triton.jit
def update_kernel(
    memory,
    x,
    labels,
    scores,
    B,
    D,
    momentum,
    temperature,
    MODE: tl.constexpr,
    BB: tl.constexpr,
    BD: tl.constexpr,
):
    update_row(memory, x, labels, scores, tl.program_id(0), B, D, momentum, temperature, MODE, False, BB, BD)


def update(
    memory: torch.Tensor, x: torch.Tensor, labels: torch.Tensor, momentum: float, mode: str,
    temperature: float | None, scores: torch.Tensor | None,
) -> None:  # fmt: skip
    """In place on contiguous `memory`. One launch."""
    B, D = x.shape
    update_kernel[(B,)](
        memory, x.contiguous(), labels.contiguous(), scores, B, D, momentum, temperature or 1.0,
        MODE=mode, BB=triton.next_power_of_2(B), BD=triton.next_power_of_2(D), num_warps=4 if B <= 1024 else 8,
    )  # fmt: skip
