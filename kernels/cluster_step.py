"""The last launch of a fused Cluster Contrast step: gradients, the sum of the losses, and the memory update.

The three do not touch one another's data: `finish_row` reads no memory, and all logits are two launches back.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels import one_target, tiles
from reid_fast.kernels.cluster_nce import finish_row, sum_losses
from reid_fast.kernels.memory_update import blocks, update_prototype


@triton.jit(do_not_specialize=["parts", "C"])
def step_kernel(
    memory_ptr,  # from here the arguments of `update_prototype`
    x_ptr,
    labels_ptr,
    scores_ptr,
    momentum,
    temperature,
    losses_ptr,  # from here those of `finish_row` and `sum_losses`
    factors_ptr,
    acc_ptr,
    loss_ptr,
    gradient_ptr,
    parts,
    B,
    C,
    D,
    MODE: tl.constexpr,
    GRAD: tl.constexpr,
    BB: tl.constexpr,
    BD: tl.constexpr,
):
    """B programs that update, B that finish a gradient, one that sums the losses."""
    program = tl.program_id(0)
    if program < B:
        update_prototype(
            memory_ptr, x_ptr, labels_ptr, scores_ptr, program, B, C, D, momentum, temperature, MODE, True, BB, BD
        )
    elif program < 2 * B:
        finish_row(x_ptr, factors_ptr, acc_ptr, gradient_ptr, program - B, B, D, parts, BD, True, GRAD)
    else:
        sum_losses(losses_ptr, loss_ptr, B, BB)


def cluster_step(
    x: torch.Tensor,
    memory: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    momentum: float,
    mode: str,
    update_temperature: float | None,
    scores: torch.Tensor | None,
    needs_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gradient [B, D] or [0]) in float32; `memory` changes in place. Three launches."""
    (B, D), C = x.shape, memory.shape[0]
    partial = one_target.stream(x, memory, labels, temperature, True, None, None, None, needs_grad)
    loss, gradient = tiles.results(x, needs_grad)
    step_kernel[(2 * B + 1,)](
        memory_ptr=memory,
        x_ptr=x,
        labels_ptr=labels,
        scores_ptr=scores,
        momentum=momentum,
        temperature=1.0 if update_temperature is None else update_temperature,
        losses_ptr=partial.losses,
        factors_ptr=partial.factors,
        acc_ptr=partial.acc,
        loss_ptr=loss,
        gradient_ptr=gradient,
        parts=partial.parts,
        B=B,
        C=C,
        D=D,
        MODE=mode,
        GRAD=needs_grad,
        **blocks(B, D),
    )
    return loss, gradient
