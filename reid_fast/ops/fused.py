"""What the fused losses share: unit rows, the gradient through them, and the registration of an op.

A fused loss is an op `(x, ..., needs_grad) -> (loss, gradient of x)`: the gradient comes from the same pass
as the loss, and backward only scales it. Its first argument is the one that is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.library import CustomOpDef

P, R = ParamSpec("P"), TypeVar("R")


def kernels(name: str) -> ModuleType:
    """The Triton launchers of one op, imported only when a CUDA tensor needs them."""
    try:
        return import_module(f"reid_fast.kernels.{name}")
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{name} has no CUDA implementation without Triton: run `pip install 'triton>=3.2'`"
        ) from error


def without_autocast(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """For CPU implementations: under the caller's autocast their products would silently drop to bfloat16."""

    @wraps(implementation)
    def exact(*arguments: object) -> Any:
        with torch.autocast("cpu", enabled=False):
            return implementation(*arguments)

    return exact


def widen(x: Tensor) -> Tensor:
    """Float32, or float64 where the caller already pays for it."""
    return x if x.dtype == torch.float64 else x.float()


def unit_rows(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    """(x / max(‖x‖, 1e-12), that divisor [B, 1]), or (x, None)."""
    x = widen(x)
    if not normalize:
        return x, None
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
    return x / norm, norm


def pull_back(by_score: Tensor, memory: Tensor, unit: Tensor, norm: Tensor | None) -> Tensor:
    """∂loss/∂x [B, D] from ∂loss/∂(unit · memoryᵀ) [B, C]."""
    h = by_score @ memory
    if norm is None:
        return h
    return torch.addcmul(h, (h * unit).sum(1, keepdim=True), unit, value=-1).div_(norm)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function's products in their operands' type where the caller's autocast would lower them."""

    @wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        first = next(iter((*arguments, *options.values())))
        with torch.autocast(first.device.type, enabled=False):
            return function(*arguments, **options)

    return run


def register_cuda(op: CustomOpDef) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function of tensors the CUDA implementation of `op`.

    Triton launches on the current device, which need not be the first tensor's: here it is.
    """

    def register(launch: Callable[P, R]) -> Callable[P, R]:
        @wraps(launch)
        def run(first: Tensor, *arguments: Any) -> R:
            with torch.cuda.device(first.device):
                return launch(first, *arguments)

        op.register_kernel("cuda")(run)
        return launch

    return register


def wants_grad(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def register_loss(op: CustomOpDef, launch: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Give a fused loss its fake, its autograd and its CUDA implementation."""

    def keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.dtype, ctx.others = inputs[0].dtype, len(inputs) - 1

    def backward(ctx: torch.autograd.function.FunctionCtx, by_loss: Tensor, _: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return (by_loss * gradient).to(ctx.dtype), *[None] * ctx.others

    op.register_fake(fake_loss)
    op.register_autograd(backward, setup_context=keep)
    register_cuda(op)(launch)


def fake_loss(x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    needs_grad = rest[-1]
    return x.new_empty((), dtype=dtype), x.new_empty(x.shape if needs_grad else (0,), dtype=dtype)


class Attach(torch.autograd.Function):
    """`loss`, with `gradient` to x: torch.library gives an op that changes an argument no autograd."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = x.dtype
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, by_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (by_loss * gradient).to(ctx.dtype), None, None
