"""What the losses share on the CPU: L2-normalised rows and the gradient through them, types, checks.

Gradients are derived by hand even where that wins less than a third: `torch.func` inside an op (torch 2.13) fails under
every TorchDispatchMode, so under FLOP counters, `opcheck` and tracing by AOTAutograd.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_LOGITS = 1 << 22  # logits that the CPU holds at once


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")


def widen(x: Tensor) -> Tensor:
    """Float32, or float64 where the caller already pays for it."""
    return x if x.dtype == torch.float64 else x.float()


def normalized(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """(x / max(‖x‖, 1e-12), that divisor [B, 1]), or (x, None)."""
    x = widen(x)
    if not normalize:
        return x, None
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
    return x / norm, norm


def pull_back(by_product: Tensor, memory: Tensor, unit: Tensor, norm: Tensor | None) -> Tensor:
    """∂loss/∂x [B, D] from ∂loss/∂(unit · memoryᵀ) [B, C], with unit and norm as `normalized` gave them."""
    h = by_product @ memory
    if norm is None:
        return h
    return torch.addcmul(h, (h * unit).sum(1, keepdim=True), unit, value=-1).div_(norm)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function's products in their operands' type where the caller's autocast would lower them."""

    @wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        first: Any = next(iter((*arguments, *options.values())))
        with torch.autocast(first.device.type, enabled=False):
            return function(*arguments, **options)

    return run


def contrast_in_slices(
    of_rows: Callable[[Tensor, slice], tuple[Tensor, Tensor]],
    x: Tensor,
    memory: Tensor,
    weights: Tensor | None,
    temperature: float,
    normalize: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss Σ_i w_i ℓ_i and its gradient by x, with the logits [B, C] held for some rows at a time.

    Args:
        of_rows: (logits [n, C], which it may overwrite; their rows of the batch) -> (ℓ [n], ∂ℓ/∂logits [n, C]).
        x, memory, weights, temperature, normalize: as in `cluster_nce`.
        needs_grad: whether the gradient is wanted.

    Returns:
        The loss and the gradient, [B, D], or [0] where none is wanted.
    """
    unit, norm = normalized(x, normalize)
    memory = memory.to(unit.dtype)
    weights = unit.new_full((len(x),), 1 / len(x)) if weights is None else weights.to(unit.dtype)
    loss, gradient = unit.new_zeros(()), torch.empty_like(unit if needs_grad else unit[:0, 0])
    step = max(1, _LOGITS // max(1, len(memory)))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        losses, by_logits = of_rows((unit[rows] @ memory.T).div_(temperature), rows)
        loss += losses @ weights[rows]
        if needs_grad:
            by_product = by_logits.mul_((weights[rows] / temperature)[:, None])
            gradient[rows] = pull_back(by_product, memory, unit[rows], None if norm is None else norm[rows])
    return loss, gradient
