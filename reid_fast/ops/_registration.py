"""An op from one schema string: CPU and CUDA implementation, fake and autograd.

All layers of an op take the schema's arguments, by its names and in its order. The CPU implementation is handed over;
the CUDA one is the launcher of the op's name in the file of kernels of the same name, found when a CUDA tensor asks.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef, custom_op

from reid_fast.ops._numerics import without_autocast


def register(
    module: str, schema: str, cpu: Callable[..., Any], fake: Callable[..., Any], *, strided: bool = False
) -> CustomOpDef:
    """The op `reid_fast::name`.

    Args:
        module: `__name__` of the op's own; its launcher lies in `reid_fast.kernels`, in the module of the same name.
        schema: "name(Tensor x, ...) -> ...", without defaults; Tensor(a!) and Tensor(a!)[] are changed in place, and
            refused unless they are contiguous. What shares memory with them is read as it was before.
        cpu: the implementation; the caller's autocast does not reach into it.
        fake: the shapes and types of the results, from the same arguments.
        strided: whether the launcher takes tensors as they lie; elsewhere they are made contiguous for it.
    """
    start = schema.index("(")
    name, signature = schema[:start], schema[start:]
    arguments = signature[1 : signature.index(") ->")].split(", ")
    changed = {place: argument.split()[1] for place, argument in enumerate(arguments) if "!" in argument}
    names = list(changed.values())
    op = custom_op(
        f"reid_fast::{name}",
        _in_place(without_autocast(cpu), changed),
        mutates_args=names,
        device_types="cpu",
        schema=signature,
    )
    op.register_kernel("cuda")(_in_place(launcher(module.rpartition(".")[2], name, strided), changed))
    op.register_fake(fake)
    return op


def _in_place(function: Callable[..., Any], changed: dict[int, str]) -> Callable[..., Any]:
    """Refuse, before anything is written, what cannot be changed in place: the arguments at these places."""

    def run(*arguments: Any) -> Any:
        for place, name in changed.items():
            given = arguments[place]
            if not all(tensor.is_contiguous() for tensor in _tensors(given)):
                raise ValueError(f"{name} must be contiguous: it is updated in place")
        written = {tensor.untyped_storage().data_ptr() for place in changed for tensor in _tensors(arguments[place])}
        return function(*(a if place in changed else _apart(a, written) for place, a in enumerate(arguments)))

    return run


def _tensors(given: Tensor | list[Tensor]) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else given


def _apart(given: Any, written: set[int]) -> Any:
    """A copy of a tensor that lies in memory which is written: programs of a launch run in any order."""
    return given.clone() if isinstance(given, Tensor) and given.untyped_storage().data_ptr() in written else given


def launcher(file: str, name: str, strided: bool = False) -> Callable[..., Any]:
    """The function `name` of a file of kernels, imported at the first call.

    Most kernels know no strides: their tensors are contiguous here. And Triton launches on the current device, which
    need not be the first tensor's: here it is.
    """

    def launch(*arguments: Any) -> Any:
        try:
            module = import_module(f"reid_fast.kernels.{file}")
        except ModuleNotFoundError as error:
            raise RuntimeError(
                f"{name} has no CUDA implementation without Triton: run `pip install 'triton>=3.2'`"
            ) from error
        with torch.cuda.device(arguments[0].device):
            if not strided:
                arguments = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in arguments)
            return getattr(module, name)(*arguments)

    return launch


def register_loss(module: str, schema: str, cpu: Callable[..., tuple[Tensor, Tensor]]) -> CustomOpDef:
    """An op (x, ..., needs_grad) -> (loss, gradient of x): both come from one pass, and backward scales the second."""
    op = register(module, schema, cpu, fake_loss)
    op.register_autograd(_backward, setup_context=_keep)
    return op


def needs_grad(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def fake_loss(x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    """The results of a loss: its last argument is whether a gradient is wanted."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((), dtype=dtype), x.new_empty(x.shape if rest[-1] else (0,), dtype=dtype)


def fake_nothing(*_: object) -> None:
    """The result of an op that only changes its arguments."""


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.dtype, ctx.others = inputs[0].dtype, len(inputs) - 1


def _backward(ctx: Any, by_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return (by_loss * gradient).to(ctx.dtype), *[None] * ctx.others


class Attach(torch.autograd.Function):
    """`loss`, with `gradient` to x: torch.library gives an op that changes an argument no autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = x.dtype
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (by_loss * gradient).to(ctx.dtype), None, None
