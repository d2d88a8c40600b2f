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
def load_feature(
    x_ptr,  # [B, D]
    member,  # the feature's number
    d,  # [BD] its elements
    D,
    NORMALIZE: tl.constexpr,  # divide it by its norm
):
    """One feature, [BD] float32."""
    feature = tl.load(x_ptr + member.to(tl.int64) * D + d, mask=d < D, other=0.0).to(tl.float32)
    if NORMALIZE:
        feature = feature / tl.maximum(tl.sqrt(tl.sum(feature * feature, axis=0)), 1e-12)
    return feature


@triton.jit
def blend(
    prototype,  # [BD]
    feature,  # [BD]
    momentum,  # the share of the prototype that is kept
):
    """The L2-normalised mixture of both, [BD]."""
    prototype = momentum * prototype + (1 - momentum) * feature
    return prototype / tl.sqrt(tl.sum(prototype * prototype, axis=0))


@triton.jit
def update_prototype(
    memory_ptr,  # [C, D], changed
    x_ptr,  # [B, D] features
    labels_ptr,  # [B] int64
    scores_ptr,  # [B], with MODE "pick"
    first,  # the sample of this program
    B,
    C,
    D,
    momentum,  # the share of the old row that is kept
    temperature,  # of MODE "weighted"
    MODE: tl.constexpr,  # "serial", "hard", "weighted" or "pick"
    NORMALIZE: tl.constexpr,  # L2-normalise the features first
    BB: tl.constexpr,  # at least B
    BD: tl.constexpr,  # at least D
):
    """Update the memory row that sample `first` names, if there is such a row and no earlier sample names it."""
    position = tl.arange(0, BB)
    d = tl.arange(0, BD)
    label = tl.load(labels_ptr + first)
    same = tl.load(labels_ptr + position, mask=position < B, other=-1) == label
    earlier = tl.sum((same & (position < first)).to(tl.int32), axis=0)
    if (label >= 0) & (label < C) & (earlier == 0):
        at = memory_ptr + label.to(tl.int64) * D + d
        prototype = tl.load(at, mask=d < D, other=0.0).to(tl.float32)
        member = first
        chosen = load_feature(x_ptr, member, d, D, NORMALIZE)
        running_max = float("-inf")
        running_sum = 0.0
        while member < B:
            feature = load_feature(x_ptr, member, d, D, NORMALIZE)
            if MODE == "serial":
                prototype = blend(prototype, feature, momentum)
            elif MODE == "weighted":
                logit = -tl.sum(feature * prototype, axis=0) / temperature
                new_max = tl.maximum(running_max, logit)
                rescale, e = tl.exp(running_max - new_max), tl.exp(logit - new_max)
                chosen = chosen * rescale + feature * e
                running_sum = running_sum * rescale + e
                running_max = new_max
            else:
                if MODE == "hard":
                    score = -tl.sum(feature * prototype, axis=0)
                else:
                    score = tl.load(scores_ptr + member).to(tl.float32)
                chosen = tl.where(score > running_max, feature, chosen)
                running_max = tl.maximum(running_max, score)
            member = tl.min(tl.where(same & (position > member), position, B), axis=0)
        if MODE == "weighted":
            chosen = chosen / running_sum
        if MODE != "serial":
            prototype = blend(prototype, chosen, momentum)
        tl.store(at, prototype.to(memory_ptr.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=["C"])
def update_kernel(
    memory_ptr,  # these are the arguments of `update_prototype`
    x_ptr,
    labels_ptr,
    scores_ptr,
    B,
    C,
    D,
    momentum,
    temperature,
    MODE: tl.constexpr,
    BB: tl.constexpr,
    BD: tl.constexpr,
):
    """One program a sample."""
    first = tl.program_id(0)
    update_prototype(
        memory_ptr, x_ptr, labels_ptr, scores_ptr, first, B, C, D, momentum, temperature, MODE, False, BB, BD
    )


def blocks(B: int, D: int) -> dict[str, int]:
    """Whole batches and rows in one block, as the updates hold them."""
    return {
        "BB": triton.next_power_of_2(max(1, B)),
        "BD": triton.next_power_of_2(D),
        "num_warps": 4 if B <= 1024 else 8,
    }


def memory_update(
    memory: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    momentum: float,
    mode: str,
    temperature: float | None,
    scores: torch.Tensor | None,
) -> None:
    """In place. One launch."""
    (B, D), C = x.shape, memory.shape[0]
    update_kernel[(B,)](
        memory_ptr=memory,
        x_ptr=x,
        labels_ptr=labels,
        scores_ptr=scores,
        B=B,
        C=C,
        D=D,
        momentum=momentum,
        temperature=1.0 if temperature is None else temperature,
        MODE=mode,
        **blocks(B, D),
    )
