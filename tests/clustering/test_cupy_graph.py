"""Graphs on the device: equal to the host's, and the host's left where they are."""

import warnings

import pytest
import torch
from inputs import planted

import reid_fast
from reid_fast import _C
from reid_fast.clustering import cupy_graph


def test_a_graph_on_the_host_stays_there():
    graph = reid_fast.jaccard_graph(planted(60, 8))
    assert not cupy_graph.is_on_device(graph)
    assert cupy_graph.on_host(graph) is graph


@pytest.mark.gpu
@pytest.mark.skipif(not _C.cuda, reason="_C was built without CUDA")
@pytest.mark.parametrize(
    ("n", "width", "k1", "k2"), [(1, 3, 1, 1), (50, 7, 20, 6), (3000, 64, 30, 6), (3000, 64, 9, 1)]
)
def test_device_and_host_agree(n, width, k1, k2):
    rows = torch.from_numpy(planted(n, width))
    neighbours = reid_fast.knn(rows, k1)
    host = reid_fast.jaccard_graph(rows, k1, k2, 0.7, neighbours=neighbours)
    device = reid_fast.jaccard_graph(rows.cuda(), k1, k2, 0.7, neighbours=neighbours)
    again = cupy_graph.on_host(reid_fast.jaccard_graph(rows.cuda(), k1, k2, 0.7, neighbours=neighbours))
    found = cupy_graph.on_host(device)
    assert all((getattr(found, part) == getattr(again, part)).all() for part in ("indptr", "indices", "data"))
    assert found.has_sorted_indices
    assert abs(found - host).max() < 1e-5 or abs(found.nnz - host.nnz) <= 4
    for eps in (0.4, 0.55, 0.7):
        assert (reid_fast.dbscan(device, eps) == reid_fast.dbscan(found, eps)).all()


@pytest.mark.gpu
def test_a_build_without_cuda_clusters_on_the_cpu_and_says_so_once(monkeypatch):
    monkeypatch.setattr(_C, "cuda", False)
    cupy_graph.say_that_the_cpu_clusters.cache_clear()
    rows = torch.from_numpy(planted(300, 16))
    neighbours = reid_fast.knn(rows, 20)
    with pytest.warns(UserWarning, match="has no CUDA"):
        graph = reid_fast.jaccard_graph(rows.cuda(), 20, neighbours=neighbours)
    assert (graph != reid_fast.jaccard_graph(rows, 20, neighbours=neighbours)).nnz == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reid_fast.jaccard_graph(rows.cuda(), 20, neighbours=neighbours)
