"""Approximate nearest neighbours for N beyond a million: rows in lists of their like, near lists searched together."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from reid_fast import _C
from reid_fast.clustering.inputs import Features, clip_k, normalised_rows
from reid_fast.device import full_precision

_BLOCK = 1 << 14  # rows whose products with all centroids are held at once
_SAMPLED = 32  # rows of a list, about, that its centroid is learned from
_ROUNDS = 8  # of k-means
_LONGEST = 2  # length of a list, in average ones, beyond which it is cut up


def knn_ivf(
    features: Features,
    k: int,
    *,
    lists: int | None = None,
    probes: int = 128,
    sample: int = 512,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The k nearest rows of each row among the lists nearest to its own, and the share of the true ones found.

    Rows are put into lists by the most similar of some centroids (k-means). A list is searched together with the
    `probes` whose centroids are most similar to its own, and with those to which it is one of these: by the exact
    search of `reid_fast.knn`, which finds what there is to be found among these rows, ties as there. Then the
    neighbours of each row's neighbours are looked at as well (Dong et al., WWW 2011). Time: about
    N^1.5 · (probes / 3 + 2) · D multiplications; memory: half the features' size and 32·K bytes a row. The same bits
    for a seed on one machine.

    Args:
        features: [N, D], any float type and strides; rows are divided by their norm here.
        k: neighbours of a row, itself included; more than N is clipped to N with a warning.
        lists: how many; 2·√N unless given. One that is more than twice as long as the average is cut up.
        probes: lists that each is searched with, itself included; more where they hold less than k rows.
        sample: rows searched exactly as well, to measure the recall.
        seed: which rows those are, and which the centroids start from.

    Returns:
        index [N, K] int32 and similarity [N, K] float32 as `knn`, and the recall (0..1) on the sample.

    Raises:
        ValueError: k, lists, probes or sample below 1, a negative seed, or a feature row that is zero or not finite
            (named).
    """
    for name, number in (("lists", lists), ("probes", probes), ("sample", sample)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed}")
    rows = normalised_rows(features).cpu()
    n = len(rows)
    k = clip_k(k, n, "k")
    rng = np.random.default_rng(seed)
    if k == 1:
        index, similarity = _C.knn(rows.numpy(), k, 0, n)
        return index, similarity, 1.0
    lists = min(n, lists or max(1, int(2 * n**0.5)))
    with full_precision(rows.device):
        centroids = _centroids(rows, lists, rng)
        members, start, centroids = _in_lists(_nearest(rows, centroids), centroids)
        near = _near_lists(centroids, np.diff(start), probes, k)
        index, similarity = _C.knn_in_lists(rows.numpy(), k, members, start, near.indptr.astype(np.int64), near.indices)
        tested = np.sort(rng.choice(n, min(sample, n), replace=False))
        worst = _similarity_of_the_last(rows, tested, k)
    # Equally similar ones are as good: which of a crowd of equal rows are named is a matter of their numbers.
    return index, similarity, float((similarity[tested] >= worst[:, None] - 1e-6).mean())


def _centroids(rows: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """[count, D] L2-normalised means of a sample's parts, by k-means."""
    sample = rows[np.sort(rng.choice(len(rows), min(len(rows), _SAMPLED * count), replace=False))]
    centroids = sample[np.sort(rng.choice(len(sample), count, replace=False))].clone()
    for _ in range(_ROUNDS):
        sums = torch.zeros_like(centroids).index_add_(0, _nearest(sample, centroids), sample)
        norms = torch.linalg.vector_norm(sums, dim=1, keepdim=True)
        centroids = torch.where(norms > 0, sums / norms.clamp_min(1e-12), centroids)
    return centroids


def _nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """[N] the most similar centroid of each row."""
    return torch.cat([(block @ centroids.T).max(dim=1).indices for block in rows.split(_BLOCK)])


def _in_lists(own: Tensor, centroids: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Rows list by list [N] int32, where each list starts [lists + 1] int64, and its centroid: no list is empty, and
    none longer than `_LONGEST` average ones.
    """
    sizes = torch.bincount(own, minlength=len(centroids)).numpy()
    longest = -(-_LONGEST * len(own) // len(centroids))
    pieces = -(-sizes // longest)
    first = np.repeat(np.cumsum(pieces) - pieces, pieces)  # of each piece's list
    turn = np.arange(pieces.sum()) - first
    lengths = np.minimum(longest, np.repeat(sizes, pieces) - turn * longest)
    members = own.argsort(stable=True).int().numpy()
    return members, np.concatenate([[0], np.cumsum(lengths)]), centroids[np.repeat(np.arange(len(pieces)), pieces)]


def _near_lists(centroids: Tensor, sizes: np.ndarray, probes: int, k: int) -> sparse.csr_matrix:
    """[lists, lists] symmetric: which are searched together, each with itself, and with k rows at least."""
    count = len(centroids)
    closeness = centroids @ centroids.T
    closeness.fill_diagonal_(torch.inf)
    while True:
        probes = min(probes, count)
        nearest = closeness.topk(probes, dim=1).indices.int().numpy()
        ones = np.ones(nearest.size, np.int8)
        one_way = sparse.csr_matrix((ones, nearest.ravel(), np.arange(count + 1) * probes), shape=(count, count))
        near = one_way.maximum(one_way.T).tocsr()
        near.sort_indices()
        if probes == count or (near @ sizes).min() >= k:
            return near
        probes *= 2


def _similarity_of_the_last(rows: Tensor, tested: np.ndarray, k: int) -> np.ndarray:
    """[n] the similarity of the last of the k rows nearest to each of the tested ones, found among all."""
    best = torch.full((len(tested), k), -torch.inf)
    for block in rows.split(_BLOCK):
        best = torch.cat([best, rows[tested] @ block.T], dim=1).topk(k, dim=1).values
    return best[:, -1].numpy()
