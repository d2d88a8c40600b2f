"""Momentum updates of a prototype memory (methods.md §2 updates A and B, §10, §12.2)."""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("serial", "hard", "weighted")


def memory_update_ref(
    memory: Tensor,
    x: Tensor,
    labels: Tensor,
    momentum: float,
    mode: str = "serial",
    temperature: float | None = None,
) -> None:
    """Update the rows of `memory` named by `labels`, in place, from the unit rows `x`.

    serial    for i = 0..B-1 in batch order: c ← m·c + (1-m)·x_i, then c ← c/‖c‖ (Cluster Contrast's momentum update).
    hard      once per cluster, with its least similar member, the first one on ties (Cluster Contrast's hard update).
    weighted  once per cluster, with Σ_j w_j x_j, w = softmax_j(-x_j·c / temperature) (DCCC).

    Args:
        memory: [C, D] unit rows, float32 or bfloat16.
        x: [B, D] unit rows, any float type.
        labels: [B] int64 in [0, C); a row may be named any number of times, or never.
        momentum: the share of the old row that is kept.
        mode: one of `MODES`.
        temperature: the softmax weights' temperature, for "weighted" only.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "weighted" and temperature is None:
        raise ValueError('mode="weighted" needs a temperature')
    x = x.detach().float()
    for label in labels.unique().tolist():
        members = x[labels == label]
        row = memory[label].float()
        if mode == "hard":
            members = members[(members @ row).argmin()][None]
        elif mode == "weighted":
            members = torch.softmax(-(members @ row) / temperature, dim=0)[None] @ members
        for member in members:
            row = momentum * row + (1 - momentum) * member
            row = row / row.norm()
        memory[label] = row.to(memory.dtype)


memory_update = memory_update_ref
