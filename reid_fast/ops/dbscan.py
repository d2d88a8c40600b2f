"""DBSCAN on a sparse graph of distances (methods.md §1.11; Ester et al., KDD 1996)."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def dbscan_ref(graph: sparse.csr_matrix, eps: float = 0.6, min_samples: int = 4) -> np.ndarray:
    """Cluster labels by scikit-learn's DBSCAN.

    Args:
        graph: [N, N] symmetric distances with an explicit diagonal; pairs that are not stored are too far.
        eps: neighbours lie at most this far, inclusive; one graph serves every eps up to its max_distance.
        min_samples: neighbours of a core point, itself included.

    Returns:
        labels [N] int64, clusters numbered by their lowest-index core point, -1 for outliers.
    """
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    graph = sort_graph_by_row_values(sparse.csr_matrix(graph), copy=True, warn_when_not_sorted=False)
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(graph).labels_.astype(np.int64)


dbscan = dbscan_ref
