"""A teacher network as the moving average of its student (Mean Teacher, arXiv 1703.01780)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def ema_update(teacher: Iterable[Tensor], student: Iterable[Tensor], momentum: float) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, in place, for every pair of tensors.

    PyTorch's multi-tensor lerp: on CUDA a handful of launches at memory speed for all parameters of a network, which a
    kernel of our own could not beat by more than these launches. With momentum 0 the teacher is exactly the student.

    Args:
        teacher: the tensors to move, for example `model.parameters()`.
        student: the tensors to follow, in the same order, of the same shapes and types.
        momentum: the share that is kept.

    Raises:
        ValueError: the two have different numbers of tensors.
    """
    teacher, student = list(teacher), list(student)
    if len(teacher) != len(student):
        raise ValueError(f"the teacher has {len(teacher)} tensors and the student {len(student)}")
    torch._foreach_lerp_(teacher, student, 1 - momentum)
