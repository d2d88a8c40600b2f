"""Momentum updates of a memory (Cluster Contrast, arXiv 2103.11568; DCCC, arXiv 2303.06810)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from reid_fast.ops._numerics import check_int64, check_rows, check_shapes, check_temperature, widen, without_autocast
from reid_fast.ops._registration import fake_nothing, register

MODES = ("serial", "hard", "weighted", "pick")


def memory_update(
    memory: Tensor,
    x: Tensor,
    labels: Tensor,
    momentum: float,
    mode: str = "serial",
    temperature: float | None = None,
    *,
    scores: Tensor | None = None,
) -> None:
    """Update the rows of `memory` named by `labels`, in place, from `x`; each is L2-normalised again after.

    serial    for i = 0..B-1 in batch order: c ← m·c + (1-m)·x_i, then c ← c/‖c‖ (Cluster Contrast's momentum
              update).
    hard      once per cluster, with its least similar member, the first one on ties (Cluster Contrast's hard
              update).
    weighted  once per cluster, with Σ_j w_j x_j, w = softmax_j(-x_j·c / temperature); its mean as temperature
              → ∞ (DCCC).
    pick      once per cluster, with the member of the highest score, the first one on ties (hardest positives
              of RCL).

    Args:
        memory: [C, D] contiguous L2-normalised rows, float32 or bfloat16 (accumulated in float32).
        x: [B, D] L2-normalised rows, any float type; rows of the memory itself are read as they were before.
        labels: [B] int64 in [0, C), or -1, which takes no part; a row may be named any number of times, or never.
        momentum: m, the share of the old row that is kept.
        mode: one of `MODES`.
        temperature: the softmax weights' temperature, positive, for "weighted" only.
        scores: [B], for "pick" only.

    Raises:
        TypeError: labels of another type.
        ValueError: an unknown mode, a mode without its argument, a temperature that is not positive, a momentum outside
            [0, 1], shapes that disagree, a memory that is not contiguous, or another label outside the memory. CUDA is
            not waited for to find the last: such a row changes nothing there.
    """
    check(memory, x, labels, momentum, mode, temperature, scores)
    _op(memory, x.detach(), labels, momentum, mode, temperature, scores)


def check(
    memory: Tensor,
    x: Tensor,
    labels: Tensor,
    momentum: float,
    mode: str,
    temperature: float | None,
    scores: Tensor | None,
) -> None:
    """Refuse what `memory_update` cannot do."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "weighted" and temperature is None:
        raise ValueError('mode="weighted" needs a temperature')
    if temperature is not None:
        check_temperature(temperature)
    if mode == "pick" and scores is None:
        raise ValueError('mode="pick" needs scores')
    check_momentum(momentum)
    check_shapes("memory C D, x B D, labels B, scores B", memory, x, labels, scores)
    check_int64(labels=labels)


def check_momentum(momentum: float) -> None:
    if not 0 <= momentum <= 1:
        raise ValueError(f"the momentum must lie in [0, 1], not {momentum}")


@without_autocast
def memory_update_ref(
    memory: Tensor,
    x: Tensor,
    labels: Tensor,
    momentum: float,
    mode: str = "serial",
    temperature: float | None = None,
    scores: Tensor | None = None,
) -> None:
    """`memory_update` in plain PyTorch: the definition of the op, and its CPU implementation.

    The clusters advance side by side, each by one member a round; larger ones first, so that a round is a
    prefix. Samples with label -1 take no part.
    """
    check_rows("label", labels, len(memory))
    groups = defaultdict(list)
    for position, label in enumerate(labels.tolist()):
        if label != -1:
            groups[label].append(position)
    if not groups:
        return
    x = x.detach().to(widen(memory).dtype)
    touched = torch.tensor(sorted(groups, key=lambda label: -len(groups[label])), device=memory.device)
    members = [groups[label] for label in touched.tolist()]
    rows = widen(memory[touched])
    if mode == "serial":
        # Rounds are many and small. On the CPU NumPy does them, on the same memory: it starts no threads.
        arrays = (rows.numpy(), x.numpy()) if rows.device.type == "cpu" else (rows, x)
        for turn in range(len(members[0])):
            now = [group[turn] for group in members if len(group) > turn]
            _blend(arrays[0][: len(now)], arrays[1][now], momentum)
    else:
        _blend(rows, _representatives(rows, x, members, mode, temperature, scores), momentum)
    memory[touched] = rows.to(memory.dtype)


def _blend(rows: Tensor | np.ndarray, x: Tensor | np.ndarray, momentum: float) -> None:
    rows *= momentum
    rows += (1 - momentum) * x
    rows /= ((rows * rows).sum(1) ** 0.5)[:, None]


def _representatives(
    rows: Tensor,
    x: Tensor,
    members: list[list[int]],
    mode: str,
    temperature: float | None,
    scores: Tensor | None,
) -> Tensor:
    """[clusters, D]: what each cluster's row is blended with."""
    order = [position for group in members for position in group]
    owner = torch.tensor([i for i, group in enumerate(members) for _ in group], device=x.device)
    if scores is None or mode != "pick":
        scores = x.new_empty(len(x))
        scores[order] = -(x[order] * rows[owner]).sum(1)
    value = scores.tolist()
    hardest = [max(group, key=value.__getitem__) for group in members]  # the first one on ties
    if mode != "weighted" or temperature is None:
        return x[hardest]
    weights = ((scores[order] - scores[hardest][owner]) / temperature).exp_()
    total = weights.new_zeros(len(members)).index_add_(0, owner, weights)
    return torch.zeros_like(rows).index_add_(0, owner, x[order] * (weights / total[owner])[:, None])


_op = register(
    __name__,
    # Only the schema says `mode_`: torch's functionalisation of mutable ops (2.13) cannot pass an argument `mode`.
    "memory_update(Tensor(a!) memory, Tensor x, Tensor labels, float momentum, str mode_, float? temperature, "
    "Tensor? scores) -> ()",
    memory_update_ref,
    fake_nothing,
)
