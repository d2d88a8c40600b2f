"""Compiled clustering stages (csrc/bindings.cpp); arrays are C-contiguous, float32 and int32 unless said otherwise."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

cuda: bool

def watch(told: Callable[[int, int], None] | None) -> None: ...
def similarity_kernels() -> list[str]: ...
def knn(rows: np.ndarray, k: int, begin: int, end: int, kernel: str = "auto") -> tuple[np.ndarray, np.ndarray]: ...
def knn_in_lists(
    rows: np.ndarray,
    k: int,
    members: np.ndarray,
    start: np.ndarray,
    near_start: np.ndarray,
    near: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]: ...
def knn_and_farthest(
    rows: np.ndarray, k: int, begin: int, end: int, kernel: str = "auto"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
def reranking_weights(
    rows: np.ndarray, index: np.ndarray, similarity: np.ndarray, smallest: np.ndarray, half: int, k2: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
def jaccard_rows(
    start: np.ndarray,
    index: np.ndarray,
    value: np.ndarray,
    column_start: np.ndarray,
    column_index: np.ndarray,
    column_value: np.ndarray,
    begin: int,
    end: int,
    width: int,
) -> np.ndarray: ...
def check_neighbours(index: np.ndarray, similarity: np.ndarray) -> None: ...

class TooLarge(MemoryError): ...

def jaccard_graph(
    rows: np.ndarray, index: np.ndarray, similarity: np.ndarray, k2: int, max_distance: float, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
def dbscan(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, eps: float, min_samples: int) -> np.ndarray: ...

# With CUDA alone: device pointers and streams are integers; `allocate(bytes)` makes a uint8 tensor on the device, and
# what is returned are tensors of its making.

def jaccard_graph_cuda(
    rows: int,
    n: int,
    width: int,
    index: int,
    similarity: int,
    k: int,
    k2: int,
    max_distance: float,
    stream: int,
    allocate: Callable[[int], Tensor],
    scratch_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]: ...
def dbscan_cuda(
    start: int,
    index: int,
    value: int,
    n: int,
    eps: float,
    min_samples: int,
    labels: int,
    stream: int,
    allocate: Callable[[int], Tensor],
) -> None: ...
