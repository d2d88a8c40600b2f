"""Contrast against an instance memory, class by class (Ge et al., SpCL, NeurIPS 2020; focal: CACL, arXiv 2106.07846).

A class scores the mean similarity of its members, which is the similarity to the mean of its members: keeping
the class means turns the published B×N work into B×C. `hybrid_update` moves a member and its class's mean
together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reid_fast.ops import _numerics
from reid_fast.ops._registration import fake_nothing, needs_grad, register, register_loss
from reid_fast.ops.memory_update import check_momentum, memory_update_ref

_SORTED = 1 << 26  # values of the memory that `class_means` sorts at once
_CLASSES = 1 << 31  # more than a memory has
EPSILON = 1e-6  # the published loss adds it to the softmax's denominator and inside its logarithm


class ClassMeans(NamedTuple):
    """What `hybrid_nce` needs of the instance memory."""

    means: Tensor  # [C, D] float32, not normalised; zero where a class is empty
    counts: Tensor  # [C] int64 members


def class_means(memory: Tensor, memory_labels: Tensor, classes: int | None = None) -> ClassMeans:
    """Means and sizes of the classes of an instance memory; once an epoch, since running means drift by rounding.

    Args:
        memory: [N, D] rows.
        memory_labels: [N] int64 in [0, C), or -1 for rows without a class; classes may be empty.
        classes: C; without it the largest label is fetched from the device.

    Raises:
        TypeError: labels of another type.
        ValueError: shapes that disagree, or, on the CPU, a label out of range.
    """
    _numerics.check_shapes("memory N D, memory_labels N", memory, memory_labels)
    _numerics.check_int64(memory_labels=memory_labels)
    if memory_labels.device.type == "cpu":
        _numerics.check_rows("class", memory_labels, _CLASSES if classes is None else classes)
    counts = torch.bincount(memory_labels + 1, minlength=1 + (classes or 0))
    order = memory_labels.argsort(stable=True)
    means = memory.new_empty(len(counts) - 1, memory.shape[1], dtype=_numerics.widen(memory[:0]).dtype)
    step = max(1, _SORTED // max(1, len(memory)))  # sorted rows would take what the memory takes
    for columns, out in zip(memory.split(step, dim=1), means.split(step, dim=1), strict=True):
        rows = _numerics.widen(columns[order])
        sums = torch.segment_reduce(rows, "sum", lengths=counts, axis=0, initial=0, unsafe=True)
        torch.div(sums[1:], counts[1:].clamp(min=1)[:, None], out=out)
    return ClassMeans(means, counts[1:])


def labels_of(memory_labels: Tensor, index: Tensor) -> Tensor:
    """[B] the classes of rows `index`: -1 where the index is -1 or the row has none, -2 for an index out of range."""
    inside = (index >= 0) & (index < len(memory_labels))
    return torch.where(inside, memory_labels[index.where(inside, 0)], index.clamp(-2, -1).where(index < 0, -2))


def hybrid_nce_ref(
    x: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    index: Tensor,
    temperature: float,
    focal: float = 0.0,
    *,
    normalize: bool = True,
) -> Tensor:
    """`hybrid_nce` in plain PyTorch, over all N rows as published, differentiable: the definition.

    An index out of range makes the loss NaN, as on CUDA.
    """
    x = _numerics.normalized(x, normalize)[0]
    similarity = x @ memory.detach().to(x.dtype).T / temperature
    counts = torch.bincount(memory_labels + 1, minlength=1)
    scores = similarity.new_zeros(len(x), len(counts)).index_add(1, memory_labels + 1, similarity)
    exp = ((scores / counts.clamp(min=1)).exp() * (counts > 0))[:, 1:]
    p = exp / (exp.sum(1, keepdim=True) + EPSILON)
    labels = labels_of(memory_labels, index)
    p = p.gather(1, labels.clamp(min=0)[:, None])[:, 0].masked_fill(labels < -1, torch.nan)
    return _numerics.total(-((1 - p) ** focal * (p + EPSILON).log()), labels, None)


def hybrid_nce(
    x: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    index: Tensor,
    temperature: float,
    focal: float = 0.0,
    *,
    classes: ClassMeans | None = None,
    normalize: bool = True,
) -> Tensor:
    """The loss of SpCL's hybrid memory: a softmax over classes, each scored by the mean over its members.

    p_ic = e^{s_ic} / (Σ_c' e^{s_ic'} + 1e-6) over the classes with members, s_ic = mean over members j of
    x_i·V_j / τ; L = -(1/B) Σ_i (1 - p_i)^γ log(p_i + 1e-6) with p_i = p_i,label(i). The gradient flows to `x`
    alone, through the focal weight too. A feature with index -1, or whose row has no class, takes no part: B counts the
    others, its gradient is 0, and where none is left, so is the loss.

    Args:
        x: [B, D] features of any float type; L2-normalised here unless `normalize` is false.
        memory: [N, D] L2-normalised rows.
        memory_labels: [N] int64, the class of each row, or -1; classes may be empty.
        index: [B] int64, the row of each feature's own image, or -1.
        temperature: τ, positive.
        focal: γ: 0 for SpCL, 4 in CACL's code.
        classes: the running means of `memory` (see `class_means`, `hybrid_update`). Without them all of the
            memory is read, and on CUDA the number of classes is fetched from the device.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: a temperature that is not positive, shapes that disagree, or another index or class out of range.
            CUDA is not waited for to find the last: the loss is NaN there.
    """
    _numerics.check_temperature(temperature)
    _numerics.check_shapes("x B D, memory N D, memory_labels N, index B", x, memory, memory_labels, index)
    _numerics.check_int64(memory_labels=memory_labels, index=index)
    means, counts = class_means(memory, memory_labels) if classes is None else classes
    _numerics.check_shapes("x B D, means C D, counts C", x, means, counts)
    _numerics.check_int64(counts=counts)
    return _op(x, means, counts, memory_labels, index, temperature, focal, EPSILON, normalize, needs_grad(x))[0]


def hybrid_update(
    memory: Tensor, memory_labels: Tensor, classes: ClassMeans, x: Tensor, index: Tensor, momentum: float
) -> None:
    """`memory_update` (serial) of the rows `index`, in place, and of the class means by what their members moved.

    A sample with index -1, or whose row has no class, moves nothing.

    Args:
        memory: [N, D] contiguous L2-normalised rows.
        memory_labels: [N] int64, the class of each row, or -1.
        classes: the means to keep in step, contiguous, changed in place.
        x: [B, D] L2-normalised rows.
        index: [B] int64 rows of `memory`, or -1; repetitions are applied in batch order.
        momentum: the share of the old row that is kept.

    Raises:
        ValueError: a memory or means that are not contiguous, shapes that disagree, or another index or class out of
            range. CUDA is not waited for to find the last: such a sample moves nothing there.
    """
    shapes = "memory N D, means C D, counts C, memory_labels N, x B D, index B"
    _numerics.check_shapes(shapes, memory, *classes, memory_labels, x, index)
    _numerics.check_int64(counts=classes.counts, memory_labels=memory_labels, index=index)
    check_momentum(momentum)
    _update(memory, classes.means, classes.counts, memory_labels, x.detach(), index, momentum)


def _cpu(
    x: Tensor,
    means: Tensor,
    counts: Tensor,
    memory_labels: Tensor,
    index: Tensor,
    temperature: float,
    focal: float,
    epsilon: float,
    normalize: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    labels = _checked_labels(memory_labels, index, len(means))

    def of_rows(logits: Tensor, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        logits.masked_fill_(counts == 0, -torch.inf)
        top = logits.amax(1, keepdim=True)
        p = logits.sub_(top).exp_()
        p /= p.sum(1, keepdim=True) + epsilon * torch.exp(-top)
        own = p.gather(1, labels[rows, None])
        weight, log_p = (1 - own) ** focal, (own + epsilon).log()
        slope = own * weight / (own + epsilon)  # -p ∂ℓ/∂p
        if focal:
            slope -= own * focal * (1 - own) ** (focal - 1) * log_p
        by_logits = p.scatter_add_(1, labels[rows, None], -torch.ones_like(own)).mul_(slope)
        return -(weight * log_p)[:, 0], by_logits

    return _numerics.contrast_in_slices(of_rows, x, means, labels, None, temperature, normalize, needs_grad)


def _checked_labels(memory_labels: Tensor, index: Tensor, classes: int) -> Tensor:
    """`labels_of`, on the CPU, where what is out of range is an error."""
    _numerics.check_rows("index", index, len(memory_labels))
    labels = labels_of(memory_labels, index)
    _numerics.check_rows("class", labels, classes)
    return labels


_op = register_loss(
    __name__,
    "hybrid_nce(Tensor x, Tensor means, Tensor counts, Tensor memory_labels, Tensor index, float temperature, "
    "float focal, float epsilon, bool normalize, bool needs_grad) -> (Tensor, Tensor)",
    _cpu,
)


def _update_cpu(
    memory: Tensor, means: Tensor, counts: Tensor, memory_labels: Tensor, x: Tensor, index: Tensor, momentum: float
) -> None:
    labels = _checked_labels(memory_labels, index, len(means))
    index = index.where(labels != -1, -1)
    touched = index[index != -1].unique()
    old = _numerics.widen(memory[touched])
    memory_update_ref(memory, x, index, momentum)
    moved = (_numerics.widen(memory[touched]) - old).to(means.dtype) / counts[memory_labels[touched]][:, None]
    means.index_add_(0, memory_labels[touched], moved)


_update = register(
    __name__,
    "hybrid_update(Tensor(a!) memory, Tensor(b!) means, Tensor counts, Tensor memory_labels, Tensor x, Tensor index, "
    "float momentum) -> ()",
    _update_cpu,
    fake_nothing,
)
