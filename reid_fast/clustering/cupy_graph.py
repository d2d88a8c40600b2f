"""The graph on the device: torch and CuPy arrays in and out of `_C`, which knows only pointers and streams."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from reid_fast import _C


def jaccard_graph(rows: Tensor, index: Tensor, similarity: Tensor, k2: int, max_distance: float) -> Any:
    """The graph of checked CUDA tensors: CuPy's CSR on their device, SciPy's where CuPy is not installed."""
    with torch.cuda.device(rows.device):
        stream = torch.cuda.current_stream().cuda_stream
        graph = _C.jaccard_graph_cuda(
            rows=rows.data_ptr(),
            n=rows.shape[0],
            width=rows.shape[1],
            index=index.data_ptr(),
            similarity=similarity.data_ptr(),
            k=index.shape[1],
            k2=k2,
            max_distance=max_distance,
            stream=stream,
        )
    if _cupy() is None or graph.entries > np.iinfo(np.int32).max:
        start, indices, data = graph.to_host()
        return sparse.csr_matrix((data, indices, start), shape=(len(rows), len(rows)))
    return _cupy_graph(graph, len(rows), rows.device.index)


def dbscan(graph: Any, eps: float, min_samples: int) -> np.ndarray:
    """Labels [N] int64 of CuPy's CSR `graph`; only they leave the device."""
    cupy = _cupy()
    with graph.data.device:
        start, index = graph.indptr.astype(cupy.int64), graph.indices.astype(cupy.int32)
        value = graph.data.astype(cupy.float32)
        labels = cupy.empty(graph.shape[0], cupy.int64)
        _C.dbscan_cuda(
            start=start.data.ptr,
            index=index.data.ptr,
            value=value.data.ptr,
            n=len(labels),
            eps=eps,
            min_samples=min_samples,
            labels=labels.data.ptr,
            stream=cupy.cuda.get_current_stream().ptr,
        )
        return labels.get()


def is_on_device(graph: Any) -> bool:
    """Whether `graph` is one of CuPy's sparse matrices."""
    return type(graph).__module__.startswith("cupyx.")


def on_host(graph: Any) -> sparse.csr_matrix:
    """`graph` as SciPy's CSR."""
    return graph.get() if is_on_device(graph) else graph


@functools.cache
def say_that_the_cpu_clusters() -> None:
    """Warn, once, that CUDA features are clustered on the CPU."""
    warnings.warn("this build of reid_fast has no CUDA: CUDA features are clustered on the CPU", stacklevel=3)


@functools.cache
def _cupy() -> Any:
    try:
        import cupy
    except ImportError:
        return None
    return cupy


def _cupy_graph(graph: _C.DeviceGraph, n: int, device: int) -> Any:
    import cupyx.scipy.sparse

    cupy = _cupy()

    def view(address: int, size: int, dtype: Any) -> Any:
        memory = cupy.cuda.UnownedMemory(address, size * np.dtype(dtype).itemsize, graph, device)
        return cupy.ndarray(size, dtype, cupy.cuda.MemoryPointer(memory, 0))

    with cupy.cuda.Device(device):
        # CuPy's CSR counts its entries in 32 bits.
        start = view(graph.start, n + 1, np.int64).astype(np.int32)
        parts = (
            view(graph.value, graph.entries, np.float32),
            view(graph.index, graph.entries, np.int32),
            start,
        )
        return cupyx.scipy.sparse.csr_matrix(parts, shape=(n, n))
