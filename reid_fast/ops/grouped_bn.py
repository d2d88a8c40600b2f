"""BatchNorm in training, over groups of images (Goyal et al., arXiv 1706.02677: statistics of each worker's images)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast.ops._numerics import widen
from reid_fast.ops._registration import register

PerDomain = Tensor | Sequence[Tensor]


class Norms(NamedTuple):
    """Weights, biases and running statistics: [C], one for each domain."""

    weight: list[Tensor]
    bias: list[Tensor]
    running_mean: list[Tensor]
    running_var: list[Tensor]


def grouped_bn_ref(
    x: Tensor,
    weight: PerDomain,
    bias: PerDomain,
    running_mean: PerDomain,
    running_var: PerDomain,
    group: int,
    momentum: float,
    eps: float,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`grouped_bn` in plain PyTorch, differentiable: the definition, and what runs on the CPU."""
    norms = list(zip(*map(_listed, (weight, bias, running_mean, running_var)), strict=True))
    parts = []
    # One chunk would be a view, whose gradient is copied.
    for images, (w, b, mean, var) in zip(x.chunk(len(norms)) if len(norms) > 1 else (x,), norms, strict=True):
        first, *others = _groups(images, group)
        parts.append(F.batch_norm(first, mean, var, w, b, True, momentum, eps))
        parts += [F.batch_norm(part, None, None, w, b, True, momentum, eps) for part in others]
    return add_relu(parts[0] if len(parts) == 1 else torch.cat(parts), residual, relu)


def add_relu(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """y + residual, behind a ReLU where asked for, in the memory of y."""
    if residual is not None:
        y = y.add_(residual)
    return F.relu_(y) if relu else y


def grouped_bn(
    x: Tensor,
    weight: PerDomain,
    bias: PerDomain,
    running_mean: PerDomain,
    running_var: PerDomain,
    group: int,
    momentum: float,
    eps: float,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """BatchNorm in training whose statistics run over `group` contiguous images at a time.

    Each channel of each group is normalised by the group's own mean and biased variance; the running statistics move
    towards those of the first group, as on the first of several GPUs. Then `residual` is added and negative values
    become 0, where asked for. Instead of [C] tensors, there may be sequences of them, one for each equal part of the
    batch (a source's half and a target's). On CUDA two launches a domain in either direction, no copy of groups,
    float32 sums that two runs take in the same order; on the CPU PyTorch's own.

    Args:
        x: [B, C] or [B, C, ...] of any float type (on CUDA at most 32 bits); channels_last is read in place on CUDA,
            other formats are copied.
        weight, bias: [C], one for each domain, any float type.
        running_mean, running_var: [C], contiguous, one for each domain; changed in place.
        group: images of a group; 0, or at least a domain's images: all of them. The last group may be shorter.
        momentum: the share of the new statistics in the running ones; of the variance, the unbiased.
        eps: added to the variance.
        residual: [B, C, ...], of x's type.
        relu: replace negative values by 0.

    Returns:
        [B, C, ...] of x's type, on CUDA in memory format channels_last.

    Raises:
        ValueError: a group with one value a channel, tensors that are not [C], one for each domain, a residual of
            another shape or type, a batch that the domains do
            not divide, or running statistics that are not contiguous.
    """
    norms = Norms(_listed(weight), _listed(bias), _listed(running_mean), _listed(running_var))
    _check(x, norms, group, residual)
    if x.device.type == "cpu" or not x.numel():
        return grouped_bn_ref(x, *norms, group, momentum, eps, residual=residual, relu=relu)
    return fused(x, norms, group, momentum, eps, residual, relu)


def fused(
    x: Tensor, norms: Norms, group: int, momentum: float, eps: float, residual: Tensor | None, relu: bool
) -> Tensor:
    """`grouped_bn` by the op."""
    options = (norms.running_mean, norms.running_var, group, momentum, eps, relu)
    return _GroupedBatchNorm.apply(x, residual, options, *norms.weight, *norms.bias)


class _GroupedBatchNorm(torch.autograd.Function):
    """The gradient: torch.library gives an op that changes an argument none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, options: tuple[Any, ...], *affine: Tensor) -> Tensor:
        running_mean, running_var, group, momentum, eps, relu = options
        weight, bias = _two(affine)
        y, mean, var = _op(x, residual, weight, bias, running_mean, running_var, group, momentum, eps, relu)
        # Behind a residual the ReLU's zeros do not follow from x; the next layer keeps y anyway.
        ctx.save_for_backward(x, y if relu and residual is not None else None, mean, var, *affine)
        ctx.options = group, eps, relu
        ctx.passes_on = residual is not None and not relu
        return y

    @staticmethod
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mean, var, *affine = ctx.saved_tensors
        weight, bias = _two(affine)
        by_x, by_residual, by_weight, by_bias = _backward(by_y, x, y, weight, bias, mean, var, *ctx.options)
        by_affine = [by.to(tensor.dtype) for by, tensor in zip((*by_weight, *by_bias), affine, strict=True)]
        return by_x, by_y if ctx.passes_on else by_residual if y is not None else None, None, *by_affine


def _listed(tensors: PerDomain) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _two(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return list(tensors[: len(tensors) // 2]), list(tensors[len(tensors) // 2 :])


def _groups(images: Tensor, group: int) -> tuple[Tensor, ...]:
    return images.split(group) if 0 < group < len(images) else (images,)


def _check(x: Tensor, norms: Norms, group: int, residual: Tensor | None) -> None:
    domains = len(norms.weight)
    if not domains or any(len(tensors) != domains for tensors in norms):
        raise ValueError(f"weights, biases and running statistics of {[len(tensors) for tensors in norms]} domains")
    for name, tensors in norms._asdict().items():
        for tensor in tensors:
            check_channels(x, **{name: tensor})
    if len(x) % domains:
        raise ValueError(f"{len(x)} images cannot be halved among {domains} domains")
    check_residual(x, residual)
    if not all(running.is_contiguous() for running in (*norms.running_mean, *norms.running_var)):
        raise ValueError("running statistics must be contiguous: they are updated in place")
    images = len(x) // domains
    last = images % group or group if 0 < group < images else images
    if last * x[:1, :1].numel() == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {[last, *x.shape[1:]]}")


def check_channels(x: Tensor, **tensors: Tensor) -> None:
    """Refuse what is not [C] beside x [B, C, ...]."""
    for name, tensor in tensors.items():
        if x.ndim < 2 or tensor.shape != x.shape[1:2]:
            raise ValueError(f"{name} must be [C] beside x [B, C, ...], not {list(tensor.shape)} and {list(x.shape)}")


def check_residual(x: Tensor, residual: Tensor | None) -> None:
    """Refuse a residual that is not as x is."""
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(f"the residual must be {x.dtype} {list(x.shape)}, not {residual.dtype} {list(residual.shape)}")


def _cpu(
    x: Tensor,
    residual: Tensor | None,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    running_mean: Sequence[Tensor],
    running_var: Sequence[Tensor],
    group: int,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op on the CPU: y, and the mean and biased variance of each group, [groups, C]."""
    y = grouped_bn_ref(x, weight, bias, running_mean, running_var, group, momentum, eps, residual=residual, relu=relu)
    moments = [torch.var_mean(part, (0, 1), correction=0) for part in _parts(x, len(weight), group)]
    return channels_last(y), torch.stack([mean for _, mean in moments]), torch.stack([var for var, _ in moments])


def _backward_cpu(
    by_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    mean: Tensor,
    var: Tensor,
    group: int,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of the residual ([0] without y), and of weights and biases, [domains, C].

    y is given where a ReLU stands behind a residual; where there is none, the ReLU's zeros follow from x.
    """
    domains = len(weight)
    by_residual = None if y is None else by_y.masked_fill(y <= 0, 0)
    by_x, by_weight, by_bias = [], mean.new_zeros(domains, x.shape[1]), mean.new_zeros(domains, x.shape[1])
    gradients = _parts(by_y if by_residual is None else by_residual, domains, group)
    for i, (part, by) in enumerate(zip(_parts(x, domains, group), gradients, strict=True)):
        domain = i * domains // len(mean)
        rstd = (var[i] + eps).rsqrt()
        unit = (part - mean[i]) * rstd
        if relu and y is None:
            by = by.masked_fill(unit * weight[domain] + bias[domain] <= 0, 0)
        product, total = (by * unit).sum((0, 1)), by.sum((0, 1))
        by_x.append(weight[domain] * rstd * (by - (total + unit * product) / part[..., 0].numel()))
        by_weight[domain] += product
        by_bias[domain] += total
    back = torch.cat(by_x).to(x.dtype).view(x.movedim(1, -1).shape).movedim(-1, 1)
    return back, x.new_empty(0) if by_residual is None else channels_last(by_residual), by_weight, by_bias


def _parts(x: Tensor, domains: int, group: int) -> list[Tensor]:
    """The groups of all domains as [images, pixels, C], at least float32."""
    rows = widen(x).movedim(1, -1).reshape(len(x), -1, x.shape[1])
    return [part for images in rows.chunk(domains) for part in _groups(images, group)]


def channels_last(x: Tensor) -> Tensor:
    """x in the memory format of the results: channels innermost."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def empty_channels_last(x: Tensor) -> Tensor:
    return x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1)


def _fake(x: Tensor, residual: Tensor | None, weight: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    images, group, dtype = len(x) // len(weight), rest[3], widen(x).dtype
    groups = len(weight) * (-(-images // group) if 0 < group < images else 1)
    mean, var = (x.new_empty((groups, x.shape[1]), dtype=dtype) for _ in range(2))
    return empty_channels_last(x), mean, var


def _backward_fake(
    by_y: Tensor, x: Tensor, y: Tensor | None, weight: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_weight, by_bias = (x.new_empty((len(weight), x.shape[1]), dtype=widen(x).dtype) for _ in range(2))
    return empty_channels_last(x), x.new_empty(0) if y is None else empty_channels_last(x), by_weight, by_bias


_op = register(
    __name__,
    "grouped_bn(Tensor x, Tensor? residual, Tensor[] weight, Tensor[] bias, Tensor(a!)[] running_mean, "
    "Tensor(b!)[] running_var, int group, float momentum, float eps, bool relu) -> (Tensor, Tensor, Tensor)",
    _cpu,
    _fake,
    strided=True,
)
_backward = register(
    __name__,
    "grouped_bn_backward(Tensor by_y, Tensor x, Tensor? y, Tensor[] weight, Tensor[] bias, Tensor mean, Tensor var, "
    "int group, float eps, bool relu) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_cpu,
    _backward_fake,
    strided=True,
)
