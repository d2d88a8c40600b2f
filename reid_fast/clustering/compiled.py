"""What the extension of this machine can do; for those who ask about it."""

from __future__ import annotations

import numpy as np

from reid_fast import _C


def has_cuda() -> bool:
    """Whether it was built with CUDA: whether features on a GPU are clustered there."""
    return _C.cuda


def similarity_kernels() -> list[str]:
    """The kernels of the search that this processor runs, as `search_by` takes them."""
    return _C.similarity_kernels()


def search_by(kernel: str, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`reid_fast.knn` of L2-normalised [N, D] float32 rows by one kernel: index and similarity [N, k]."""
    return _C.knn(rows, k, 0, len(rows), kernel)
