"""Which architecture some tensors are of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from reid_fast.models.archs import ARCHS, PLAIN, Arch
from reid_fast.models.checkpoints.checkpoint import POSITIONS
from reid_fast.models.checkpoints.layout import BACKBONE


def architecture_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The name in `ARCHS` of the backbone that has exactly these tensors, whatever the size of its images.

    Args:
        tensors: by their names in an `Encoder`, as of a `Checkpoint`; a neck and a pooling may be among them.
    """
    found = {name: tensor.shape for name, tensor in tensors.items() if name.startswith(BACKBONE)}
    wanted = _compared(found)
    return next((name for name, arch in ARCHS.items() if _shapes(arch) == wanted), None)


@cache
def _shapes(arch: Arch) -> dict[str, torch.Size]:
    with torch.device("meta"):
        state = arch.build(PLAIN).state_dict()
    return _compared({BACKBONE + name: tensor.shape for name, tensor in state.items()})


def _compared(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    """Batch counters are missing from files older than PyTorch 0.4.1; positions are resized."""
    return {
        name: shape[-1:] if name == POSITIONS else shape
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    }
