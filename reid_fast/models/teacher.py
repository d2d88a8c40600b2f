"""A teacher: a copy of its student that follows it by `ops.ema_update` (Tarvainen and Valpola, NeurIPS 2017)."""

from __future__ import annotations

from copy import deepcopy

from reid_fast.models.encoder import Encoder


def new_teacher(student: Encoder) -> Encoder:
    """A copy that takes no gradient. Its BatchNorm statistics are its own: let it run in training mode."""
    return deepcopy(student).requires_grad_(False)
