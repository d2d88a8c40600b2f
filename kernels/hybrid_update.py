"""Momentum updates of instance rows and, in the same launch, of the running class means they belong to.

One program a touched class: the one that holds the first sample of the class. It walks the class's instances
in batch order, updates each once through all its repetitions, and moves the mean by what the rows moved.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels.memory_update import blend, unit_row


@triton.jit
def update_kernel(memory, means, counts, labels, x, index, B, D, momentum, BB: tl.constexpr, BD: tl.constexpr):
    first = tl.program_id(0)
    position = tl.arange(0, BB)
    d = tl.arange(0, BD)
    indices = tl.load(index + position, mask=position < B, other=-1)
    classes = tl.load(labels + indices, mask=position < B, other=-1)
    own = tl.load(labels + tl.load(index + first)).to(tl.int64)
    if tl.sum(((classes == own) & (position < first)).to(tl.int32), axis=0) == 0:
        mean = tl.load(means + own * D + d, mask=d < D, other=0.0)
        share = 1.0 / tl.load(counts + own).to(tl.float32)
        sample = first
        while sample < B:
            instance = tl.load(index + sample).to(tl.int64)
            same = indices == instance
            if tl.sum((same & (position < sample)).to(tl.int32), axis=0) == 0:
                at = memory + instance * D + d
                old = tl.load(at, mask=d < D, other=0.0).to(tl.float32)
                row = old
                repeat = sample
                while repeat < B:
                    row = blend(row, unit_row(x, repeat, d, D, False), momentum)
                    repeat = tl.min(tl.where(same & (position > repeat), position, B), axis=0)
                stored = row.to(memory.dtype.element_ty)
                tl.store(at, stored, mask=d < D)
                mean += (stored.to(tl.float32) - old) * share
            sample = tl.min(tl.where((classes == own) & (position > sample), position, B), axis=0)
        tl.store(means + own * D + d, mean, mask=d < D)


def update(
    memory: torch.Tensor, means: torch.Tensor, counts: torch.Tensor, labels: torch.Tensor, x: torch.Tensor,
    index: torch.Tensor, momentum: float,
) -> None:  # fmt: skip
    """In place on contiguous `memory` and `means`. One launch."""
    B, D = x.shape
    update_kernel[(B,)](
        memory, means, counts, labels.contiguous(), x.contiguous(), index.contiguous(), B, D, momentum,
        BB=triton.next_power_of_2(B), BD=triton.next_power_of_2(D), num_warps=4 if B <= 1024 else 8,
    )  # fmt: skip
