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
from reid_fast.ops.memory_update import memory_update_ref

EPSILON = 1e-6  # the published loss adds it to the softmax's denominator and inside its logarithm


class ClassMeans(NamedTuple):
    """What `hybrid_nce` needs of the instance memory."""

    means: Tensor  # [C, D] float32, not normalised; zero where a class is empty
    counts: Tensor  # [C] int64 members


def class_means(memory: Tensor, memory_labels: Tensor, classes: int | None = None) -> ClassMeans:
    """Means and sizes of the classes of an instance memory; once an epoch, since running means drift by rounding.

    Args:
        memory: [N, D] rows.
        memory_labels: [N] int64 in [0, C); classes may be empty.
        classes: C; without it the largest label is fetched from the device.
    """
    counts = torch.bincount(memory_labels, minlength=classes or 0)
    order = memory_labels.argsort(stable=True)
    sums = torch.segment_reduce(_numerics.widen(memory)[order], "sum", lengths=counts, axis=0, initial=0)
    return ClassMeans(sums / counts.clamp(min=1)[:, None], counts)


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
    """`hybrid_nce` in plain PyTorch, over all N rows as published, differentiable: the definition."""
    x = _numerics.normalized(x, normalize)[0]
    similarity = x @ memory.detach().to(x.dtype).T / temperature
    counts = torch.bincount(memory_labels)
    scores = similarity.new_zeros(len(x), len(counts)).index_add(1, memory_labels, similarity)
    exp = (scores / counts.clamp(min=1)).exp() * (counts > 0)
    p = exp / (exp.sum(1, keepdim=True) + EPSILON)
    p = p.gather(1, memory_labels[index][:, None])
    return -((1 - p) ** focal * (p + EPSILON).log()).mean()


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
    alone, through the focal weight too.

    Args:
        x: [B, D] features of any float type; L2-normalised here unless `normalize` is false.
        memory: [N, D] L2-normalised rows.
        memory_labels: [N] int64, the class of each row; classes may be empty.
        index: [B] int64, the row of each feature's own image.
        temperature: τ, positive.
        focal: γ: 0 for SpCL, 4 in CACL's code.
        classes: the running means of `memory` (see `class_means`, `hybrid_update`). Without them all of the
            memory is read, and on CUDA the number of classes is fetched from the device.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: a temperature that is not positive.
    """
    _numerics.check_temperature(temperature)
    means, counts = class_means(memory, memory_labels) if classes is None else classes
    labels = memory_labels[index]
    return _op(x, means, counts, labels, temperature, focal, EPSILON, normalize, needs_grad(x))[0]


def hybrid_update(
    memory: Tensor, memory_labels: Tensor, classes: ClassMeans, x: Tensor, index: Tensor, momentum: float
) -> None:
    """`memory_update` (serial) of the rows `index`, in place, and of the class means by what their members moved.

    Args:
        memory: [N, D] contiguous L2-normalised rows.
        memory_labels: [N] int64, the class of each row.
        classes: the means to keep in step, changed in place.
        x: [B, D] L2-normalised rows.
        index: [B] int64 rows of `memory`; repetitions are applied in batch order.
        momentum: the share of the old row that is kept.
    """
    if not (memory.is_contiguous() and classes.means.is_contiguous()):
        raise ValueError("memory and means must be contiguous: they are updated in place")
    _update(memory, classes.means, classes.counts, memory_labels, x.detach(), index, momentum)


def _cpu(
    x: Tensor,
    means: Tensor,
    counts: Tensor,
    labels: Tensor,
    temperature: float,
    focal: float,
    epsilon: float,
    normalize: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    unit, norm = _numerics.normalized(x, normalize)
    means = means.to(unit.dtype)
    logits = (unit @ means.T).div_(temperature).masked_fill_(counts == 0, -torch.inf)
    top = logits.amax(1, keepdim=True)
    p = (logits - top).exp_()
    p /= p.sum(1, keepdim=True) + epsilon * torch.exp(-top)
    own = p.gather(1, labels[:, None])
    weight, log_p = (1 - own) ** focal, (own + epsilon).log()
    loss = -(weight * log_p).mean()
    if not needs_grad:
        return loss, loss.new_empty(0)
    slope = own * weight / (own + epsilon)  # -p ∂L/∂p
    if focal:
        slope -= own * focal * (1 - own) ** (focal - 1) * log_p
    p.scatter_add_(1, labels[:, None], -torch.ones_like(own))
    return loss, _numerics.pull_back(p.mul_(slope / (len(x) * temperature)), means, unit, norm)


_op = register_loss(
    __name__,
    "hybrid_nce(Tensor x, Tensor means, Tensor counts, Tensor labels, float temperature, float focal, float epsilon, "
    "bool normalize, bool needs_grad) -> (Tensor, Tensor)",
    _cpu,
)


def _update_cpu(
    memory: Tensor, means: Tensor, counts: Tensor, memory_labels: Tensor, x: Tensor, index: Tensor, momentum: float
) -> None:
    touched = index.unique()
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
