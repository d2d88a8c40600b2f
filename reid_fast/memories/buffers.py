"""What memories are made of: buffers whose shape changes from epoch to epoch, and means by label."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from reid_fast import ops
from reid_fast.device import to_device


class VaryingBuffers(nn.Module):
    """Its own buffers have other shapes every epoch: loading takes the saved ones instead of refusing them."""

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def label_means(features: Tensor, labels: np.ndarray) -> Tensor:
    """[C, D] float32 mean of the [N, D] features of each label; -1 is left out."""
    return ops.class_means(features, to_device(labels, features.device)).means
