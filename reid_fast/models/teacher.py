"""A teacher that follows its student as a moving average (Tarvainen and Valpola, NeurIPS 2017)."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


def new_teacher(student: nn.Module) -> nn.Module:
    """A copy that is not trained. Its BatchNorm statistics are its own: let it run in training mode."""
    return deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum·teacher + (1 - momentum)·student, in place, parameters only."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
