"""Approximate nearest neighbours for N beyond a million, through faiss's inverted lists."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from reid_fast.clustering.inputs import Features, clip_k, normalised_rows
from reid_fast.errors import UserError

# Beyond the k asked for: a row itself, which may come back anywhere or not at all.
_SPARE = 1


def knn_ivf(
    features: Features,
    k: int,
    *,
    lists: int | None = None,
    probes: int = 32,
    sample: int = 512,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The k nearest rows of each row among its `probes` nearest lists, and the share of the true ones found.

    Args:
        features: [N, D], any float type and strides; rows are divided by their norm here.
        k: neighbours of a row, itself included; more than N is clipped to N with a warning.
        lists: inverted lists; 4·√N unless given.
        probes: lists searched per row.
        sample: rows searched exactly as well, to measure the recall.
        seed: which rows those are.

    Returns:
        index [N, K] int32 and similarity [N, K] float32 as `knn`, and the recall (0..1) on the sample.
        A row with fewer than k rows in its lists is completed by an exact search.

    Raises:
        UserError: faiss is not installed.
        ValueError: k < 1, or a feature row that is zero or not finite (named).
    """
    faiss = _faiss()
    rows = np.ascontiguousarray(normalised_rows(features).cpu().numpy())
    n, width = rows.shape
    k = clip_k(k, n, "k")
    lists = min(n, lists or max(1, int(4 * n**0.5)))
    search = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    search.cp.min_points_per_centroid = 1
    search.train(rows)
    search.add(rows)
    search.nprobe = min(probes, lists)
    wanted = min(k + _SPARE, n)
    similarity, index = _self_first(search.search(rows, wanted), np.arange(n), k)

    exact = faiss.IndexFlatIP(width)
    exact.add(rows)
    short = np.flatnonzero((index < 0).any(axis=1))
    if len(short):
        similarity[short], index[short] = _self_first(exact.search(rows[short], wanted), short, k)
    tested = np.random.default_rng(seed).choice(n, min(sample, n), replace=False)
    _, truth = _self_first(exact.search(rows[tested], wanted), tested, k)
    found = [len(np.intersect1d(a, b)) for a, b in zip(index[tested], truth, strict=True)]
    return index.astype(np.int32), similarity, float(np.mean(found) / k)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise UserError("approximate search needs faiss: pip install faiss-cpu (or '.[gpu]')") from None
    return faiss


def _self_first(found: tuple[np.ndarray, np.ndarray], own: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's own entry moved, or put, into column 0; the rest stays in sequence; cut to k columns."""
    similarity, index = found
    others = index != own[:, None]
    column = np.argsort(~others, axis=1, kind="stable")[:, : k - 1]
    index = np.concatenate([own[:, None], np.take_along_axis(index, column, 1)], axis=1)
    similarity = np.concatenate([np.ones((len(own), 1), np.float32), np.take_along_axis(similarity, column, 1)], axis=1)
    return similarity, index
