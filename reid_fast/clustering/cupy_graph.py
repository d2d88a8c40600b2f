"""The graph on the device: torch and CuPy arrays in and out of `_C`, which knows only pointers and streams.

Everything runs on the arrays' device and torch's current stream there, in memory of torch's allocator. Arrays cross to
CuPy and back by DLPack, which orders CuPy's current stream after torch's, and torch's after CuPy's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from reid_fast import _C
from reid_fast.device import free_bytes

# Of the memory that is free, what rows in flight may take; the rest is for the graph.
_SCRATCH_SHARE = 0.25
# CuPy's CSR counts its entries in 32 bits.
_CUPY_ENTRIES = np.iinfo(np.int32).max


def jaccard_graph(rows: Tensor, index: Tensor, similarity: Tensor, k2: int, max_distance: float) -> Any:
    """The graph of CUDA tensors: CuPy's CSR on their device, SciPy's where CuPy is not installed or cannot hold it.

    Args:
        rows: [N, D] L2-normalised, float32, contiguous.
        index, similarity: the ranking [N, K], int32 and float32, contiguous.
        k2, max_distance: as in `reid_fast.jaccard_graph`.

    Raises:
        ValueError: an unsound ranking; its row is named.
    """
    _C.check_neighbours(index.cpu().numpy(), similarity.cpu().numpy())
    device = rows.device
    with torch.cuda.device(device):
        found = _C.jaccard_graph_cuda(
            rows=rows.data_ptr(),
            n=rows.shape[0],
            width=rows.shape[1],
            index=index.data_ptr(),
            similarity=similarity.data_ptr(),
            k=index.shape[1],
            k2=k2,
            max_distance=max_distance,
            stream=torch.cuda.current_stream().cuda_stream,
            allocate=_allocator(device),
            scratch_bytes=int(_SCRATCH_SHARE * free_bytes(device)),
        )
        types = torch.int64, torch.int32, torch.float32
        start, indices, data = (part.view(dtype) for part, dtype in zip(found, types, strict=True))
        shape = len(rows), len(rows)
        if _cupy() is None or len(indices) > _CUPY_ENTRIES:
            parts = data.cpu().numpy(), indices.cpu().numpy(), start.cpu().numpy()
            return sparse.csr_matrix(parts, shape=shape)
        return _cupy_csr(data, indices, start.int(), shape)


def dbscan(graph: Any, eps: float, min_samples: int) -> np.ndarray:
    """Labels [N] int64 of CuPy's `graph`; only they leave the device.

    Raises:
        ValueError: a graph that is not square or not sound.
    """
    with graph.data.device:  # CuPy's current stream is the current device's
        graph = graph.tocsr()
        start, indices, data = (torch.from_dlpack(part) for part in (graph.indptr, graph.indices, graph.data))
    _check_sound(start, indices, graph.shape)
    device = data.device
    with torch.cuda.device(device):
        start, indices, data = start.long().contiguous(), indices.int().contiguous(), data.float().contiguous()
        labels = torch.empty(graph.shape[0], dtype=torch.int64, device=device)
        _C.dbscan_cuda(
            start=start.data_ptr(),
            index=indices.data_ptr(),
            value=data.data_ptr(),
            n=len(labels),
            eps=eps,
            min_samples=min_samples,
            labels=labels.data_ptr(),
            stream=torch.cuda.current_stream().cuda_stream,
            allocate=_allocator(device),
        )
        return labels.cpu().numpy()


def is_on_device(graph: Any) -> bool:
    """Whether `graph` is one of CuPy's sparse matrices."""
    return type(graph).__module__.startswith("cupyx.")


def on_host(graph: Any) -> sparse.csr_matrix:
    """`graph` as SciPy's CSR."""
    return graph.get() if is_on_device(graph) else graph


def _check_sound(start: Tensor, indices: Tensor, shape: tuple[int, int]) -> None:
    n = len(start) - 1
    if shape != (n, n):
        raise ValueError(f"graph must be a square CSR matrix, not {list(shape)}")
    if start[0] != 0 or start[-1] != len(indices) or (start.diff() < 0).any():
        raise ValueError("graph: indptr must ascend from 0 to the number of entries")
    if ((indices < 0) | (indices >= n)).any():
        raise ValueError("graph: an index names a row that does not exist")


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


def _cupy_csr(data: Tensor, indices: Tensor, start: Tensor, shape: tuple[int, int]) -> Any:
    import cupyx.scipy.sparse

    parts = tuple(_cupy().from_dlpack(part) for part in (data, indices, start))
    return cupyx.scipy.sparse.csr_matrix(parts, shape=shape)


def _allocator(device: torch.device) -> Callable[[int], Tensor]:
    """Memory of torch's allocator by bytes, on `device` and the stream that is current there."""
    return lambda size: torch.empty(size, dtype=torch.uint8, device=device)
