"""DBSCAN on a graph against scikit-learn's, label for label."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import reid_fast
from reid_fast import _C
from reid_fast.clustering import reporting
from reid_fast.clustering.dbscan import dbscan_ref


def random_graph(n, edges, seed, levels=11):
    """Symmetric distances on a coarse grid, so that eps is hit exactly."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(n, size=(2, edges))
    lower = np.full((n, n), np.inf, np.float32)
    lower[np.maximum(a, b), np.minimum(a, b)] = rng.integers(levels, size=edges) / np.float32(levels - 1)
    full = np.minimum(lower, lower.T)
    np.fill_diagonal(full, 0)
    row, column = np.nonzero(full < np.inf)
    return sparse.csr_matrix((full[row, column], (row, column)), shape=(n, n))


@settings(deadline=None, max_examples=200)
@given(
    n=st.integers(1, 60),
    edges=st.integers(0, 250),
    seed=st.integers(0, 2**32 - 1),
    eps=st.sampled_from([0.0, 0.3, 0.5, 0.6, 1.0]),
    min_samples=st.integers(1, 7),
    wide=st.booleans(),
)
def test_labels_are_those_of_scikit_learn(n, edges, seed, eps, min_samples, wide):
    graph = random_graph(n, edges, seed)
    if wide:
        graph = graph.astype(np.float64)
        graph.indptr, graph.indices = graph.indptr.astype(np.int64), graph.indices.astype(np.int64)
    labels = reid_fast.dbscan(graph, eps, min_samples)
    assert labels.dtype == np.int64
    assert (labels == dbscan_ref(graph, eps, min_samples)).all()


def test_a_long_chain():
    n = 100_000
    chain = sparse.diags_array([np.ones(n - 1), np.full(n, 1e-9), np.ones(n - 1)], offsets=[-1, 0, 1], format="csr")
    assert (reid_fast.dbscan(chain, 1.0, 3) == 0).all()
    assert (reid_fast.dbscan(chain, 0.5, 1) == np.arange(n)).all()


@pytest.mark.parametrize(
    ("graph", "eps", "min_samples", "text"),
    [
        (np.eye(3), 0.5, 4, "square SciPy sparse matrix"),
        (sparse.csr_matrix((3, 4)), 0.5, 4, "square SciPy sparse matrix"),
        (sparse.csr_matrix((3, 3)), -0.1, 4, "eps must not be negative"),
        (sparse.csr_matrix((3, 3)), np.nan, 4, "eps must not be negative"),
        (sparse.csr_matrix((3, 3)), 0.5, 0, "min_samples must be at least 1"),
    ],
)
def test_bad_input(graph, eps, min_samples, text):
    with pytest.raises(ValueError, match=text):
        reid_fast.dbscan(graph, eps, min_samples)


@pytest.mark.parametrize(
    ("start", "index", "text"),
    [
        ([0, 1, 3], [0, 1], "ascend"),
        ([0, 2, 1], [0], "ascend"),
        ([1, 1, 2], [0, 1], "ascend"),
        ([0, 1, 2], [0, 2], "does not exist"),
        ([0, 1, 2], [0, -1], "does not exist"),
        ([0, 1, 2], [0, 1, 1], "one length"),
    ],
)
def test_an_unsound_graph_is_refused(start, index, text):
    data = np.zeros(len(index) - (text == "one length"), np.float32)
    with pytest.raises(ValueError, match=text):
        _C.dbscan(np.array(start, np.int32), np.array(index, np.int32), data, 0.5, 4)


def test_it_says_how_far_it_is_and_ends_by_what_that_raises():
    n = 1_500
    graph = sparse.csr_matrix(np.zeros((n, n), np.float32) + 0.5)
    told = []
    with reporting(lambda *step: told.append(step)):
        assert not reid_fast.dbscan(graph).any()
    assert told[0] == (0, 2 * n * n)
    assert told == sorted(told)

    def fails(done, total):
        raise KeyError("the watcher's own")

    with pytest.raises(KeyError, match="the watcher's own"), reporting(fails):
        reid_fast.dbscan(graph)
