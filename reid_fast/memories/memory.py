"""Memories beyond one row a cluster: every picture (SpCL, CACL), every cluster in every camera (CAP, ICE)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_fast import ops


class VaryingBuffers(nn.Module):
    """Its own buffers have other shapes every epoch: loading takes the saved ones instead of refusing them."""

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def label_means(features: Tensor, labels: np.ndarray) -> Tensor:
    """[C, D] float32 mean of the [N, D] features of each label; -1 is left out."""
    kept = torch.from_numpy(np.flatnonzero(labels >= 0)).to(features.device)
    label = torch.from_numpy(labels).to(features.device)[kept]
    return ops.class_means(features[kept], label).means


class InstanceMemory(VaryingBuffers):
    """A unit row per training picture, kept for the whole run (Ge et al., SpCL, NeurIPS 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.labels: Tensor
        self.register_buffer("rows", torch.empty(0, width))  # [N, D]
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))  # [N], the class of each row
        # The running means of the classes drift by rounding, so they are saved, not computed again on resumption.
        self.register_buffer("means", torch.empty(0, width))  # [C, D]
        self.register_buffer("counts", torch.empty(0, dtype=torch.int64))  # [C]

    @property
    def classes(self) -> ops.ClassMeans:
        """The mean of each class, not normalised, and its size."""
        return ops.ClassMeans(self.means, self.counts)

    def fill(self, features: Tensor) -> None:
        """Take the [N, D] unit features of all pictures."""
        self.rows = features.clone()

    def relabel(self, labels: np.ndarray) -> None:
        """Take the [N] int64 classes of an epoch; numbers may be unused."""
        self.labels = torch.from_numpy(labels).to(self.rows.device)
        self.means, self.counts = ops.class_means(self.rows, self.labels)

    def loss(self, x: Tensor, index: Tensor, temperature: float, focal: float = 0.0) -> Tensor:
        """`ops.hybrid_nce` of features x [B, D] of the pictures `index` [B]."""
        return ops.hybrid_nce(x, self.rows, self.labels, index, temperature, focal, classes=self.classes)

    def update(self, x: Tensor, index: Tensor, momentum: float) -> None:
        """Blend unit rows x [B, D] into the rows `index` [B], one after the other."""
        ops.hybrid_update(self.rows, self.labels, self.classes, x, index, momentum)


class CameraProxies(VaryingBuffers):
    """A unit row per camera and cluster seen in it (Wang et al., CAP, AAAI 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.labels: Tensor
        self.register_buffer("rows", torch.empty(0, width))  # [C, D], by camera, then by cluster
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))  # [C], the cluster of each row
        self.register_buffer("spans", torch.empty(0, 2, dtype=torch.int64))  # [cameras, 2], a camera's rows
        self.register_buffer("places", torch.empty(0, 0, dtype=torch.int64))  # [cameras, clusters] -> row, or -1

    def fill(self, features: Tensor, labels: np.ndarray, cams: np.ndarray) -> None:
        """Rebuild: the unit mean of the unit features of each cluster in each camera.

        Args:
            features: [N, D].
            labels: [N] int64 clusters; -1 is left out.
            cams: [N] int64 cameras, all known.
        """
        pairs, proxies = camera_proxies(labels, cams)
        places = np.full((cams.max() + 1, labels.max() + 1), -1)
        places[pairs[:, 0], pairs[:, 1]] = np.arange(len(pairs))
        camera = np.arange(len(places))
        spans = np.stack([np.searchsorted(pairs[:, 0], camera, side) for side in ("left", "right")], axis=1)
        self.rows = F.normalize(label_means(features, proxies))
        self.labels, self.spans, self.places = (
            torch.from_numpy(array).to(features.device) for array in (pairs[:, 1].copy(), spans, places)
        )

    def within(self, x: Tensor, labels: Tensor, cams: Tensor, temperature: float) -> Tensor:
        """Contrast with the proxies of each feature's own camera: a sum over cameras of means over their features.

        Args:
            x: [B, D] features.
            labels, cams: [B] int64, their clusters and cameras.
            temperature: τ.
        """
        return ops.cluster_nce(
            x,
            self.rows,
            self.places[cams, labels],
            temperature,
            columns=self.spans[cams],
            weights=ops.camera_weights(cams),
        )

    def across(self, x: Tensor, labels: Tensor, cams: Tensor, temperature: float, negatives: int) -> Tensor:
        """Contrast of a cluster's proxies in all cameras with the hardest of others, summed as in `within`."""
        weights = ops.camera_weights(cams)
        return ops.camera_nce(x, self.rows, self.labels, labels, temperature, negatives, weights=weights)

    def update(self, x: Tensor, labels: Tensor, cams: Tensor, momentum: float) -> None:
        """Blend unit rows x [B, D] into the proxies of their clusters and cameras, one after the other."""
        ops.memory_update(self.rows, x, self.places[cams, labels], momentum)


def camera_proxies(labels: np.ndarray, cams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the pairs of camera and cluster that occur, by camera, then by cluster.

    Args:
        labels: [N] int64 clusters; -1 takes no part.
        cams: [N] int64 cameras.

    Returns:
        The pairs (camera, cluster) [C, 2], and the number of each picture's pair [N], -1 where it has no cluster.
    """
    kept = labels >= 0
    pairs, number = np.unique(np.stack([cams[kept], labels[kept]], axis=1), axis=0, return_inverse=True)
    proxies = np.full(len(labels), -1)
    proxies[kept] = number.reshape(-1)
    return pairs, proxies
