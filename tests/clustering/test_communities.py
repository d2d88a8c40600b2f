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
from reid_fast.clustering import knn
from reid_fast.clustering.communities import hdbscan, infomap, similarity_graph
from reid_fast.clustering.jaccard import BELOW_ONE
from reid_fast.errors import UserError


def people_and_strangers(people=12, images=10, noise=0.1, strangers=7, width=32, seed=0):
    """L2-normalised rows around some directions, strangers among them, and who is on each: -1 for strangers."""
    torch.manual_seed(seed)
    true = np.repeat(np.arange(people), images)
    rows = F.normalize(torch.randn(people, width))[true] + noise * torch.randn(len(true), width)
    shuffled = np.random.default_rng(seed).permutation(len(true) + strangers)
    rows = F.normalize(torch.cat([rows, torch.randn(strangers, width)]))[shuffled]
    return rows, np.concatenate([true, np.full(strangers, -1)])[shuffled]


def test_the_similarity_graph_links_near_images():
    rows, _ = people_and_strangers()
    graph = similarity_graph(knn(rows, 6), 0.5)
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
    rows, true = people_and_strangers()
    labels = infomap(similarity_graph(knn(rows, 15), 0.5), 5)
    assert labels.tolist() == infomap(similarity_graph(knn(rows, 15), 0.5), 5).tolist()
    assert adjusted_rand_score(true, labels) > 0.99
    assert (labels[true < 0] < 0).all()
    first = [np.flatnonzero(labels == label)[0] for label in range(labels.max() + 1)]
    assert first == sorted(first)


@needs_infomap
def test_infomap_leaves_small_communities_out():
    rows, true = people_and_strangers(images=4, strangers=0)
    assert (infomap(similarity_graph(knn(rows, 15), 0.5), 5) == -1).all()
    assert adjusted_rand_score(true, infomap(similarity_graph(knn(rows, 15), 0.5), 4)) > 0.99


@needs_infomap
@pytest.mark.filterwarnings("ignore:k = ")
def test_infomap_of_one_image_finds_nobody():
    rows, _ = people_and_strangers()
    assert infomap(similarity_graph(knn(rows[:1], 1), 0.5), 1).tolist() == [-1]


def test_a_missing_infomap_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "infomap", None)
    with pytest.raises(UserError, match=r"reid-fast\[infomap\]"):
        infomap(similarity_graph(knn(people_and_strangers()[0], 15), 0.5), 5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("min_samples", [2, 4])
def test_hdbscan_agrees_with_scikit_learn_on_all_distances(seed, min_samples):
    """Up to images whose reachability is equal on two sides: which of equal edges comes first decides on them."""
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


def alike(n):
    """The graph of n images that are all alike."""
    return reid_fast.jaccard_graph(torch.ones(n, 4) / 2, n, 1, BELOW_ONE)


def test_hdbscan_labels_every_one_of_images_that_are_all_alike():
    assert len(hdbscan(alike(20), 4, 5)) == 20


def test_hdbscan_of_too_few_images_finds_nobody():
    assert hdbscan(alike(3), 4, 5).tolist() == [-1] * 3
