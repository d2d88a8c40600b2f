"""Position embeddings of transformers for another size of images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]  # (h, w), in patches


def without_distillation(positions: Tensor) -> Tensor:
    """[1, 2 + n, D] of a distilled DeiT -> [1, 1 + n, D]: its second token is dropped."""
    return torch.cat([positions[:, :1], positions[:, 2:]], dim=1)


def grid_of(n: int, size: tuple[int, int] | None = None) -> Grid | None:
    """The grid that n positions fill, row by row.

    Args:
        n: positions, the class token's not counted.
        size: (H, W) of the images, where it is known.

    Returns:
        (h, w) of the images' shape; without a size twice as high as wide, as of pretraining at 256×128, or square, as
        of ImageNet's. None where n fills no such grid.
    """
    for ratio in (2.0, 1.0) if size is None else (size[0] / size[1],):
        h = round(math.sqrt(n * ratio))
        if h and n % h == 0 and h == round(n // h * ratio):
            return h, n // h
    return None


def resized(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """[1, 1 + h·w, D] of one grid -> another's: the class token's is kept, the others are resized bilinearly."""
    token, patches = positions[:, :1], positions[:, 1:]
    maps = patches.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=new, mode="bilinear", align_corners=False)
    return torch.cat([token.float(), maps.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
