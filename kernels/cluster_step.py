"""The last launch of a fused Cluster Contrast step: the memory update, and the loss's sum beside it."""

import torch
import triton
import triton.language as tl

from reid_fast.kernels.memory_update import update_row


@triton.jit
def step_kernel(
    memory, x, labels, scores, losses, loss, B, D, momentum, temperature,
    MODE: tl.constexpr, NORMALIZE: tl.constexpr, BB: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    if first < B:
        update_row(memory, x, labels, scores, first, B, D, momentum, temperature, MODE, NORMALIZE, BB, BD)
    else:
        position = tl.arange(0, BB)
        tl.store(loss, tl.sum(tl.load(losses + position, mask=position < B, other=0.0), axis=0))


def update_and_sum(
    memory: torch.Tensor, x: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor, momentum: float, mode:
    str,
    temperature: float | None, scores: torch.Tensor | None, normalize: bool,
) -> torch.Tensor:  # fmt: skip
    """Updates `memory` in place and returns the sum of `losses`. One launch."""
    B, D = x.shape
    loss = torch.empty((), dtype=torch.float32, device=x.device)
    step_kernel[(B + 1,)](
        memory, x.contiguous(), labels.contiguous(), scores, losses, loss, B, D, momentum, temperature or 1.0,
        MODE=mode, NORMALIZE=normalize, BB=triton.next_power_of_2(B), BD=triton.next_power_of_2(D),
        num_warps=4,
    )  # fmt: skip
    return loss
