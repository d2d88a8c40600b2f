"""Compiled clustering stages (csrc/bindings.cpp); arrays are C-contiguous, float32 and int32 unless said otherwise."""

import numpy as np

cuda: bool

def similarity_kernels() -> list[str]: ...
def knn(rows: np.ndarray, k: int, begin: int, end: int, kernel: str = "auto") -> tuple[np.ndarray, np.ndarray]: ...
def jaccard_graph(
    rows: np.ndarray, index: np.ndarray, similarity: np.ndarray, k2: int, max_distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
def dbscan(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, eps: float, min_samples: int) -> np.ndarray: ...

# With CUDA alone: device pointers and streams are integers.

class DeviceGraph:
    start: int
    index: int
    value: int
    entries: int
    def to_host(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...

def jaccard_graph_cuda(
    rows: int, n: int, width: int, index: int, similarity: int, k: int, k2: int, max_distance: float, stream: int
) -> DeviceGraph: ...
def dbscan_cuda(
    start: int, index: int, value: int, n: int, eps: float, min_samples: int, labels: int, stream: int
) -> None: ...
