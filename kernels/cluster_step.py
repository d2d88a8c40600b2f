"""The last launch of a fused Cluster Contrast step: gradients, the sum of the losses, and the memory update.

The three do not touch one another's data: `finish_row` reads no memory, and all scores are two launches back.
"""

import torch
import triton
import triton.language as tl

from reid_fast.kernels import cluster_nce, tiles
from reid_fast.kernels.cluster_nce import finish_row, sum_losses
from reid_fast.kernels.memory_update import update_row


@triton.jit(do_not_specialize=["parts"])
def step_kernel(
    memory, x, labels, scores, losses, factors, pulled, loss, gradient, B, D, parts, momentum, temperature,
    MODE: tl.constexpr, NORMALIZE: tl.constexpr, GRAD: tl.constexpr, BB: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < B:
        update_row(memory, x, labels, scores, program, B, D, momentum, temperature, MODE, NORMALIZE, BB, BD)
    elif program < 2 * B:
        finish_row(x, factors, pulled, gradient, program - B, B, D, parts, BD, NORMALIZE, GRAD)
    else:
        sum_losses(losses, loss, B, BB)


def step(
    x: torch.Tensor, memory: torch.Tensor, labels: torch.Tensor, temperature: float, momentum: float, mode: str,
    update_temperature: float | None = None, scores: torch.Tensor | None = None, *, normalize: bool = True,
    spans: torch.Tensor | None = None, weights: torch.Tensor | None = None, needs_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(loss, gradient [B, D] or [0]) in float32; contiguous `memory` changes in place. Three launches."""
    x, labels = x.contiguous(), labels.contiguous()
    B, D = x.shape
    rows = cluster_nce.score(x, memory, labels, temperature, normalize, spans, weights, None, 0.0, 0.0, needs_grad)
    loss, gradient = tiles.empty(x), tiles.empty(x, B, D) if needs_grad else tiles.empty(x, 0)
    step_kernel[(2 * B + 1,)](
        memory, x, labels, scores, *rows, loss, gradient, B, D, len(rows.pulled) if needs_grad else 0,
        momentum, update_temperature or 1.0, MODE=mode, NORMALIZE=normalize, GRAD=needs_grad,
        BB=triton.next_power_of_2(B), BD=triton.next_power_of_2(D), num_warps=4 if B <= 1024 else 8,
    )  # fmt: skip
    return loss, gradient
