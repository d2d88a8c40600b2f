"""The clustering stage, features to labels: the published way beside ours, then the growth of what follows the kNN.

`python bench/cluster.py 4000000 [WIDTH]` prints that growth, and the approximate kNN, for one size.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from cluster_cuda import on_device
from planted import planted_features, planted_neighbours
from published import published_jaccard_distance
from report import Row, peak_mb, ratio, timed
from scipy import sparse
from sklearn.cluster import DBSCAN

import reid_fast
from reid_fast import _C
from reid_fast.clustering import knn_ivf
from reid_fast.clustering.dbscan import dbscan_ref
from reid_fast.clustering.jaccard import jaccard_graph_ref

K1, K2, EPS, MIN_SAMPLES = 30, 6, 0.6, 4
# Three dense float32 N×N matrices beyond this do not fit beside the rest of a small machine.
LARGEST_DENSE = 13_000


def cluster(smoke: bool) -> list[Row]:
    """Rows at the sizes of a small set, Market-1501 and MSMT17, and the growth run; on CUDA the device's stages."""
    if torch.cuda.is_available():
        return [on_device(n, 5) for n in ([1_000] if smoke else [12_936, 32_621])]
    sizes = [1_000] if smoke else [3_000, 12_936, 32_621]
    growth = [3_000, 10_000] if smoke else [10_000, 100_000, 1_000_000]
    return [_stages(n, 3 if smoke else 5) for n in sizes] + [_growth(n) for n in growth]


def _stages(n: int, runs: int) -> Row:
    features = planted_features(n)[0]
    rows = features.numpy()
    neighbours, ours_knn = timed(lambda: reid_fast.knn(features, K1), runs)
    (_, ranking), flat = timed(lambda: _faiss_search(rows), 1)
    same = [set(a) == set(b) for a, b in zip(neighbours[0].tolist(), ranking.tolist(), strict=True)]

    graph, ours_graph = timed(lambda: _graph(features, neighbours), runs)
    labels, ours_labels = timed(lambda: reid_fast.dbscan(graph, EPS, MIN_SAMPLES), runs)
    together, ours_both = timed(lambda: reid_fast.dbscan(_graph(features, neighbours), EPS, MIN_SAMPLES), runs)
    whole, ours_whole = timed(lambda: _whole(features), max(1, runs // 2))
    reference, theirs = _reference(rows, neighbours)
    for found in (labels, together, whole):
        if not np.array_equal(found, reference):
            raise SystemExit(f"cluster: labels differ from the reference's at N = {n}")

    row: Row = {"stage": "cluster", "n": n, "width": features.shape[1], "k1": K1, "k2": K2, "eps": EPS}
    row["clusters"], row["outliers"] = int(labels.max() + 1), int((labels < 0).sum())
    row["graph_entries"] = graph.nnz
    row["knn"] = {"ours": ours_knn, "faiss_flat": flat, "faster": ratio(flat, ours_knn)}
    if n <= LARGEST_DENSE:
        row["knn"]["seconds_by_kernel"] = {name: _seconds_with(rows, name) for name in _C.similarity_kernels()}
    row["knn"]["same_neighbour_sets"] = float(np.mean(same))
    # Half of the N×N products, for they are symmetric, at the rate of torch's bf16 product on the same cores.
    row["knn"]["limit_seconds"] = round(n * n * features.shape[1] / _bf16_rate(), 3)
    row["after_knn"] = {
        "ours": ours_both,
        "graph": ours_graph,
        "dbscan": ours_labels,
        "labels_equal": True,
        **theirs,
    }
    if "published_dense" in theirs:
        row["after_knn"]["faster"] = ratio(theirs["published_dense"], ours_both)
    row["whole"] = ours_whole
    row["peak_mb"] = {
        "knn": peak_mb(lambda: reid_fast.knn(features, K1)),
        "after_knn": peak_mb(lambda: reid_fast.dbscan(_graph(features, neighbours), EPS)),
        "whole": peak_mb(lambda: _whole(features)),
    }
    return row


def _graph(features: torch.Tensor, neighbours: tuple[torch.Tensor, torch.Tensor]) -> sparse.csr_matrix:
    return reid_fast.jaccard_graph(features, K1, K2, EPS, neighbours=neighbours)


def _whole(features: torch.Tensor) -> np.ndarray:
    return reid_fast.dbscan(reid_fast.jaccard_graph(features, K1, K2, EPS), EPS, MIN_SAMPLES)


def _reference(rows: np.ndarray, neighbours: tuple[torch.Tensor, torch.Tensor]) -> tuple[np.ndarray, Row]:
    """Labels by the published dense way where it fits, by the sparse literal reference elsewhere."""
    ranking = neighbours[0].numpy()
    if len(rows) > LARGEST_DENSE:
        graph, seconds = timed(lambda: jaccard_graph_ref(rows, K1, K2, EPS, neighbours=neighbours), 1)
        return dbscan_ref(graph, EPS, MIN_SAMPLES), {"sparse_reference": seconds}

    def labels() -> np.ndarray:
        distance = published_jaccard_distance(rows, ranking, K2)
        return DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed").fit(distance).labels_

    found, seconds = timed(labels, 1)
    return found, {"published_dense": seconds}


def _growth(n: int, width: int = 32, runs: int = 3) -> Row:
    features, *neighbours = planted_neighbours(n, K1, width)

    def labels() -> np.ndarray:
        return reid_fast.dbscan(_graph(features, neighbours), EPS, MIN_SAMPLES)

    found, seconds = timed(labels, runs)
    row = {"stage": "cluster growth", "n": len(features), "width": features.shape[1], "ours": seconds}
    return {**row, "clusters": int(found.max() + 1), "peak_mb": peak_mb(labels)}


def _approximate(n: int, width: int) -> Row:
    features, results = planted_features(n, width)[0], []

    def search() -> None:
        results.append(timed(lambda: knn_ivf(features, K1), 1))

    peak = peak_mb(search)
    (*_, recall), seconds = results[0]
    return {"stage": "approximate kNN", "n": n, "width": width, "ours": seconds, "recall": recall, "peak_mb": peak}


def _faiss_search(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return index.search(rows, K1)


def _seconds_with(rows: np.ndarray, kernel: str) -> float:
    return timed(lambda: _C.knn(rows, K1, 0, len(rows), kernel), 1)[1]["seconds"]


def _bf16_rate() -> float:
    """Operations a second of torch's bf16 matrix product."""
    square = torch.ones(2048, 2048, dtype=torch.bfloat16)
    square @ square
    _, seconds = timed(lambda: square @ square, 5)
    return 2 * 2048**3 / seconds["min"]


if __name__ == "__main__":
    n, width = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 128
    for measure in (lambda: _growth(n, width, 1), lambda: _approximate(n, width)):
        print(json.dumps(measure(), indent=1), flush=True)
