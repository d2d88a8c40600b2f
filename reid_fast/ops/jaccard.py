"""The k-reciprocal Jaccard distance as a sparse graph (methods.md §1.10; Zhong et al., CVPR 2017)."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from reid_fast.ops.features import Features, clip_k, unit_rows
from reid_fast.ops.knn import knn

Neighbours = tuple[Features, Features]


def jaccard_graph_ref(
    features: Features,
    k1: int = 30,
    k2: int = 6,
    max_distance: float = 0.6,
    *,
    neighbours: Neighbours | None = None,
) -> sparse.csr_matrix:
    """Every pair with Jaccard distance ≤ `max_distance`, step by step as methods.md §1.10 states it.

    Args:
        features: [N, D], any float type and strides; rows are divided by their norm here.
        k1: length of the ranking, the row itself included; more than N is clipped to N with a warning.
        k2: rows averaged by query expansion, the row itself included; 1 turns it off.
        max_distance: in [0, 1); pairs further apart are not stored.
        neighbours: the result of `knn(features, k)` with k ≥ k1, where it is already there.

    Returns:
        [N, N] float32 CSR: symmetric, self included (an explicit 0), sorted indices.

    Raises:
        ValueError: k1 < 1, k2 outside 1..k1, max_distance outside [0, 1), neighbours that do not fit,
            or a bad feature row.
    """
    rows = unit_rows(features)
    ranking = check_neighbours(neighbours or knn(rows, clip_k(k1, len(rows), "k1")), len(rows), k1)
    check_graph_arguments(k1, k2, max_distance)
    k1, k2 = ranking.shape[1], min(k2, ranking.shape[1])
    weights = _weights(rows.cpu().numpy(), _expansion(ranking, k1))
    if k2 != 1:
        weights = _selection(ranking, k2).astype(np.float64) @ weights / k2
    return _threshold(weights.tocsr(), max_distance)


def check_graph_arguments(k1: int, k2: int, max_distance: float) -> None:
    """Raise a `ValueError` that names the argument out of range."""
    if not 1 <= k2 <= k1:
        raise ValueError(f"k2 must lie in 1..k1 = {k1}, not {k2}")
    if not 0 <= max_distance < 1:
        raise ValueError(f"max_distance must lie in [0, 1), not {max_distance}")


def check_neighbours(neighbours: Neighbours, n: int, k1: int) -> np.ndarray:
    """The ranking [N, min(k1, N)] out of a kNN result: in range, the row itself first, no row twice."""
    index = np.asarray(torch.as_tensor(neighbours[0]).cpu())
    k1 = min(k1, n)
    if index.ndim != 2 or len(index) != n or index.shape[1] < k1 or index.dtype.kind != "i":
        raise ValueError(f"neighbours: index must be integers [{n}, ≥ {k1}], not {index.dtype} {index.shape}")
    ranking = index[:, :k1].astype(np.int64)
    ordered = np.sort(ranking, axis=1)
    for fault, text in (
        ((ranking < 0) | (ranking >= n), "names a row that does not exist"),
        (ranking[:, :1] != np.arange(n)[:, None], "does not begin with itself"),
        (ordered[:, 1:] == ordered[:, :-1], "names a neighbour twice"),
    ):
        if fault.any():
            raise ValueError(f"neighbours: row {fault.any(axis=1).argmax()} {text}")
    return ranking


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


jaccard_graph = jaccard_graph_ref


def jaccard_distance(features: Features, k1: int = 30, k2: int = 6) -> np.ndarray:
    """Dense drop-in for the published `compute_jaccard_distance`: [N, N] float32, 1 where nothing is shared.

    Arguments and errors as `jaccard_graph`; needs 4·N² bytes, where the graph needs a few hundred per row.
    """
    below_one = float(np.nextafter(np.float32(1), np.float32(0)))
    graph = jaccard_graph(features, k1, k2, below_one)
    distance = np.ones(graph.shape, np.float32)
    distance[np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr)), graph.indices] = graph.data
    return distance
