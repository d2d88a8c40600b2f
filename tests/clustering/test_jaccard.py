"""The k-reciprocal Jaccard graph: golden values, the literal reference on random inputs, bad input, threads, memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import planted, waves
from sklearn.metrics import adjusted_rand_score

import reid_fast
from reid_fast.clustering.jaccard import BELOW_ONE, jaccard_graph_ref


def dense(graph):
    distance = np.ones(graph.shape, np.float32)
    distance[np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr)), graph.indices] = graph.data
    return distance


@pytest.mark.parametrize("k1", [30, 20])
def test_golden_distances(golden, k1):
    distance = reid_fast.jaccard_distance(golden["features"], k1, 6)
    rows = golden[f"k{k1}_rows"]
    np.testing.assert_allclose(distance[rows], golden[f"k{k1}_rows_J"], rtol=0, atol=1e-5)
    assert distance.sum(dtype=np.float64) == pytest.approx(golden[f"k{k1}_sum"], rel=1e-8)
    assert (distance < 1).sum() == golden[f"k{k1}_below_1"]
    assert (distance <= 0.6).sum() == golden[f"k{k1}_below_0.6"]


@pytest.mark.parametrize("k1", [30, 20])
def test_golden_labels(golden, k1):
    graph = reid_fast.jaccard_graph(golden["features"], k1, 6, 0.62)
    for eps in (0.5, 0.58, 0.6, 0.62):
        labels = reid_fast.dbscan(graph, eps)
        assert adjusted_rand_score(golden[f"k{k1}_labels_{eps}"], labels) >= 0.995
    assert (reid_fast.dbscan(graph, 0.6) == golden[f"k{k1}_labels_0.6"]).all()


@pytest.fixture(params=[reid_fast.jaccard_graph, jaccard_graph_ref])
def waves_graph(request):
    return request.param(waves(), 8, 3, BELOW_ONE)


def test_distances_of_the_published_code(waves_graph):
    distance = dense(waves_graph)
    assert distance.sum(dtype=np.float64) == pytest.approx(3243.4479, abs=0.01)
    assert (distance < 1).sum() == waves_graph.nnz == 2292
    np.testing.assert_allclose(distance[0, 1:5], [0.21572, 0.20901, 0.19936, 0.20901], atol=1e-5)


def test_labels_of_the_published_code(waves_graph):
    expected = [[0] * 6, [1, -1, 1, 1, 1, 1], [2] * 6, [1] * 6, [3] * 6, [3] * 6, [4, 4, 4, 4, -1, 1]]
    expected += [[5, -1, 5, 5, 5, 5], [6] * 6, [7, -1, 7, 7, -1, 7]]
    assert reid_fast.dbscan(waves_graph, 0.5).reshape(10, 6).tolist() == expected


@pytest.mark.parametrize(("eps", "clusters", "outliers"), [(0.4, 9, 15), (0.5, 8, 5), (0.6, 7, 1)])
def test_clusters_and_outliers_of_the_published_code(waves_graph, eps, clusters, outliers):
    labels = reid_fast.dbscan(waves_graph, eps)
    assert (labels.max() + 1, (labels < 0).sum()) == (clusters, outliers)


@st.composite
def inputs(draw):
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = rng.normal(size=(n, draw(st.integers(1, 6))))
    kind = draw(st.sampled_from(["spread", "duplicates", "lattice", "one cluster", "isolated"]))
    if kind == "duplicates":
        rows = rows[rng.integers(max(1, n // 4), size=n)]
    elif kind == "lattice":
        rows = np.sign(rows)
    elif kind == "one cluster":
        rows = rows[:1] + 0.01 * rows
    elif kind == "isolated":
        rows[::3] *= -1
    k1 = draw(st.integers(1, 35))
    return rows, k1, draw(st.integers(1, k1)), draw(st.sampled_from([0.0, 0.3, 0.6, 0.75, BELOW_ONE]))


@settings(deadline=None, max_examples=300)
@given(inputs())
@pytest.mark.filterwarnings("ignore:k1 = ")
def test_random_inputs_against_the_literal_reference(case):
    rows, k1, k2, max_distance = case
    neighbours = reid_fast.knn(rows, min(k1, len(rows)))
    truth = dense(jaccard_graph_ref(rows, k1, k2, BELOW_ONE, neighbours=neighbours))
    graph = reid_fast.jaccard_graph(rows, k1, k2, max_distance, neighbours=neighbours)
    assert graph.dtype == np.float32
    assert graph.has_canonical_format
    found = dense(graph)
    assert (found == found.T).all()
    assert (found.diagonal() == 0).all()
    stored = found < 1
    assert (found[stored] <= np.float32(max_distance)).all()
    np.testing.assert_allclose(found[stored], truth[stored], rtol=0, atol=1e-5)
    assert (truth[~stored] > max_distance - 1e-5).all()


@pytest.mark.parametrize("threads", [2, 7])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, threads):
    rows = planted(3000, 32)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = reid_fast.jaccard_graph(rows)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    together = reid_fast.jaccard_graph(rows)
    for part in ("indptr", "indices", "data"):
        assert (getattr(alone, part) == getattr(together, part)).all()


def test_one_graph_serves_every_eps():
    rows = planted(1500, 32)
    graph = reid_fast.jaccard_graph(rows, max_distance=0.7)
    for eps in (0.4, 0.55, 0.7):
        alone = reid_fast.jaccard_graph(rows, max_distance=eps)
        assert (reid_fast.dbscan(graph, eps) == reid_fast.dbscan(alone, eps)).all()


def test_longer_rankings_and_wider_types_are_taken():
    rows = planted(300, 16)
    index, similarity = reid_fast.knn(rows, 40)
    graph = reid_fast.jaccard_graph(rows, 20, neighbours=(index.astype(np.int64), similarity.astype(np.float64)))
    assert (graph != reid_fast.jaccard_graph(rows, 20)).nnz == 0
    tensors = torch.from_numpy(index), torch.from_numpy(similarity)
    assert (graph != reid_fast.jaccard_graph(torch.from_numpy(rows), 20, neighbours=tensors)).nnz == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 1, 0.6), "k1 must be at least 1"),
        ((30, 0, 0.6), "k2 must lie in 1..k1"),
        ((30, 31, 0.6), "k2 must lie in 1..k1"),
        ((30, 6, 1.0), "max_distance"),
        ((30, 6, -0.1), "max_distance"),
        ((30, 6, np.nan), "max_distance"),
    ],
)
def test_arguments_out_of_range(arguments, text):
    for build in (reid_fast.jaccard_graph, jaccard_graph_ref):
        with pytest.raises(ValueError, match=text):
            build(planted(50, 8), *arguments)


def spoilt(row, column, value, part=0):
    neighbours = [part.copy() for part in reid_fast.knn(planted(50, 8), 10)]
    neighbours[part][row, column] = value
    return tuple(neighbours)


@pytest.mark.parametrize(
    ("neighbours", "text"),
    [
        (spoilt(9, 3, -1), "row 9 names -1, which does not exist"),
        (spoilt(9, 3, 50), "row 9 names 50, which does not exist"),
        (spoilt(9, 3, 9), "row 9 names 9 twice"),
        (spoilt(9, 0, 8), "row 9 does not begin with itself"),
        (spoilt(9, 4, np.nan, part=1), "row 9 holds a similarity that is no cosine"),
        (spoilt(9, 4, 3.5, part=1), "row 9 holds a similarity that is no cosine"),
    ],
)
def test_unsound_neighbours_are_named(neighbours, text):
    with pytest.raises(ValueError, match=text):
        reid_fast.jaccard_graph(planted(50, 8), 10, neighbours=neighbours)


@pytest.mark.parametrize(("shape", "similarity_shape"), [((40, 10), (40, 10)), ((50, 9), (50, 9)), ((50, 10), (50, 9))])
def test_neighbours_of_another_shape_are_refused(shape, similarity_shape):
    rows = planted(50, 8)
    index, similarity = reid_fast.knn(rows, 10)
    neighbours = index[: shape[0], : shape[1]], similarity[: similarity_shape[0], : similarity_shape[1]]
    with pytest.raises(ValueError, match=r"must be \[50, at least 10\]"):
        reid_fast.jaccard_graph(rows, 10, neighbours=neighbours)


def test_neighbours_of_another_type_are_refused():
    rows = planted(50, 8)
    _, similarity = reid_fast.knn(rows, 10)
    with pytest.raises(ValueError, match="need int32 and float32"):
        reid_fast.jaccard_graph(rows, 10, neighbours=(similarity, similarity))


def test_an_index_that_would_wrap_into_range_is_refused():
    rows = planted(50, 8)
    index, similarity = reid_fast.knn(rows, 10)
    with pytest.raises(ValueError, match="does not exist"):
        reid_fast.jaccard_graph(rows, 10, neighbours=(index.astype(np.int64) + 2**32, similarity))


def test_fewer_rows_than_neighbours():
    with pytest.warns(UserWarning, match="k1 = 30 neighbours asked of 5 rows"):
        graph = reid_fast.jaccard_graph(planted(5, 8))
    assert graph.shape == (5, 5)


def test_one_row_lies_at_no_distance_from_itself():
    with pytest.warns(UserWarning, match="k1 = 30"):
        assert reid_fast.jaccard_distance(planted(1, 8)).tolist() == [[0.0]]


def test_a_graph_beyond_the_memory_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(reid_fast.clustering.jaccard, "free_bytes", lambda device: 16 * 5_000_000)
    rows = planted(300, 8)[np.arange(30_000) % 300 * (np.arange(30_000) < 300)]  # row 0 and its duplicates, 299 others
    index = np.concatenate([np.arange(30_000)[:, None], np.tile([0, 1, 2, 3], (30_000, 1))], axis=1)
    index[:4, 1:] = [[1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 4]]
    neighbours = index.astype(np.int32), np.ones(index.shape, np.float32)
    with pytest.raises(
        reid_fast.errors.UserError, match=r"more than 5000000 entries, for 30000 rows have row [0-9]+ in"
    ):
        reid_fast.jaccard_graph(rows, 5, 5, neighbours=neighbours)
    few = tuple(part[:2000] for part in neighbours)
    assert reid_fast.jaccard_graph(rows[:2000], 5, 5, neighbours=few).nnz == 2000**2


def test_memory_grows_with_the_graph_and_not_with_its_square():
    script = """
import numpy as np, re, reid_fast
rng = np.random.default_rng(0)
rows = rng.normal(size=(1000, 64))[rng.integers(1000, size=20000)] + 0.5 * rng.normal(size=(20000, 64))
labels = reid_fast.dbscan(reid_fast.jaccard_graph(rows.astype(np.float32)))
# Not getrusage: its peak is inherited from the process that started this one.
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(labels.max() + 1, int(peak) / 1024)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    clusters, megabytes = map(float, run.stdout.split())
    assert clusters > 500
    assert 100 < megabytes < 1000
