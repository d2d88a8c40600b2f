"""k-reciprocal re-ranking of a gallery (Zhong et al., CVPR 2017), without a matrix of all pairs."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from reid_fast import _C
from reid_fast.clustering.inputs import Features, normalised_rows
from reid_fast.clustering.knn import knn
from reid_fast.device import full_precision
from reid_fast.metrics import queries_at_once
from reid_fast.ranks import ALONE, Ranks

_ROWS = 1024  # of which a GPU forms all products at once
_EQUAL = 1e-6  # rows whose cosines are all this close to 1 differ by rounding; so in csrc/rows.h


class Reranking:
    """Re-ranked distances of queries to a gallery, made for some queries at a time."""

    def __init__(
        self, query: Tensor, gallery: Tensor, smallest: Tensor, weights: sparse.csr_matrix, share: float
    ) -> None:
        """
        Args:
            query, gallery: [Q, D] and [G, D] L2-normalised rows, float32, on one device.
            smallest: [Q] each query's smallest cosine with a query or an image of the gallery, on that device.
            weights: [Q + G, Q + G] float32, W of the queries and then of the gallery.
            share: λ, of the original distance.
        """
        self._query, self._gallery, self._share = query, gallery, share
        largest = 1 - smallest[:, None]
        self._scale = share**0.5 / torch.where(largest > _EQUAL, largest, torch.inf)
        self._rows = _arrays(weights[: len(query)])
        self._columns = _arrays(weights[len(query) :].tocsc())

    def __len__(self) -> int:
        """The number of queries."""
        return len(self._query)

    def distances(self, rows: slice) -> Tensor:
        """[b, G] float32 on the features' device: of queries [rows.start, rows.stop) to the whole gallery."""
        begin, end, _ = rows.indices(len(self))
        end = max(begin, end)
        jaccard = torch.from_numpy(_C.jaccard_rows(*self._rows, *self._columns, begin, end, len(self._gallery)))
        scale = self._scale[begin:end]
        with full_precision(scale.device):  # √λ·(cos - 1) / largest, in one pass over the products
            root = torch.addmm(-scale, scale * self._query[begin:end], self._gallery.T)
        return jaccard.to(root.device).mul_(1 - self._share).addcmul_(root, root)

    def nearest(self, k: int, progress: Callable[[int, int], None] | None = None) -> tuple[Tensor, Tensor]:
        """The first k of each query's ranking.

        Args:
            k: at least 1; more than G is G.
            progress: called with (queries done, queries in all).

        Returns:
            index [Q, k] int64 into the gallery and distance [Q, k] float32, nearest first, the lower index on ties; on
            the features' device.
        """
        k = min(k, len(self._gallery))
        index = torch.empty(len(self), k, dtype=torch.int64, device=self._query.device)
        distance = torch.empty(len(self), k, device=self._query.device)
        block = queries_at_once(len(self._gallery))
        for start in range(0, len(self), block):
            rows = slice(start, min(start + block, len(self)))
            ordered, order = self.distances(rows).sort(dim=1, stable=True)
            distance[rows], index[rows] = ordered[:, :k], order[:, :k]
            if progress is not None:
                progress(rows.stop, len(self))
        return index, distance


def rerank(
    query: Features,
    gallery: Features,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    *,
    say: Callable[[str], None] = lambda stage: None,
    ranks: Ranks = ALONE,
) -> Reranking:
    """Prepare the re-ranked distances (1 - λ)·J + λ·d of queries to a gallery, as published for evaluation.

    Queries and gallery are ranked together, N = Q + G. d_ij = ((1 - cos_ij) / (1 - min_g cos_ig))² is the squared
    distance squared once more and divided by the row's largest, as the published code has it. J is the Jaccard
    distance of `jaccard_graph` with two differences: a ranking has k1 neighbours beside the row itself, and the
    weights are exp(-d). Where all rows are equal d is 0. Memory grows with N·(D + k1), time with N²·D.

    Args:
        query: [Q, D], any float type, strides and device; rows are divided by their norm here.
        gallery: [G, D]; the work is done on its device, steps 2 to 7 of docs/clustering.md on the CPU.
        k1: neighbours of a row in the k-reciprocal sets, itself not included; of fewer all others are
            taken, with a warning.
        k2: rows averaged by query expansion, the row itself included; 1 turns it off.
        lambda_: λ in [0, 1], the share of the original distance.
        say: is told what begins.
        ranks: share the search; the first one makes the weights. All of them call this with the same features.

    Raises:
        ValueError: k1 < 1, k2 outside 1..k1 + 1, λ outside [0, 1], shapes that do not fit, or a bad feature row.
    """
    if k1 < 1:
        raise ValueError(f"k1 must be at least 1, not {k1}")
    if not 1 <= k2 <= k1 + 1:
        raise ValueError(f"k2 must lie in 1..k1 + 1 = {k1 + 1}, not {k2}")
    if not 0 <= lambda_ <= 1:
        raise ValueError(f"lambda_ must lie in [0, 1], not {lambda_}")
    queries = len(query)
    rows = _together(query, gallery)
    columns, half = min(k1 + 1, len(rows)), min(round(k1 / 2) + 1, len(rows))
    if columns <= k1:
        warnings.warn(f"k1 = {k1} neighbours asked of {len(rows)} rows: each has {columns - 1}", stacklevel=2)
    say(f"neighbours and largest distances of {len(rows):,} images")
    index, similarity, smallest = _neighbours_and_smallest(rows, columns, ranks)
    say(f"k-reciprocal sets of {len(rows):,} images")

    def weights() -> sparse.csr_matrix:
        ranking = index.numpy(force=True), similarity.numpy(force=True)
        start, member, value = _C.reranking_weights(
            rows.numpy(force=True), *ranking, smallest.numpy(force=True), half, min(k2, columns)
        )
        return sparse.csr_matrix((value, member, start), shape=(len(rows), len(rows)))

    made = ranks.from_first(weights)
    return Reranking(rows[:queries], rows[queries:], smallest[:queries], made, lambda_)


def _arrays(matrix: sparse.csr_matrix | sparse.csc_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, indices and values, of the types that `_C` takes."""
    return matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data


def _together(query: Features, gallery: Features) -> Tensor:
    """[Q + G, D] L2-normalised rows, float32, on the gallery's device."""
    first, last = normalised_rows(query), normalised_rows(gallery)
    if first.shape[1] != last.shape[1]:
        raise ValueError(f"query features have {first.shape[1]} columns, gallery features {last.shape[1]}")
    return torch.cat([first.to(last.device), last])


def _neighbours_and_smallest(rows: Tensor, k: int, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Ranking [N, k] and similarity [N, k] of `knn`, and each row's smallest cosine [N] with any, on their device."""
    shares = ranks.shares(len(rows))
    own = shares[ranks.rank]
    smallest = torch.empty(len(rows), device=rows.device)
    if rows.is_cuda:
        index, similarity = knn(rows, k, group=ranks.group)
        with full_precision(rows.device):
            for part, out in zip(rows[own].split(_ROWS), smallest[own].split(_ROWS), strict=True):
                torch.amin(part @ rows.T, 1, out=out)
    else:
        index, similarity = torch.empty(len(rows), k, dtype=torch.int32), torch.empty(len(rows), k)
        found = _C.knn_and_farthest(rows.numpy(), k, own.start, own.stop)
        for part, mine in zip((index, similarity, smallest), found, strict=True):
            part[own] = torch.from_numpy(mine)
        ranks.complete(index, shares)
        ranks.complete(similarity, shares)
    ranks.complete(smallest, shares)
    return index, similarity, smallest
