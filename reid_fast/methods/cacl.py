"""Cluster-guided asymmetric contrastive learning (Li et al., IEEE TIP 2022, arXiv 2106.07846).

Beside Cluster Contrast: two networks with an instance memory each, one sees colour and the other grey; the first one's
predictor is drawn to the second one's features and class means; and clusters that come apart at a tighter radius are
refined.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from reid_fast import clustering
from reid_fast.data.images import Batch, View
from reid_fast.labels.agree import compared_eps, refine
from reid_fast.marks import Count, CountOrZero, NotNegative, Seed
from reid_fast.memories import InstanceMemory
from reid_fast.methods.base import Extract, Method
from reid_fast.methods.settings import InstanceSettings
from reid_fast.models.norm import GroupedBatchNorm1d, set_bn_group


@dataclass(frozen=True, kw_only=True)
class CaclConfig(InstanceSettings):
    """Two networks and cluster refinement."""

    epochs: Count = 80
    iters: CountOrZero = 400
    batch_size: Count = 64
    num_instances: Count = 4
    bn_group: CountOrZero = 16
    eval_step: Count = 5
    seed: Seed = 111
    focal: NotNegative = 4.0
    """exponent of the focal weight (4 in the published code, 2 in the paper)"""
    refine_ratio: NotNegative = 1.0
    """a tight sub-cluster stays in its cluster while ratio × its distance is at most the cluster's"""
    refine_norm: Literal["reference", "mean"] = "reference"
    """that distance as in the published code, which dissolves the larger part of a split cluster, or the mean"""


class Predictor(nn.Module):
    """A linear layer and BatchNorm behind the pooled features of the colour network."""

    def __init__(self, width: int, bn_group: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(self.linear.weight, mode="fan_out")
        nn.init.zeros_(self.linear.bias)
        self.norm = GroupedBatchNorm1d(width)
        self.norm.bias.requires_grad_(False)
        set_bn_group(self, bn_group)

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, D] -> [B, D] float32 L2-normalised rows."""
        z = self.linear(pooled)
        with torch.autocast(z.device.type, enabled=False):
            return F.normalize(self.norm(z.float()))


class AsymmetricContrast(Method):
    """The colour network and its memory are what is clustered, evaluated and exported."""

    config: CaclConfig
    recipes: ClassVar = {
        # As for SpCL: from scratch the encoder outruns the rows, and eps 0.02 apart agree on less.
        "small": {"eps": 0.5, "eps_gap": 0.005, "refill": True},
    }

    def build(self) -> None:
        super().build()
        self.compared_eps = compared_eps(self.config.eps, self.config.eps_gap)[:2]
        self.grey_encoder = self.new_encoder()
        self.predictor = Predictor(self.encoder.width, self.config.bn_group)
        self.colour = InstanceMemory(self.encoder.width)
        self.grey = InstanceMemory(self.encoder.width)

    @property
    def views(self) -> tuple[View, ...]:
        (colour,) = super().views
        return colour, replace(colour, grey=True)

    def max_distance(self, epoch: int) -> float:
        """The refinement weighs all pairs of a cluster, however distant."""
        return clustering.BELOW_ONE

    def extract_features(self, extract: Extract) -> Tensor:
        """The colour network's memory; the first epoch fills both memories, both from colour images.

        With `--refill` every epoch does.
        """
        if self.config.refill or not len(self.colour.rows):
            self.colour.fill(extract(self.encoder))
            self.grey.fill(extract(self.grey_encoder))
        return self.colour.rows

    def assign_labels(self, graph: sparse.csr_matrix, epoch: int) -> np.ndarray:
        """Clusters, refined by a tighter clustering: every image gets a class."""
        config = self.config
        labels, tight = (clustering.dbscan(graph, eps, config.min_samples) for eps in self.compared_eps)
        return refine(labels, tight, graph, config.refine_ratio, config.refine_norm)

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """The rows stay; their classes change."""
        self.colour.relabel(labels)
        self.grey.relabel(labels)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Both networks against their own memories, and the predictor against the grey side."""
        config, index = self.config, batch.index
        how = config.temp, config.momentum, config.focal
        pooled = self.encoder.pooled(batch.views[0])
        x = batch.gather(F.normalize(self.encoder.necked(pooled)))
        z = batch.gather(self.predictor(pooled))
        grey = batch.gather(self.grey_encoder(batch.views[1]))
        means = self.grey.means[batch.labels]  # as they are before the step
        return {
            "colour": self.colour.step(x, index, *how),
            "grey": self.grey.step(grey, index, *how),
            "cluster": -F.cosine_similarity(means, z).mean(),
            "instance": -F.cosine_similarity(grey.detach(), z).mean(),
        }
