"""The clustering stage on a CUDA device: its kNN beside a flat fp32 search, the rest beside the CPU's own stages."""

from __future__ import annotations

import numpy as np
import torch
from planted import planted_features
from report import Row, card, ratio, timed
from scipy import sparse
from torch import Tensor

import reid_fast
from reid_fast.clustering import knn_device

K1, K2, EPS, MIN_SAMPLES = 30, 6, 0.6, 4
_BLOCK = 2048  # rows of the flat search


def on_device(n: int, runs: int) -> Row:
    """One row: kNN, graph and DBSCAN of planted features, each checked before it is timed."""
    features = planted_features(n)[0].cuda()
    neighbours = reid_fast.knn(features, K1)
    (index, _, unproved), ours_knn = timed(lambda: knn_device.search(features, K1, 0, n), runs)
    flat, theirs_knn = timed(lambda: _flat(features), runs)
    _, fp64 = timed(lambda: knn_device.search(features, K1, 0, n, passes=((torch.float64, 512),)), 1)
    same = (flat.sort(1).values == index.sort(1).values).all(1).double().mean().item()

    on_cpu = features.cpu(), tuple(part.cpu() for part in neighbours)
    graph, ours_graph = timed(lambda: _graph(features, neighbours), runs)
    expected, theirs_graph = timed(lambda: _graph(*on_cpu), 1)
    found = graph.get() if hasattr(graph, "get") else graph
    _check_graph(found, expected)
    labels, ours_labels = timed(lambda: reid_fast.dbscan(graph, EPS, MIN_SAMPLES), runs)
    reference, theirs_labels = timed(lambda: reid_fast.dbscan(found, EPS, MIN_SAMPLES), 1)
    if not np.array_equal(labels, reference):
        raise SystemExit(f"cluster: labels differ from the CPU's at N = {n}")
    return {
        "stage": "cluster, on the device",
        "n": n,
        "width": features.shape[1],
        "clusters": int(labels.max() + 1),
        "graph_entries": int(found.nnz),
        "knn": {
            "ours": ours_knn,
            "flat_fp32": theirs_knn,
            "faster": ratio(theirs_knn, ours_knn),
            "same_neighbour_sets": same,
            "unproved": unproved,
            "fp64_pass_alone": fp64,
            "limit_seconds": card()[1].floor(8 * n * n, 2 * n * n * features.shape[1], torch.bfloat16),
        },
        "graph": {"ours": ours_graph, "cpu": theirs_graph, "faster": ratio(theirs_graph, ours_graph)},
        "dbscan": {"ours": ours_labels, "cpu": theirs_labels, "faster": ratio(theirs_labels, ours_labels)},
    }


def _graph(features: Tensor, neighbours: tuple[Tensor, Tensor]) -> sparse.spmatrix:
    return reid_fast.jaccard_graph(features, K1, K2, EPS, neighbours=neighbours)


def _check_graph(found: sparse.csr_matrix, expected: sparse.csr_matrix) -> None:
    """Stop unless the graphs agree but for pairs on the threshold, which `exp` may round to either side."""
    error = np.abs((found - expected).data)
    # A distance of 0 is stored too, so entries are compared by where they lie.
    only = (abs(found).sign() != abs(expected).sign()).multiply(found + expected)
    if np.any(error[error < EPS / 2] > 1e-5) or np.any(np.abs(only.data - EPS) > 1e-5):
        raise SystemExit(f"cluster: the graph differs from the CPU's at N = {found.shape[0]}")


def _flat(features: Tensor) -> Tensor:
    """[N, K1] int32 by plain products in fp32 and `topk`."""
    blocks = (torch.topk(rows @ features.T, K1).indices.int() for rows in features.split(_BLOCK))
    return torch.cat(list(blocks))
