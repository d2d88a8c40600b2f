"""DBSCAN on a sparse graph of distances (Ester et al., KDD 1996)."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from reid_fast import _C
from reid_fast.clustering import cupy_graph


def dbscan(graph: sparse.csr_matrix, eps: float = 0.6, min_samples: int = 4) -> np.ndarray:
    """Cluster labels with scikit-learn's numbering and border rule, by union-find.

    Args:
        graph: [N, N] symmetric distances with an explicit diagonal, SciPy's or (on the device) CuPy's; pairs that
            are not stored are too far.
        eps: neighbours lie at most this far, inclusive; one graph serves every eps up to its max_distance.
        min_samples: neighbours of a core point, itself included.

    Returns:
        labels [N] int64, on the host: clusters numbered by their lowest-index core point, a border point in the first
        cluster that reaches it, -1 for outliers.

    Raises:
        ValueError: a graph that is not square or not sound, eps that is negative or NaN, min_samples < 1.
    """
    if cupy_graph.is_on_device(graph):
        _check_arguments(eps, min_samples)
        return cupy_graph.dbscan(graph, eps, min_samples)
    graph = _checked(graph, eps, min_samples)
    return _C.dbscan(graph.indptr, graph.indices, graph.data, eps, min_samples)


def dbscan_ref(graph: sparse.csr_matrix, eps: float = 0.6, min_samples: int = 4) -> np.ndarray:
    """`dbscan` by scikit-learn."""
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    graph = sort_graph_by_row_values(_checked(graph, eps, min_samples), copy=True, warn_when_not_sorted=False)
    # scikit-learn's own check asks for eps above zero.
    search = DBSCAN(eps=max(eps, 1e-300), min_samples=min_samples, metric="precomputed")
    return search.fit(graph).labels_.astype(np.int64)


def _checked(graph: sparse.csr_matrix, eps: float, min_samples: int) -> sparse.csr_matrix:
    if not sparse.issparse(graph) or graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError("graph must be a square SciPy sparse matrix, such as jaccard_graph returns")
    _check_arguments(eps, min_samples)
    graph = sparse.csr_matrix(graph)
    return graph if graph.dtype in (np.float32, np.float64) else graph.astype(np.float32)


def _check_arguments(eps: float, min_samples: int) -> None:
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, not {eps}")
    if min_samples < 1:
        raise ValueError(f"min_samples must be at least 1, not {min_samples}")
