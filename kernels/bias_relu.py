"""What follows a convolution that BatchNorm is folded into: bias, residual and ReLU in one pass."""

import torch
import triton
import triton.language as tl

from reid_fast.kernels.grouped_bn import block, cleared, place, rows_of, shaped


@triton.jit
def bias_relu_kernel(
    x_ptr,  # [R, C]
    bias_ptr,  # [C]
    residual_ptr,  # [R, C], with RESIDUAL
    y_ptr,  # [R, C] out
    R,
    C,
    RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """One tile."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    at, inside = place(tl.program_id(0) * BR, R, c, C, BR)
    y = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        y += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        y = cleared(y, y)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def bias_relu(x: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None, relu: bool) -> torch.Tensor:
    """y in memory format channels_last. One launch."""
    rows = rows_of(x).flatten(0, 1)
    y = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    (R, C), sizes = rows.shape, block(rows.shape[1])
    bias_relu_kernel[(triton.cdiv(R, sizes["BR"]), triton.cdiv(C, sizes["BC"]))](
        x_ptr=rows,
        bias_ptr=bias.contiguous(),
        residual_ptr=None if residual is None else rows_of(residual),
        y_ptr=y,
        R=R,
        C=C,
        RELU=relu,
        RESIDUAL=residual is not None,
        **sizes,
    )
    return shaped(y, x)
