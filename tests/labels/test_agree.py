"""Comparing labelings: the values computed by the published code and the limits of each rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inputs import waves
from scipy import sparse

import reid_fast
from reid_fast.clustering.jaccard import BELOW_ONE
from reid_fast.labels import agree
from reid_fast.labels.agree import disagreement, outliers_apart, refine, self_paced


@pytest.fixture(scope="module")
def clustered():
    """Computed by the published code: its graph, and its labels at eps .5, tight .4, loose .6."""
    graph = reid_fast.jaccard_graph(waves(), 8, 3, BELOW_ONE)
    return graph, *(reid_fast.dbscan(graph, eps) for eps in (0.5, 0.4, 0.6))


def test_self_paced_relabelling(clustered):
    _, labels, tight, loose = clustered
    before = outliers_apart(labels)
    after, threshold = self_paced(labels, tight, loose)
    assert before.max() + 1 == 13
    assert threshold == 0.5
    assert np.flatnonzero(after != before).tolist() == [6, 7, 18, 21, 27, 34, 40, 41, 55, 58]
    assert after[[6, 7, 58]].tolist() == [13, 14, 22]
    assert (np.bincount(after) > 1).sum() == 8
    assert self_paced(labels, tight, loose, threshold)[0].tolist() == after.tolist()


@pytest.mark.parametrize("rows", [7, agree._ROWS])
def test_refinement(clustered, rows, monkeypatch):
    monkeypatch.setattr(agree, "_ROWS", rows)
    graph, labels, tight, _ = clustered
    before = outliers_apart(labels)
    assert np.flatnonzero(refine(labels, tight, graph) != before).tolist() == [24, 25, 26, 28, 29]
    # D_T/D_C = .586372/.578796 = 1.0131 for the part that moves, .564184/.578796 for the rest of its cluster.
    assert (refine(labels, tight, graph, ratio=0.987) == before)[24:36].all()
    assert (refine(labels, tight, graph, ratio=1.025) == before)[[30, 31, 32, 33, 35]].all()
    assert (refine(labels, tight, graph, ratio=1.027) != before)[[30, 31, 32, 33, 35]].all()


def test_the_published_norm_dissolves_the_larger_part_and_the_mean_does_not():
    distance = np.full((20, 20), 0.5, np.float32)
    np.fill_diagonal(distance, 0)
    start = np.arange(21) * 20
    graph = sparse.csr_matrix((distance.ravel(), np.tile(np.arange(20), 20), start), shape=(20, 20))
    labels, tight = np.zeros(20, int), (np.arange(20) >= 15).astype(int)
    assert (refine(labels, tight, graph) != 0).tolist() == [True] * 15 + [False] * 5
    assert (refine(labels, tight, graph, norm="mean", ratio=0.9) == 0).all()


def test_an_unknown_norm_is_refused(clustered):
    graph, labels, tight, _ = clustered
    with pytest.raises(ValueError, match="reference or mean"):
        refine(labels, tight, graph, norm="median")


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4), st.integers(-1, 4)), min_size=1, max_size=40))
def test_counts_equal_the_literal_definition(columns):
    labels, tight, loose = map(outliers_apart, np.array(columns).T)
    same, same_tight = labels[:, None] == labels, tight[:, None] == tight
    expected = 1 - (same & same_tight).sum(1) / (same | same_tight).sum(1)
    np.testing.assert_allclose(disagreement(labels, tight), expected, atol=1e-15)
    after, threshold = self_paced(*np.array(columns).T)
    kept = after == labels
    moved = after[~kept]
    assert (moved == labels.max() + 1 + np.arange(len(moved))).all()
    independence = disagreement(labels, loose)
    for i in np.flatnonzero(kept):
        assert independence[labels == labels[i]].min() <= threshold


def test_no_image_gives_no_label():
    empty = np.array([], np.int64)
    assert self_paced(empty, empty, empty)[0].size == 0


def test_without_a_cluster_every_image_stays_alone():
    alone = np.full(4, -1)
    assert self_paced(alone, alone, alone)[0].tolist() == [0, 1, 2, 3]
