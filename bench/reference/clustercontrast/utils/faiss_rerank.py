"""The dense Jaccard distance."""

from __future__ import annotations

import faiss
import numpy as np
from published import published_jaccard_distance
from torch import Tensor


def compute_jaccard_distance(
    target_features: Tensor, k1: int = 20, k2: int = 6, print_flag: bool = True, search_option: int = 3
) -> np.ndarray:
    """[N, N] float32 of unit rows [N, D]; the search is faiss's on the CPU, whatever the option."""
    rows = target_features.cpu().numpy()
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    return published_jaccard_distance(rows, index.search(rows, k1)[1], k2)
