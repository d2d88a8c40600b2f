"""The published `compute_jaccard_distance` of SpCL, Cluster Contrast and what was built on them."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from reid_fast.clustering import jaccard_distance

_CPU_SEARCH = 3  # the published code's number for it; the others are ways to search on a GPU


def compute_jaccard_distance(
    target_features: Tensor,
    k1: int = 20,
    k2: int = 6,
    print_flag: bool = True,
    search_option: int = 0,
    use_float16: bool = False,
) -> np.ndarray:
    """The k-reciprocal Jaccard distance of all pairs (Zhong et al., CVPR 2017); see `reid_fast.jaccard_distance`.

    It is dense, as callers expect it: `reid_fast.jaccard_graph` with `reid_fast.dbscan` needs no matrix of all pairs.

    Args:
        target_features: [N, D] features; they are normalised here, the published code takes them to be.
        k1: length of the ranking, the row itself included.
        k2: rows averaged by query expansion, the row itself included.
        print_flag: print what it does and how long it took.
        search_option: 0, 1 and 2 compute on a GPU where there is one, 3 on the CPU; all search exactly.
        use_float16: return float16, rounded from float32; the published code also adds up in float16.

    Returns:
        [N, N] float32 or float16.

    Raises:
        ValueError: a search option that is not one of these, or what `reid_fast.jaccard_graph` refuses.
    """
    if search_option not in range(4):
        raise ValueError(f"search_option must be 0, 1, 2 or 3, not {search_option}")
    start = time.monotonic()
    if print_flag:
        print(f"Jaccard distance of {len(target_features):,} images ...")
    on_gpu = search_option != _CPU_SEARCH and torch.cuda.is_available()
    features = target_features.cuda() if on_gpu else target_features.cpu()
    distance = jaccard_distance(features, k1, k2)
    if print_flag:
        print(f"Jaccard distance: {time.monotonic() - start:.1f} s")
    return distance.astype(np.float16) if use_float16 else distance
