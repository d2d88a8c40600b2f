"""Exact nearest neighbours of unit features among themselves (methods.md §1.10, step 1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reid_fast.ops.features import Features, clip_k, unit_rows

_BLOCK = 1024


def knn_ref(features: Features, k: int) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of each row by cosine, in blocks of rows: never an N×N array.

    Args:
        features: [N, D], any float type, strides and device; rows are divided by their norm here.
        k: neighbours of a row, itself included; more than N is clipped to N with a warning.

    Returns:
        index [N, K] int32 and similarity [N, K] float32, most similar first, the row itself in column 0;
        arrays for an array, tensors on the features' device for a tensor.

    Raises:
        ValueError: k < 1, or a feature row that is zero or not finite (named).
    """
    rows = unit_rows(features)
    k = clip_k(k, len(rows), "k")
    blocks = [_block(rows, start, k) for start in range(0, len(rows), _BLOCK)]
    index, similarity = (torch.cat(part) for part in zip(*blocks, strict=True))
    return (index, similarity) if isinstance(features, Tensor) else (index.numpy(), similarity.numpy())


def _block(rows: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    block = rows[start : start + _BLOCK]
    own = torch.arange(start, start + len(block), device=rows.device)[:, None]
    scores = block @ rows.T
    self_similarity = scores.gather(1, own)
    scores.scatter_(1, own, torch.inf)
    similarity, index = scores.topk(k, dim=1)
    similarity[:, :1] = self_similarity
    return index.int(), similarity


knn = knn_ref
