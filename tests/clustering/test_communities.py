"""Infomap and HDBSCAN: planted clusters, scikit-learn on the dense matrix, outliers."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score

import reid_fast
from reid_fast.clustering.communities import hdbscan, infomap, similarity_graph
from reid_fast.clustering.jaccard import BELOW_ONE
from reid_fast.errors import UserError


def planted(people=12, pictures=10, noise=0.1, strangers=7, width=32, seed=0):
    """Unit rows around some directions, strangers among them, and who is on each: -1 for strangers."""
    torch.manual_seed(seed)
    true = np.repeat(np.arange(people), pictures)
    rows = F.normalize(torch.randn(people, width))[true] + noise * torch.randn(len(true), width)
    order = np.random.default_rng(seed).permutation(len(true) + strangers)
    rows = F.normalize(torch.cat([rows, torch.randn(strangers, width)]))[order]
    return rows, np.concatenate([true, np.full(strangers, -1)])[order]


def test_the_similarity_graph_links_near_pictures():
    rows, _ = planted()
    graph = similarity_graph(rows, 6, 0.5)
    cosine = (rows @ rows.T).numpy()
    for i in range(len(rows)):
        nearest = np.argsort(-cosine[i])[1:6]
        expected = sorted(j for j in nearest if cosine[i, j] >= 0.5)
        assert sorted(graph[i].indices.tolist()) == expected
        np.testing.assert_allclose(graph[i].toarray()[0, expected], cosine[i, expected], atol=1e-6)


needs_infomap = pytest.mark.skipif(find_spec("infomap") is None, reason="infomap is not installed")


@needs_infomap
def test_infomap_finds_planted_people():
    pytest.importorskip("faiss")  # in one process their bindings crash
    rows, true = planted()
    labels = infomap(similarity_graph(rows, 15, 0.5), 5)
    assert labels.tolist() == infomap(similarity_graph(rows, 15, 0.5), 5).tolist()
    assert adjusted_rand_score(true, labels) > 0.99
    assert (labels[true < 0] < 0).all()
    first = [np.flatnonzero(labels == label)[0] for label in range(labels.max() + 1)]
    assert first == sorted(first)


@needs_infomap
def test_infomap_leaves_small_communities_out():
    rows, true = planted(pictures=4, strangers=0)
    assert (infomap(similarity_graph(rows, 15, 0.5), 5) == -1).all()
    assert adjusted_rand_score(true, infomap(similarity_graph(rows, 15, 0.5), 4)) > 0.99
    assert (infomap(similarity_graph(rows[:1], 15, 0.5), 4) == -1).all()


def test_a_missing_infomap_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "infomap", None)
    with pytest.raises(UserError, match=r"reid-fast\[infomap\]"):
        infomap(similarity_graph(planted()[0], 15, 0.5), 5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("min_samples", [2, 4])
def test_hdbscan_agrees_with_scikit_learn_on_all_distances(seed, min_samples):
    """Up to pictures whose reachability is equal on two sides: the order of equal edges decides on them."""
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.normal(3 * centre, 0.2, (12, 2)) for centre in rng.normal(size=(9, 2))])
    distance = np.minimum(np.linalg.norm(points[:, None] - points, axis=-1), 1)
    np.fill_diagonal(distance, 0)
    near = np.where(distance < 1, distance + 1e-9, 0)  # a stored zero on the diagonal
    graph = sparse.csr_matrix(near)
    graph.data -= 1e-9
    assert sparse.csgraph.connected_components(graph)[0] > 1
    expected = HDBSCAN(5, min_samples=min_samples, metric="precomputed", copy=True).fit(distance).labels_
    labels = hdbscan(graph, min_samples, 5)
    assert labels.max() > 3
    assert adjusted_rand_score(expected, labels) > 0.97
    assert ((labels < 0) != (expected < 0)).mean() <= 0.02


def test_hdbscan_of_pictures_that_are_all_alike_or_too_few():
    same = torch.ones(20, 4) / 2
    graph = reid_fast.jaccard_graph(same, 20, 1, BELOW_ONE)
    assert len(hdbscan(graph, 4, 5)) == 20
    assert (hdbscan(reid_fast.jaccard_graph(same[:3], 3, 1, BELOW_ONE), 4, 5) == -1).all()
