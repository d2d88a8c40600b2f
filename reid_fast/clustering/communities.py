"""Clustering without DBSCAN: communities of a similarity graph (Infomap), a hierarchy of densities (HDBSCAN)."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy import sparse

from reid_fast.clustering.cupy_graph import on_host
from reid_fast.clustering.jaccard import Neighbours
from reid_fast.errors import UserError

_PROCESS = Path(__file__).with_name("infomap_process.py")  # as a file, for as a module it would import all of torch


def similarity_graph(neighbours: Neighbours, min_similarity: float) -> sparse.csr_matrix:
    """Directed links from each image to its nearest ones, weighted by cosine similarity.

    Args:
        neighbours: of each image, itself included, as `knn` returns them.
        min_similarity: an image less similar than this gets no link.

    Returns:
        [N, N] similarities without a diagonal.
    """
    index, similarity = (torch.as_tensor(part).numpy(force=True) for part in neighbours)
    linked = (similarity >= min_similarity) & (index != np.arange(len(index))[:, None])
    start = np.concatenate([[0], np.cumsum(linked.sum(1))])
    return sparse.csr_matrix((similarity[linked], index[linked], start), shape=(len(index), len(index)))


def infomap(graph: sparse.csr_matrix, min_cluster: int) -> np.ndarray:
    """Two-level communities of a directed graph (Rosvall and Bergstrom, PNAS 2008): labels [N] int64.

    Smaller communities than `min_cluster` are outliers, -1; the others are numbered by their first image.

    Raises:
        UserError: the package infomap is missing.
    """
    if find_spec("infomap") is None:
        raise UserError("--cluster infomap needs the extra: pip install 'reid-fast[infomap]'")
    row = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    if len(row) == 0:
        return np.full(graph.shape[0], -1)
    with TemporaryDirectory() as folder:
        links, found = f"{folder}/links.npy", f"{folder}/modules.npy"
        np.save(links, np.stack([row, graph.indices, graph.data], axis=1))
        command = [sys.executable, str(_PROCESS), links, found]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        node, module = np.load(found).T
    modules = np.full(graph.shape[0], -1)
    modules[node] = module
    return _numbered(modules, min_cluster)


def hdbscan(graph: sparse.csr_matrix, min_samples: int, min_cluster: int) -> np.ndarray:
    """Clusters of varying density (Campello et al., PAKDD 2013), by scikit-learn: labels [N] int64.

    Args:
        graph: [N, N] symmetric distances; pairs that are not stored lie at 1.
        min_samples: neighbours, itself included, that define a image's density.
        min_cluster: images of the smallest cluster.
    """
    from sklearn.cluster import HDBSCAN

    if graph.shape[0] <= max(min_samples, min_cluster):
        return np.full(graph.shape[0], -1)
    search = HDBSCAN(min_cluster_size=min_cluster, min_samples=min_samples, metric="precomputed", copy=False)
    return _numbered(search.fit(_connected(on_host(graph), min_samples)).labels_.astype(np.int64), 1)


def _connected(graph: sparse.csr_matrix, min_samples: int) -> sparse.csr_matrix:
    """Add as many of the pairs at distance 1 as scikit-learn needs: one component, `min_samples` in every row."""
    _, component = sparse.csgraph.connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    lonely = np.flatnonzero(np.diff(graph.indptr) < min_samples)
    row = np.concatenate([first[:-1], np.repeat(lonely, min_samples)])
    column = np.concatenate([first[1:], np.tile(np.arange(min_samples), len(lonely))])
    far = sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=graph.shape)
    # As closeness, 2 - distance, the larger one of a pair's two entries is right; a stored distance 0 would be no pair.
    closeness = graph.astype(np.float64)
    closeness.data = 2 - np.maximum(closeness.data, 1e-6)
    joined = closeness.maximum((far + far.T).sign()).tocsr()
    joined.data = 2 - joined.data
    return joined


def _numbered(clusters: np.ndarray, min_cluster: int) -> np.ndarray:
    """Labels by first appearance; clusters below `min_cluster`, and -1, become -1."""
    _, first, own, counts = np.unique(clusters, return_index=True, return_inverse=True, return_counts=True)
    kept = (counts >= min_cluster) & (clusters[first] >= 0)
    number = np.full(len(first), -1)
    number[np.flatnonzero(kept)[np.argsort(first[kept])]] = np.arange(kept.sum())
    return number[own]
