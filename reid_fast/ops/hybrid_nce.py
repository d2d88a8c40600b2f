"""Contrast against an instance memory, class by class (Ge et al., SpCL, NeurIPS 2020; focal: CACL, arXiv 2106.07846).

A class scores the mean similarity of its members, which is the similarity to the mean of its members: keeping
the class means turns the published B×N work into B×C. `hybrid_update` moves a member and its class's mean
together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from reid_fast.ops import fused
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
    sums = torch.segment_reduce(fused.widen(memory)[order], "sum", lengths=counts, axis=0, initial=0)
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
    x = fused.unit_rows(x, normalize)[0]
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
        memory: [N, D] unit rows.
        memory_labels: [N] int64, the class of each row; classes may be empty.
        index: [B] int64, the row of each feature's own image.
        temperature: τ.
        focal: γ: 0 for SpCL, 4 in CACL's code.
        classes: the running means of `memory` (see `class_means`, `hybrid_update`). Without them all of the
            memory is read, and on CUDA the number of classes is fetched from the device.

    Returns:
        The loss, a float32 scalar.
    """
    means, counts = class_means(memory, memory_labels) if classes is None else classes
    labels = memory_labels[index]
    return _op(x, means, counts, labels, temperature, focal, normalize, fused.wants_grad(x))[0]


def hybrid_update(
    memory: Tensor, memory_labels: Tensor, classes: ClassMeans, x: Tensor, index: Tensor, momentum: float
) -> None:
    """`memory_update` (serial) of the rows `index`, in place, and of the class means by what their members moved.

    Args:
        memory: [N, D] contiguous unit rows.
        memory_labels: [N] int64, the class of each row.
        classes: the means to keep in step, changed in place.
        x: [B, D] unit rows.
        index: [B] int64 rows of `memory`; repetitions are applied in batch order.
        momentum: the share of the old row that is kept.
    """
    if not (memory.is_contiguous() and classes.means.is_contiguous()):
        raise ValueError("memory and means must be contiguous: they are updated in place")
    _update(memory, classes.means, classes.counts, memory_labels, x.detach(), index, momentum)


@custom_op("reid_fast::hybrid_nce", mutates_args=(), device_types="cpu")
@fused.full_precision
def _op(
    x: Tensor,
    means: Tensor,
    counts: Tensor,
    labels: Tensor,
    temperature: float,
    focal: float,
    normalize: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    unit, norm = fused.unit_rows(x, normalize)
    means = means.to(unit.dtype)
    scores = (unit @ means.T).div_(temperature).masked_fill_(counts == 0, -torch.inf)
    top = scores.amax(1, keepdim=True)
    p = (scores - top).exp_()
    p /= p.sum(1, keepdim=True) + EPSILON * torch.exp(-top)
    own = p.gather(1, labels[:, None])
    weight, log_p = (1 - own) ** focal, (own + EPSILON).log()
    loss = -(weight * log_p).mean()
    if not needs_grad:
        return loss, loss.new_empty(0)
    slope = own * weight / (own + EPSILON)  # -p ∂L/∂p
    if focal:
        slope -= own * focal * (1 - own) ** (focal - 1) * log_p
    p.scatter_add_(1, labels[:, None], -torch.ones_like(own))
    return loss, fused.pull_back(p.mul_(slope / (len(x) * temperature)), means, unit, norm)


def _launch(
    x: Tensor,
    means: Tensor,
    counts: Tensor,
    labels: Tensor,
    temperature: float,
    focal: float,
    normalize: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    return fused.kernels("cluster_nce").contrast(
        x, means, labels, temperature, normalize=normalize, alive=counts, epsilon=EPSILON, focal=focal,
        needs_grad=needs_grad,
    )  # fmt: skip


fused.register_loss(_op, _launch)


@custom_op("reid_fast::hybrid_update", mutates_args=("memory", "means"), device_types="cpu")
def _update(
    memory: Tensor, means: Tensor, counts: Tensor, labels: Tensor, x: Tensor, index: Tensor, momentum: float
) -> None:
    touched = index.unique()
    old = fused.widen(memory[touched])
    memory_update_ref(memory, x, index, momentum)
    moved = (fused.widen(memory[touched]) - old).to(means.dtype) / counts[labels[touched]][:, None]
    means.index_add_(0, labels[touched], moved)


@fused.register_cuda(_update)
def _(memory: Tensor, means: Tensor, counts: Tensor, labels: Tensor, x: Tensor, index: Tensor, momentum: float) -> None:
    fused.kernels("hybrid_update").update(memory, means, counts, labels, x, index, momentum)


@_update.register_fake
def _(*_: object) -> None:
    return None
