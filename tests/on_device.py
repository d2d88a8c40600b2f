"""A CUDA device that is not there: tensors that say they lie on it and compute on the CPU, and a list of what waits.

All operations of such tensors pass through `__torch_dispatch__`, those of autograd and of the optimiser too. What makes
the host wait for a GPU, and what is copied to it, is listed with the line of reid_fast that asks for it. The ops of
reid_fast compute as on the CPU: their launchers are not what is judged here.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
ROOT = str(Path(__file__).parents[1] / "reid_fast")
aten = torch.ops.aten

# What torch's implementation for CUDA cannot return from before it knows values.
READS = {
    aten._local_scalar_dense: "item",
    aten.bincount: "bincount",
    aten.equal: "equal",
    aten.masked_select: "masked_select",
    aten.multinomial: "multinomial",
    aten.nonzero: "nonzero",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
}
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


class Event(NamedTuple):
    what: str
    function: str  # of reid_fast
    line: str
    waits: bool

    def __str__(self) -> str:
        return f"{self.what} in {self.function}"


class OnDevice(Tensor):
    """A tensor that says it lies on CUDA; `plain` is the same memory on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDevice:
        copy = on_device(self.plain.clone().requires_grad_(self.requires_grad))
        copy._is_param = getattr(self, "_is_param", False)  # what makes it an `nn.Parameter`
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = tree_flatten((args, kwargs))[0]
        inputs = [value for value in arguments if isinstance(value, Tensor)]
        if Device.entered is not None:
            Device.entered.operations.append(f"{func} {list(map(_seen_by_the_host, arguments))}")
        if (reason := _wait(func.overloadpacket, args, kwargs, inputs)) is not None:
            _note(reason)
        given = {id(value.plain): value for value in inputs if isinstance(value, OnDevice)}
        args, kwargs = tree_map_only(OnDevice, lambda value: value.plain, (args, kwargs))
        result = func(*args, **kwargs)
        if func.overloadpacket is aten.copy_ and id(args[0]) not in given:
            return result  # to a tensor of the host
        return tree_map_only(Tensor, lambda value: given[id(value)] if id(value) in given else on_device(value), result)


def on_device(plain: Tensor) -> Tensor:
    """The same values, as if they lay on CUDA."""
    tensor = Tensor._make_subclass(OnDevice, plain, plain.requires_grad)
    tensor.plain = plain.detach()
    return tensor


def _wait(op: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> str | None:
    """Why the host would wait in an operation with a tensor of the device; None if it does not."""
    if op in READS:
        return READS[op]
    if op is aten.repeat_interleave and kwargs.get("output_size") is None:
        return "repeat_interleave"
    if op is aten.segment_reduce and not kwargs.get("unsafe", False):
        return "segment_reduce"
    if op in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1]):
        fills = op is not aten.index and args[2].numel() == 1  # which is `masked_fill`
        return None if fills else "indexing by a mask"
    host = [value for value in inputs if not isinstance(value, OnDevice)]
    if op is aten.copy_:
        return None if all(_queues(value, args[2:]) for value in host) else "a copy"
    # Elsewhere a scalar of the host is a number among the arguments, and a tensor is an error or a copy.
    return f"a host tensor in {op}" if any(value.ndim for value in host) else None


def _seen_by_the_host(argument: object) -> object:
    return (*argument.shape, argument.dtype) if isinstance(argument, Tensor) else argument


def _queues(host: Tensor, non_blocking: Any) -> bool:
    return getattr(host, "pinned", False) and bool(non_blocking and non_blocking[0])


class Device(TorchFunctionMode):
    """While it is entered a CUDA device is there.

    Attributes:
        events: what waits for it or is copied to it.
        operations: what is computed on it, with everything that the host decides: numbers, shapes and types.
    """

    entered: Device | None = None

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.operations: list[str] = []

    @property
    def waits(self) -> list[Event]:
        return [event for event in self.events if event.waits]

    def __enter__(self) -> Device:
        Device.entered = self
        # Or `Module.to` would put the values of the new tensor into the old one.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        Device.entered = None
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        super().__exit__(*error)

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        events, self.events = self.events, []
        try:
            yield
        finally:
            self.events = events

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func is Tensor.pin_memory:
            pinned = first.clone()
            pinned.pinned = True
            return pinned
        if isinstance(first, OnDevice):
            if func is Tensor.numpy:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if func in (Tensor.tolist, Tensor.cpu) or (func is Tensor.to and _names("cpu", args, kwargs)):
                _note("tolist" if func is Tensor.tolist else "a copy to the host")
                return first.plain.tolist() if func is Tensor.tolist else first.plain.clone()
            if _names("cpu", args, kwargs):  # a factory, by the example of a tensor of the device
                made = func(first.plain, *args[1:], **{key: kwargs[key] for key in kwargs if key != "pin_memory"})
                made.pinned = kwargs.get("pin_memory", False)
                return made
            if func is Tensor.new_tensor:
                _note("a list copied")
        if not _names("cuda", args, kwargs) or func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **kwargs)
        args, kwargs = tree_map(lambda value: CPU if _is("cuda", value) else value, (args, kwargs))
        if isinstance(first, OnDevice):
            return func(*args, **kwargs)  # it is there already
        if func is Tensor.to:
            _note("a copy", waits=not _queues(first, (kwargs.get("non_blocking"),)))
        if func in (torch.tensor, torch.as_tensor):
            _note("a list copied")
        return on_device(func(*args, **kwargs))


def _names(kind: str, args: Any, kwargs: Any) -> bool:
    return any(_is(kind, value) for value in (*args, *kwargs.values()))


def _is(kind: str, value: object) -> bool:
    return isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == kind


def _note(what: str, waits: bool = True) -> None:
    if Device.entered is not None:
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(ROOT)]
        name, line = (frames[-1].name, f"{frames[-1].filename}:{frames[-1].lineno}") if frames else ("no function", "")
        Device.entered.events.append(Event(what, name, line, waits))
