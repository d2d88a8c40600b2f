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


def check_shapes(shapes: str, *tensors: Tensor | None) -> None:
    """Refuse tensors whose shapes disagree. Shapes alone are read, so no device is waited for.

    Args:
        shapes: the name and the sizes of each, such as "x B D, memory C D, spans B 2"; a scalar has no size.
        tensors: those tensors; None is passed over.
    """
    sizes = {digit: int(digit) for digit in "1234"}
    for part, tensor in zip(shapes.split(", "), tensors, strict=True):
        if tensor is None:
            continue
        name, *letters = part.split()
        known = [sizes.get(letter, size) for letter, size in zip(letters, tensor.shape, strict=False)]
        if tensor.ndim != len(letters) or list(tensor.shape) != known:
            raise ValueError(f"{name} must be [{', '.join(letters)}], here {known}, not {list(tensor.shape)}")
        sizes |= zip(letters, known, strict=True)


def check_int64(**tensors: Tensor | None) -> None:
    """Refuse numbers of another type: the CPU cannot look up by them, and a kernel would read them as they lie."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, not {tensor.dtype}")


def check_rows(what: str, numbers: Tensor, rows: int) -> None:
    """Refuse, on the CPU, a number that is neither one of `rows` rows nor -1, before anything is written."""
    wrong = (numbers < -1) | (numbers >= rows)
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise ValueError(f"{what} {int(numbers[place])} of row {place} is not in [0, {rows}); -1 takes no part")


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


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function's products in their operands' type where the caller's autocast would lower them."""

    @wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        first: Any = next(iter((*arguments, *options.values())))
        with torch.autocast(first.device.type, enabled=False):
            return function(*arguments, **options)

    return run


def rows_at_once(classes: int) -> int:
    """Of how many rows the CPU holds the logits against so many classes at once."""
    return max(1, _LOGITS // max(1, classes))


def contrast_in_slices(
    of_rows: Callable[[Tensor, slice | Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    memory: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    temperature: float,
    normalize: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss Σ_i w_i ℓ_i and its gradient by x, with the logits [B, C] held for some rows at a time.

    Args:
        of_rows: (logits [n, C], which it may overwrite; their rows of the batch) -> (ℓ [n], ∂ℓ/∂logits [n, C]).
        x, memory, labels, weights, temperature, normalize: as in `cluster_nce`.
        needs_grad: whether the gradient is wanted.

    Returns:
        The loss and the gradient, [B, D], or [0] where none is wanted.
    """
    unit, norm = normalized(x, normalize)
    memory = memory.to(unit.dtype)
    taking = (labels != -1).nonzero()[:, 0]  # part
    weights = unit.new_full((len(x),), 1 / max(1, len(taking))) if weights is None else weights.to(unit.dtype)
    loss, gradient = unit.new_zeros(()), torch.zeros_like(unit if needs_grad else unit[:0, 0])
    step = rows_at_once(len(memory))
    for start in range(0, len(taking), step):
        rows = slice(start, start + step) if len(taking) == len(x) else taking[start : start + step]
        losses, by_logits = of_rows((unit[rows] @ memory.T).div_(temperature), rows)
        loss += losses @ weights[rows]
        if needs_grad:
            by_product = by_logits.mul_((weights[rows] / temperature)[:, None])
            gradient[rows] = pull_back(by_product, memory, unit[rows], None if norm is None else norm[rows])
    return loss, gradient


def total(losses: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Σ_i w_i ℓ_i over the rows whose label is not -1, differentiable; w is 1/(their number) by default."""
    part = labels != -1
    scale = 1 / part.sum().clamp(min=1) if weights is None else weights.to(losses.dtype)
    return torch.where(part, losses * scale, 0).sum()
