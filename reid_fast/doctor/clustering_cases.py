"""The clustering stages beside NumPy, SciPy and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reid_fast.clustering import dbscan, jaccard_graph, knn, knn_ivf
from reid_fast.clustering.compiled import search_by, similarity_kernels
from reid_fast.clustering.dbscan import dbscan_ref
from reid_fast.clustering.inputs import Features
from reid_fast.clustering.jaccard import jaccard_graph_ref

_N, _D, _K = 301, 67, 13


def clustering_cases(device: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """Names, and what says how far a stage is from what it should give, relative to the largest value."""
    rows = _planted()
    if device == "cpu":
        for kernel in similarity_kernels():
            yield f"knn by {kernel}", partial(_search, partial(search_by, kernel, k=_K), rows.numpy())
        yield "knn_ivf", partial(_search, lambda rows: knn_ivf(rows, _K)[:2], rows)
    else:
        yield "knn", partial(_search, partial(knn, k=_K), rows.to(device))
    yield "jaccard_graph", partial(_graph, rows.to(device))
    yield "dbscan", partial(_labels, rows.to(device))


def _planted() -> Tensor:
    """Rows in loose groups of seven."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(_N // 7 + 1, _D))[np.arange(_N) // 7] + 0.6 * rng.normal(size=(_N, _D))
    return torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def _search(search: Callable[[Any], tuple[Any, Any]], rows: Features) -> float:
    index, similarity = (torch.as_tensor(part).cpu().numpy() for part in search(rows))
    exact = torch.as_tensor(rows).cpu().double().numpy()
    exact = exact @ exact.T
    own = np.take_along_axis(exact, index.astype(np.int64), 1)
    best = -np.sort(-exact, axis=1)[:, :_K]
    return float(max(np.abs(own - best).max(), np.abs(similarity - own).max()))


def _graph(rows: Tensor) -> float:
    found = _dense(jaccard_graph(rows, _K, 4, 0.9))
    return float(np.abs(found - _dense(jaccard_graph_ref(rows.cpu(), _K, 4, 0.9))).max())


def _dense(graph: Any) -> np.ndarray:
    """1 - distance, 0 where nothing is stored."""
    host = graph.get() if hasattr(graph, "get") else graph
    host.data = 1 - host.data
    return host.toarray()


def _labels(rows: Tensor) -> float:
    """0 where all labels are equal, else 1."""
    graph = jaccard_graph_ref(rows.cpu(), _K, 4, 0.6)
    found = dbscan(jaccard_graph(rows, _K, 4, 0.6), 0.6, 4)
    return float((found != dbscan_ref(graph, 0.6, 4)).any())
