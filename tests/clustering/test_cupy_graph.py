"""Graphs on the device: equal to the host's, and the host's left where they are."""

import warnings

import numpy as np
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


# From one ranking host and device add the same terms in the same sequence, but exp may round differently (2 units in
# the last place on the device) and the host's dot product may not fuse: about 1e-6 of a distance.
ATOL = 2e-6


def in_a_gap(graph, near):
    """The middle of the widest gap between distances about `near`: there no rounding moves a pair across."""
    values = np.unique(graph.data.astype(np.float64))
    values = values[abs(values - near) < 0.05]
    if len(values) < 2:
        return near
    widest = np.argmax(np.diff(values))
    assert values[widest + 1] - values[widest] > 2 * ATOL
    return float(values[widest : widest + 2].mean())


def built_twice(rows, neighbours, k1, k2, max_distance):
    """The graph on the device, and the same on the host; both builds have the same bits."""
    device, again = (
        reid_fast.jaccard_graph(rows.cuda(), k1, k2, max_distance, neighbours=neighbours) for _ in range(2)
    )
    found, again = cupy_graph.on_host(device), cupy_graph.on_host(again)
    assert found.has_sorted_indices
    assert_equal(found, again)
    return device, found


def assert_equal(found, expected, atol=0.0):
    assert (found.indptr == expected.indptr).all()
    assert (found.indices == expected.indices).all()
    np.testing.assert_allclose(found.data, expected.data, rtol=0, atol=atol)


@pytest.mark.gpu
@pytest.mark.skipif(not _C.cuda, reason="_C was built without CUDA")
@pytest.mark.parametrize(
    ("n", "width", "k1", "k2"), [(1, 3, 1, 1), (50, 7, 20, 6), (3000, 64, 30, 6), (3000, 64, 9, 1)]
)
def test_device_and_host_agree(n, width, k1, k2):
    rows = torch.from_numpy(planted(n, width))
    neighbours = reid_fast.knn(rows, k1)
    every = reid_fast.jaccard_graph(rows, k1, k2, reid_fast.clustering.BELOW_ONE, neighbours=neighbours)
    limit = in_a_gap(every, 0.7)
    host = reid_fast.jaccard_graph(rows, k1, k2, limit, neighbours=neighbours)
    device, found = built_twice(rows, neighbours, k1, k2, limit)
    assert_equal(found, host, ATOL)
    for eps in (in_a_gap(every, near) for near in (0.4, 0.55)):
        assert (reid_fast.dbscan(device, eps) == reid_fast.dbscan(host, eps)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not _C.cuda, reason="_C was built without CUDA")
def test_device_and_host_agree_in_every_bit_where_all_cosines_are_one():
    rng = np.random.default_rng(0)
    labels = rng.integers(16, size=700)
    members = [np.flatnonzero(labels == label) for label in labels]
    others = [rng.choice(own[own != i], 19, replace=False) for i, own in enumerate(members)]
    index = np.concatenate([np.arange(700)[:, None], np.stack(others)], 1).astype(np.int32)
    rows, neighbours = torch.eye(16)[torch.from_numpy(labels)], (index, np.ones(index.shape, np.float32))
    device, found = built_twice(rows, neighbours, 20, 6, 0.9)
    assert_equal(found, reid_fast.jaccard_graph(rows, 20, 6, 0.9, neighbours=neighbours))
    for eps in (0.0, 0.5, 0.7, 0.9):
        assert (reid_fast.dbscan(device, eps) == reid_fast.dbscan(found, eps)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not _C.cuda, reason="_C was built without CUDA")
def test_graphs_cross_between_streams_and_lie_on_the_features_device():
    cupy = pytest.importorskip("cupy")
    rows = torch.from_numpy(planted(3000, 64))
    neighbours = reid_fast.knn(rows, 20)
    expected = reid_fast.dbscan(cupy_graph.on_host(reid_fast.jaccard_graph(rows.cuda(), 20, neighbours=neighbours)))
    for device in range(torch.cuda.device_count()):
        with (
            torch.cuda.stream(torch.cuda.Stream(device)),
            cupy.cuda.Device(device),
            cupy.cuda.Stream(non_blocking=True),
        ):
            graph = reid_fast.jaccard_graph(rows.to(f"cuda:{device}"), 20, neighbours=neighbours)
            assert graph.data.device.id == device
            scaled = graph * 1.0  # by CuPy, on its stream
            assert (reid_fast.dbscan(scaled) == expected).all()


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
