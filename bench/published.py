"""Jaccard distance and re-ranking as the published code bases compute them: dense N×N matrices and loops over N.

Written for comparison from what they do; the sequence of work and the float32 arithmetic are theirs.
"""

from __future__ import annotations

import numpy as np


def published_jaccard_distance(rows: np.ndarray, ranking: np.ndarray, k2: int) -> np.ndarray:
    """[N, N] float32 distances of L2-normalised rows [N, D] from their ranking [N, k1]."""
    n, k1 = ranking.shape
    full = [_reciprocal(ranking, i, k1) for i in range(n)]
    half = [_reciprocal(ranking, i, min(round(k1 / 2) + 1, k1)) for i in range(n)]
    weights = np.zeros((n, n), np.float32)
    for i in range(n):
        expansion = full[i]
        for candidate in full[i]:
            if 3 * len(np.intersect1d(half[candidate], full[i])) > 2 * len(half[candidate]):
                expansion = np.append(expansion, half[candidate])
        expansion = np.unique(expansion)
        weight = np.exp(2 * (rows[expansion] @ rows[i]) - 2)
        weights[i, expansion] = weight / weight.sum()
    if k2 != 1:
        averaged = np.empty_like(weights)
        for i in range(n):
            averaged[i] = weights[ranking[i, :k2]].mean(axis=0)
        weights = averaged
    holders = [np.flatnonzero(weights[:, g]) for g in range(n)]
    distance = np.zeros((n, n), np.float32)
    for i in range(n):
        shared = np.zeros(n, np.float32)
        for g in np.flatnonzero(weights[i]):
            shared[holders[g]] += np.minimum(weights[i, g], weights[holders[g], g])
        distance[i] = 1 - shared / (2 - shared)
    return np.maximum(distance, 0, out=distance)


def _reciprocal(ranking: np.ndarray, i: int, k: int) -> np.ndarray:
    forward = ranking[i, :k]
    return forward[(ranking[forward, :k] == i).any(axis=1)]


def published_reranking(query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, share: float) -> np.ndarray:
    """[Q, G] float32 re-ranked distances of L2-normalised rows [Q, D] and [G, D], as published for evaluation."""
    rows = np.concatenate([query, gallery])
    original = np.square(2 - 2 * rows @ rows.T)
    original /= original.max(axis=1, keepdims=True)
    np.fill_diagonal(original, 0)
    ranking = np.argpartition(original, range(1, k1 + 1), axis=1)[:, : k1 + 1].copy()
    half = round(k1 / 2) + 1
    weights = np.zeros_like(original)
    for i in range(len(rows)):
        own = _reciprocal(ranking, i, k1 + 1)
        expansion = own
        for candidate in own:
            other = _reciprocal(ranking, candidate, half)
            if 3 * len(np.intersect1d(other, own)) > 2 * len(other):
                expansion = np.append(expansion, other)
        expansion = np.unique(expansion)
        weight = np.exp(-original[i, expansion])
        weights[i, expansion] = weight / weight.sum()
    original = original[: len(query), len(query) :].copy()
    if k2 != 1:
        weights = np.stack([weights[ranking[i, :k2]].mean(axis=0) for i in range(len(rows))])
    holders = [np.flatnonzero(weights[:, g]) for g in range(len(rows))]
    distance = np.zeros_like(original)
    for i in range(len(query)):
        shared = np.zeros(len(rows), np.float32)
        for g in np.flatnonzero(weights[i]):
            shared[holders[g]] += np.minimum(weights[i, g], weights[holders[g], g])
        distance[i] = 1 - (shared / (2 - shared))[len(query) :]
    return distance * (1 - share) + original * share
