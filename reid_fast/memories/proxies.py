"""A memory of camera proxies (Wang et al., CAP, AAAI 2021)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast import ops
from reid_fast.device import to_device
from reid_fast.memories.buffers import VaryingBuffers, label_means

_BITS = 32  # of a cluster's number beside its camera's
Pair = TypeVar("Pair", np.ndarray, Tensor)


class CameraProxies(VaryingBuffers):
    """An L2-normalised row per camera and cluster seen in it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.labels: Tensor
        self.spans: Tensor
        self.pairs: Tensor
        self.register_buffer("rows", torch.empty(0, width))  # [C, D], by camera, then by cluster
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))  # [C], the cluster of each row
        self.register_buffer("spans", torch.empty(0, 2, dtype=torch.int64))  # [cameras, 2], a camera's rows
        self.register_buffer("pairs", torch.empty(0, dtype=torch.int64))  # [C], camera and cluster as one, ascending

    def fill(self, features: Tensor, labels: np.ndarray, cams: np.ndarray) -> None:
        """Rebuild: the normalised mean of the features of each cluster in each camera.

        Args:
            features: [N, D], L2-normalised.
            labels: [N] int64 clusters; -1 is left out.
            cams: [N] int64 cameras, all known.
        """
        pairs, proxies = number_proxies(labels, cams)
        camera = np.arange(cams.max() + 1)
        spans = np.stack([np.searchsorted(pairs[:, 0], camera, side) for side in ("left", "right")], axis=1)
        self.rows = F.normalize(label_means(features, proxies))
        self.labels, self.spans, self.pairs = (
            to_device(array, features.device) for array in (pairs[:, 1].copy(), spans, _as_one(*pairs.T))
        )

    def rows_of(self, cams: Tensor, labels: Tensor) -> Tensor:
        """[B] the rows of clusters in cameras, both [B] int64; -1 where a cluster was not seen."""
        pair = _as_one(cams, labels)
        row = torch.searchsorted(self.pairs, pair).clamp(max=len(self.pairs) - 1)
        return torch.where(self.pairs[row] == pair, row, -1)

    def step(
        self,
        x: Tensor,
        labels: Tensor,
        cams: Tensor,
        temperature: float,
        *,
        negatives: int,
        intra: bool,
        inter: float,
        momentum: float | None,
    ) -> dict[str, Tensor]:
        """The contrasts of a batch with the rows as they are, which it then updates.

        Each is a sum over cameras of means over the camera's features, as published.

        Args:
            x: [B, D] L2-normalised features, or any for the inter-camera contrast alone.
            labels, cams: [B] int64, their clusters and cameras.
            temperature: τ.
            negatives: hard negatives of the inter-camera contrast.
            intra: contrast each feature with the proxies of its own camera.
            inter: weight of the contrast of its cluster's proxies in all cameras with the hardest others; 0: none.
            momentum: share of the old row that is kept, one feature after the other; None leaves the rows.

        Returns:
            The losses that were asked for, "intra" and "inter"; their gradients are those of the rows before.
        """
        row, weights, losses = self.rows_of(cams, labels), ops.camera_weights(cams), {}
        if intra:
            losses["intra"] = ops.cluster_nce(x, self.rows, row, temperature, spans=self.spans[cams], weights=weights)
        if inter:
            losses["inter"] = inter * ops.camera_nce(
                x, self.rows, self.labels, labels, temperature, negatives, weights=weights
            )
        if momentum is not None:
            ops.memory_update(self.rows, x.detach(), row, momentum)
        return losses


def number_proxies(labels: np.ndarray, cams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the pairs of camera and cluster that occur, by camera, then by cluster.

    Args:
        labels: [N] int64 clusters; -1 takes no part.
        cams: [N] int64 cameras.

    Returns:
        The pairs (camera, cluster) [C, 2], and the number of each image's pair [N], -1 where it has no cluster.
    """
    kept = labels >= 0
    pairs, number = np.unique(_as_one(cams[kept], labels[kept]), return_inverse=True)
    proxies = np.full(len(labels), -1)
    proxies[kept] = number
    return np.stack([pairs >> _BITS, pairs & (1 << _BITS) - 1], axis=1), proxies


def _as_one(cams: Pair, labels: Pair) -> Pair:
    """Pairs of camera and cluster as numbers in the same order."""
    return (cams << _BITS) + labels
