"""Bias, residual and ReLU behind a convolution, for features without gradients."""

from __future__ import annotations

from torch import Tensor

from reid_fast.ops._registration import register
from reid_fast.ops.grouped_bn import add_relu, channels_last, check_channels, check_residual, empty_channels_last


def bias_relu(x: Tensor, bias: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """x + bias (+ residual), behind a ReLU where asked for; one pass on CUDA, where cuDNN would add a bias in its own.

    Args:
        x: [B, C, ...] of any float type, without gradient; any memory format, channels_last is read in place.
        bias: [C], added in float32.
        residual: [B, C, ...] of x's type.
        relu: replace negative values by 0.

    Returns:
        [B, C, ...] of x's type in memory format channels_last.

    Raises:
        ValueError: a bias or a residual of another shape, or a residual of another type.
    """
    check_channels(x, bias=bias)
    check_residual(x, residual)
    return _op(x, bias, residual, relu)


def _cpu(x: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    wide = channels_last(x) + bias.view(-1, *[1] * (x.ndim - 2))
    return add_relu(wide, residual, relu).to(x.dtype)


def _fake(x: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    return empty_channels_last(x)


_op = register(
    __name__, "bias_relu(Tensor x, Tensor bias, Tensor? residual, bool relu) -> Tensor", _cpu, _fake, strided=True
)
