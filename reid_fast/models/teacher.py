"""A teacher: a copy of its student that follows it as a moving average (Tarvainen and Valpola, NeurIPS 2017)."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from reid_fast.models.stochastic_depth import take_every_branch

Network = TypeVar("Network", bound=nn.Module)


def new_teacher(student: Network) -> Network:
    """A copy that takes no gradient and, without stochastic depth, all branches.

    Its BatchNorm statistics are its own: let it run in training mode.
    """
    teacher = deepcopy(student).requires_grad_(False)
    take_every_branch(teacher)
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, in place, for every parameter.

    PyTorch's multi-tensor lerp: on CUDA a handful of launches at memory speed for a whole network. With momentum 0 the
    teacher is exactly the student.

    Args:
        teacher: moves; buffers, such as the statistics of BatchNorm, stay its own.
        student: is followed.
        momentum: the share of the teacher that is kept.

    Raises:
        ValueError: the two have different numbers of parameters.
    """
    moved: list[Tensor] = list(teacher.parameters())
    followed: list[Tensor] = list(student.parameters())
    if len(moved) != len(followed):
        raise ValueError(f"the teacher has {len(moved)} parameters and the student {len(followed)}")
    torch._foreach_lerp_(moved, followed, 1 - momentum)
