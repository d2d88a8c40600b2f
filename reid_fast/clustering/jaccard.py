"""The k-reciprocal Jaccard distance as a sparse graph (Zhong et al., CVPR 2017)."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from reid_fast import _C
from reid_fast.clustering import cupy_graph
from reid_fast.clustering.inputs import Features, clip_k, normalised_rows
from reid_fast.clustering.knn import knn
from reid_fast.device import free_bytes
from reid_fast.errors import UserError

Neighbours = tuple[Features, Features]
_ENTRY_BYTES = 16  # of memory to an entry of the graph: 12 while step 7 makes it, and some for what else there is


def jaccard_graph(
    features: Features,
    k1: int = 30,
    k2: int = 6,
    max_distance: float = 0.6,
    *,
    neighbours: Neighbours | None = None,
) -> sparse.csr_matrix:
    """Every pair with Jaccard distance ≤ `max_distance`; the same bits for any number of threads.

    Args:
        features: [N, D], any float type, strides and device; rows are divided by their norm here.
        k1: length of the ranking, the row itself included; more than N is clipped to N with a warning.
        k2: rows averaged by query expansion, the row itself included; 1 turns it off.
        max_distance: in [0, 1); pairs further apart are not stored. One graph serves every eps up to it.
        neighbours: the result of `knn(features, k)` with k ≥ k1, where it is already there.

    Returns:
        [N, N] float32 CSR: symmetric, self included (an explicit 0), sorted indices. CuPy's CSR on the device for
        CUDA features where the extension has CUDA and CuPy is installed, else SciPy's.

    Raises:
        ValueError: k1 < 1, k2 outside 1..k1, max_distance outside [0, 1), neighbours that do not fit, or a
            bad feature row.
        UserError: on the CPU, the graph needs more than the memory that is free: many rows are nearly equal.
    """
    rows, index, similarity, k2 = _prepare(features, k1, k2, max_distance, neighbours)
    if rows.is_cuda and _C.cuda:
        return cupy_graph.jaccard_graph(rows, index, similarity, k2, max_distance)
    if rows.is_cuda:
        cupy_graph.say_that_the_cpu_clusters()
    most = free_bytes(torch.device("cpu")) // _ENTRY_BYTES
    rows, index, similarity = rows.cpu(), index.cpu(), similarity.cpu()
    try:
        start, indices, data = _C.jaccard_graph(rows.numpy(), index.numpy(), similarity.numpy(), k2, max_distance, most)
    except _C.TooLarge as error:
        raise UserError(
            f"the graph of Jaccard distances up to {max_distance:.3g} does not fit into memory, {error}: leave out "
            "images that are nearly equal, or lower the distance (--eps)"
        ) from None
    return sparse.csr_matrix((data, indices, start), shape=(len(rows), len(rows)))


def jaccard_distance(features: Features, k1: int = 30, k2: int = 6) -> np.ndarray:
    """Dense drop-in for the published `compute_jaccard_distance`: [N, N] float32, 1 where nothing is shared.

    Arguments and errors as `jaccard_graph`; needs 4·N² bytes, where the graph needs a few hundred per row.
    """
    graph = cupy_graph.on_host(jaccard_graph(features, k1, k2, BELOW_ONE))
    distance = np.ones(graph.shape, np.float32)
    distance[np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr)), graph.indices] = graph.data
    return distance


# The largest max_distance: the graph then holds every pair that shares anything; what is missing lies at 1.
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def jaccard_graph_ref(
    features: Features,
    k1: int = 30,
    k2: int = 6,
    max_distance: float = 0.6,
    *,
    neighbours: Neighbours | None = None,
) -> sparse.csr_matrix:
    """`jaccard_graph` in NumPy and SciPy, step by step, in double precision."""
    rows, index, _, k2 = _prepare(features, k1, k2, max_distance, neighbours)
    ranking = index.cpu().numpy().astype(np.int64)
    weights = _weights(rows.cpu().numpy(), _expansion(ranking, ranking.shape[1]))
    if k2 != 1:
        weights = _selection(ranking, k2).astype(np.float64) @ weights / k2
    return _threshold(weights.tocsr(), max_distance)


def _prepare(
    features: Features, k1: int, k2: int, max_distance: float, neighbours: Neighbours | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """L2-normalised rows, the ranking [N, K] int32 and its cosines [N, K] float32 beside them, and the clipped k2."""
    if k1 < 1:
        raise ValueError(f"k1 must be at least 1, not {k1}")
    if not 1 <= k2 <= k1:
        raise ValueError(f"k2 must lie in 1..k1 = {k1}, not {k2}")
    if not 0 <= max_distance < 1:
        raise ValueError(f"max_distance must lie in [0, 1), not {max_distance}")
    rows = normalised_rows(features)
    k1 = clip_k(k1, len(rows), "k1")
    index, similarity = _fitting(knn(rows, k1) if neighbours is None else neighbours, rows, k1)
    return rows, index, similarity, min(k2, k1)


def _fitting(neighbours: Neighbours, rows: Tensor, k1: int) -> tuple[Tensor, Tensor]:
    index, similarity = (torch.as_tensor(part).to(rows.device) for part in neighbours)
    n = len(rows)
    if index.ndim != 2 or len(index) != n or index.shape[1] < k1 or index.shape != similarity.shape:
        shapes = f"{list(index.shape)} and {list(similarity.shape)}"
        raise ValueError(f"neighbours: index and similarity must be [{n}, at least {k1}], not {shapes}")
    if index.dtype not in (torch.int32, torch.int64) or not similarity.is_floating_point():
        raise ValueError(f"neighbours: need int32 and float32, not {index.dtype} and {similarity.dtype}")
    # An int64 that wraps into range would name a wrong row without a word.
    if index.dtype == torch.int64 and ((index < 0) | (index >= n)).any():
        raise ValueError("neighbours: an index names a row that does not exist")
    return index[:, :k1].int().contiguous(), similarity[:, :k1].float().contiguous()


def _selection(ranking: np.ndarray, k: int) -> sparse.csr_matrix:
    """The first k of each ranking as a 0/1 matrix."""
    n = len(ranking)
    indices = ranking[:, :k].ravel()
    return sparse.csr_matrix((np.ones(len(indices), np.int32), indices, np.arange(n + 1) * k), shape=(n, n))


def _reciprocal(ranking: np.ndarray, k: int) -> sparse.csr_matrix:
    """The set S(i, k) has k + 1 entries, but the ranking only k1 columns."""
    nearest = _selection(ranking, min(k + 1, ranking.shape[1]))
    return nearest.multiply(nearest.T).tocsr()


def _expansion(ranking: np.ndarray, k1: int) -> sparse.csr_matrix:
    full, half = _reciprocal(ranking, k1), _reciprocal(ranking, round(k1 / 2))
    overlap = (full @ half).multiply(full).tocsr()  # |q(c) ∩ r(i)| at (i, c); q is symmetric
    half_size = half.getnnz(axis=1)
    overlap.data = (3 * overlap.data > 2 * half_size[overlap.indices]).astype(np.int32)
    return (full + overlap @ half).astype(bool).tocsr()


def _weights(rows: np.ndarray, expansion: sparse.csr_matrix) -> sparse.csr_matrix:
    expansion.eliminate_zeros()
    expansion.sort_indices()
    left = np.repeat(np.arange(len(rows)), np.diff(expansion.indptr))
    weight = np.empty(len(left))
    for start in range(0, len(left), 65536):
        pairs = slice(start, start + 65536)
        cosine = np.einsum("pd,pd->p", rows[left[pairs]], rows[expansion.indices[pairs]])
        weight[pairs] = np.exp(2 * cosine.astype(np.float64) - 2)
    weight /= np.add.reduceat(weight, expansion.indptr[:-1])[left]
    return sparse.csr_matrix((weight, expansion.indices, expansion.indptr), shape=expansion.shape)


def _threshold(weights: sparse.csr_matrix, max_distance: float) -> sparse.csr_matrix:
    """s_ij = Σ_g min(W_ig, W_jg) through the columns g of row i, J = 1 - s/(2-s)."""
    n = weights.shape[0]
    columns = weights.tocsc()
    indptr, indices, data = [0], [], []
    shared = np.zeros(n)
    for i in range(n):
        row = slice(weights.indptr[i], weights.indptr[i + 1])
        for g, weight in zip(weights.indices[row], weights.data[row], strict=True):
            column = slice(columns.indptr[g], columns.indptr[g + 1])
            shared[columns.indices[column]] += np.minimum(weight, columns.data[column])
        touched = np.flatnonzero(shared)
        distance = np.maximum(1 - shared[touched] / (2 - shared[touched]), 0)
        near = distance <= max_distance
        indices.append(touched[near])
        data.append(distance[near].astype(np.float32))
        indptr.append(indptr[-1] + len(indices[-1]))
        shared[touched] = 0
    return sparse.csr_matrix((np.concatenate(data), np.concatenate(indices), indptr), shape=(n, n))
