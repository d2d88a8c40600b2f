"""Comparing two labelings of the same images by contingency counts: the relabelling of SpCL and CACL."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse

from reid_fast.clustering.cupy_graph import on_host
from reid_fast.errors import UserError

_ROWS = 1 << 16  # of the graph that are weighed at once


def outliers_apart(labels: np.ndarray) -> np.ndarray:
    """Each outlier (-1) a class of its own, numbered after the clusters in index order."""
    labels = labels.astype(np.int64)
    outlier = labels < 0
    labels[outlier] = labels.max(initial=-1) + 1 + np.arange(outlier.sum())
    return labels


def compared_eps(eps: float, gap: float) -> tuple[float, float, float]:
    """The eps of the three clusterings that are compared: (eps, tight, loose).

    Raises:
        UserError: one of them is no Jaccard distance.
    """
    if not 0 <= gap < min(eps, 1 - eps):
        raise UserError(f"--eps-gap {gap} leads out of 0..1 from --eps {eps}: lower it")
    return eps, eps - gap, eps + gap


def shared_counts(labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    """|A ∩ T| per image: how many images share both its classes. Labels [N], each ≥ 0."""
    pairs = labels * (other.max(initial=0) + 1) + other
    _, pair, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    return counts[pair]


def disagreement(labels: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 - |A ∩ T| / |A ∪ T| per image [N] float64: 0 where both labelings put it with the same images."""
    shared = shared_counts(labels, other)
    union = np.bincount(labels)[labels] + np.bincount(other)[other] - shared
    return 1 - shared / union


def self_paced(
    labels: np.ndarray, tight: np.ndarray, loose: np.ndarray, threshold: float | None = None
) -> tuple[np.ndarray, float]:
    """Self-paced relabelling: keep the images of reliable clusters, set the others apart.

    SpCL, Ge et al., NeurIPS 2020, §3.2.

    Args:
        labels: [N] DBSCAN labels at eps, -1 for outliers.
        tight: [N] the same at eps - gap.
        loose: [N] the same at eps + gap.
        threshold: θ of the first epoch; None measures it here.

    Returns:
        labels [N] int64, every image in a class, some numbers unused; and θ.
    """
    labels, tight, loose = outliers_apart(labels), outliers_apart(tight), outliers_apart(loose)
    compactness, independence = disagreement(labels, tight), disagreement(labels, loose)
    best_compactness = _class_minimum(compactness, labels)
    best_independence = _class_minimum(independence, labels)
    if threshold is None:
        ascending = np.sort(best_independence[np.bincount(labels) > 1])
        # Without a cluster every image is alone already and no threshold can matter.
        threshold = ascending[min(len(ascending) - 1, round(0.9 * len(ascending)))] if len(ascending) else 1.0
    keep = (best_independence[labels] <= threshold) & (compactness <= best_compactness[labels])
    return set_apart(labels, ~keep), float(threshold)


def refine(
    labels: np.ndarray,
    tight: np.ndarray,
    graph: sparse.csr_matrix,
    ratio: float = 1.0,
    norm: Literal["reference", "mean"] = "reference",
) -> np.ndarray:
    """Cluster refinement: set apart images whose tight sub-cluster lies far from its cluster.

    CACL, Li et al., TIP 2022, §3.3.

    Args:
        labels: [N] DBSCAN labels at eps, -1 for outliers.
        tight: [N] the same at the tight eps.
        graph: [N, N] Jaccard distances built at `reid_fast.clustering.jaccard.BELOW_ONE`: what it lacks lies at 1.
        ratio: keep an image iff ratio·D_T ≤ D_C.
        norm: "reference" divides each image's cross distances by its n² (the published code: it dissolves the
            larger part of a split cluster); "mean" takes the mean cross distance of the sub-cluster.

    Returns:
        labels [N] int64, every image in a class, some numbers unused.
    """
    if norm not in ("reference", "mean"):
        raise ValueError(f"norm must be reference or mean, not {norm!r}")
    labels, tight = outliers_apart(labels), outliers_apart(tight)
    size = np.bincount(labels)[labels]
    crossing = size + np.bincount(tight)[tight] - 2 * shared_counts(labels, tight)
    together, cross = _distance_sums(on_host(graph), labels, tight, size, crossing)
    cluster_distance = np.bincount(labels, together) / np.maximum(np.bincount(labels), 1) ** 2
    tight_distance: np.ndarray
    if norm == "reference":
        tight_distance = np.bincount(tight, cross / np.maximum(crossing, 1) ** 2)
    else:
        tight_distance = np.bincount(tight, cross) / np.maximum(np.bincount(tight, crossing), 1)
    return set_apart(labels, ratio * tight_distance[tight] > cluster_distance[labels])


def set_apart(labels: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The moved images as classes of their own, numbered after all classes in index order."""
    labels = labels.copy()
    labels[moved] = labels.max(initial=-1) + 1 + np.arange(moved.sum())
    return labels


def _class_minimum(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    minimum = np.full(labels.max(initial=-1) + 1, np.inf)
    np.minimum.at(minimum, labels, values)
    return minimum


def _distance_sums(
    graph: sparse.csr_matrix, labels: np.ndarray, tight: np.ndarray, size: np.ndarray, crossing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per image the distances of its `size` pairs of one label, and of its `crossing` pairs of which labels and tight
    labels say different things; pairs that the graph lacks count 1. A block of rows at a time.
    """
    sums = size.astype(np.float64), crossing.astype(np.float64)
    for top in range(0, len(labels), _ROWS):
        block, start = slice(top, top + _ROWS), graph.indptr[top : top + _ROWS + 1]
        row, entries = np.repeat(np.arange(len(start) - 1), np.diff(start)), slice(start[0], start[-1])
        distance, column = graph.data[entries], graph.indices[entries]
        same = labels[block][row] == labels[column]
        split = same ^ (tight[block][row] == tight[column])
        for total, chosen in zip(sums, (same, split), strict=True):
            near = np.bincount(row[chosen], distance[chosen], minlength=len(start) - 1)
            total[block] = near + total[block] - np.bincount(row[chosen], minlength=len(start) - 1)
    return sums
