"""SpCL's hybrid memory: the contrast with class means, and momentum updates of instances and means.

The contrast is that of `cluster_nce`, over the classes with members and with the published ε and focal weight.

In one launch the update moves instance rows and the running class means they belong to. One program a touched class:
the one that holds the first sample of the class. It walks the class's instances in batch order, updates each once
through all its repetitions, and moves the mean by what the rows moved.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels import tiles
from reid_fast.kernels.cluster_nce import finish
from reid_fast.kernels.memory_update import blend, blocks, load_feature
from reid_fast.kernels.one_target import Hybrid, stream


def hybrid_nce(
    x: torch.Tensor,
    means: torch.Tensor,
    counts: torch.Tensor,
    memory_labels: torch.Tensor,
    index: torch.Tensor,
    temperature: float,
    focal: float,
    epsilon: float,
    normalize: bool,
    needs_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gradient [B, D] or [0]) in float32. Three launches while the classes fit one turn."""
    hybrid = Hybrid(counts, index, focal, epsilon)
    partial = stream(x, means, memory_labels, temperature, normalize, None, None, hybrid, needs_grad)
    return finish(x, partial, normalize, needs_grad)


@triton.jit(do_not_specialize=["C"])
def update_kernel(
    memory_ptr,  # [N, D] instances, changed
    means_ptr,  # [C, D] float32, changed
    counts_ptr,  # [C] int64 members
    memory_labels_ptr,  # [N] int64, the class of each instance
    x_ptr,  # [B, D] L2-normalised features
    index_ptr,  # [B] int64, the instance of each feature
    B,
    C,
    D,
    N,
    momentum,  # the share of the old row that is kept
    BB: tl.constexpr,  # at least B
    BD: tl.constexpr,  # at least D
):
    """One program a sample."""
    first = tl.program_id(0)
    position = tl.arange(0, BB)
    d = tl.arange(0, BD)
    instances = tl.load(index_ptr + position, mask=position < B, other=-1)
    classes = tiles.load_labels(memory_labels_ptr, index_ptr, position, B, N, True)
    own = tiles.load_labels(memory_labels_ptr, index_ptr, first, B, N, True).to(tl.int64)
    earlier = tl.sum(((classes == own) & (position < first)).to(tl.int32), axis=0)
    if (own >= 0) & (own < C) & (earlier == 0):
        mean = tl.load(means_ptr + own * D + d, mask=d < D, other=0.0)
        share = 1.0 / tl.load(counts_ptr + own).to(tl.float32)
        sample = first
        while sample < B:
            instance = tl.load(index_ptr + sample).to(tl.int64)
            same = instances == instance
            if tl.sum((same & (position < sample)).to(tl.int32), axis=0) == 0:
                at = memory_ptr + instance * D + d
                old = tl.load(at, mask=d < D, other=0.0).to(tl.float32)
                new = old
                repeat = sample
                while repeat < B:
                    new = blend(new, load_feature(x_ptr, repeat, d, D, False), momentum)
                    repeat = tl.min(tl.where(same & (position > repeat), position, B), axis=0)
                stored = new.to(memory_ptr.dtype.element_ty)
                tl.store(at, stored, mask=d < D)
                mean += (stored.to(tl.float32) - old) * share
            sample = tl.min(tl.where((classes == own) & (position > sample), position, B), axis=0)
        tl.store(means_ptr + own * D + d, mean, mask=d < D)


def hybrid_update(
    memory: torch.Tensor,
    means: torch.Tensor,
    counts: torch.Tensor,
    memory_labels: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor,
    momentum: float,
) -> None:
    """In place. One launch."""
    (B, D), C, N = x.shape, means.shape[0], memory.shape[0]
    update_kernel[(B,)](
        memory_ptr=memory,
        means_ptr=means,
        counts_ptr=counts,
        memory_labels_ptr=memory_labels,
        x_ptr=x,
        index_ptr=index,
        B=B,
        C=C,
        D=D,
        N=N,
        momentum=momentum,
        **blocks(B, D),
    )
