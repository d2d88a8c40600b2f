"""Cluster-guided asymmetric contrastive learning (Li et al., IEEE TIP 2022, arXiv 2106.07846).

Beside Cluster Contrast: two networks with an instance memory each, one sees colour and the other grey; the first one's
predictor is drawn to the second one's features and class means; and clusters that come apart at a tighter radius are
refined.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from reid_fast import clustering
from reid_fast.clustering.jaccard import BELOW_ONE
from reid_fast.config import Config
from reid_fast.data.images.augmentation import View
from reid_fast.data.images.batch import Batch
from reid_fast.data.sets.records import ImageSet
from reid_fast.labels.agree import radii, refine
from reid_fast.memories.memory import InstanceMemory
from reid_fast.methods.base import Extract, Method
from reid_fast.models.norm import GroupedBatchNorm1d, set_bn_group


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
        """[B, D] -> [B, D] float32 unit rows."""
        z = self.linear(pooled)
        with torch.autocast(z.device.type, enabled=False):
            return F.normalize(self.norm(z.float()))


class AsymmetricContrast(Method):
    """The colour network and its memory are what is clustered, evaluated and exported."""

    needs_radius = True
    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 80,
        "iters": 400,
        "batch_size": 64,
        "num_instances": 4,
        "bn_group": 16,
        "momentum": 0.2,
        "eps_gap": 0.02,
        "eval_step": 5,
        "seed": 111,
    }
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        # As for SpCL: from scratch the encoder outruns the rows, and radii 0.02 apart agree on less.
        "small": {"eps": 0.5, "eps_gap": 0.005, "refill": True},
    }

    def __init__(self, config: Config, train: ImageSet, source: ImageSet | None = None) -> None:
        super().__init__(config, train, source)
        self.radii = radii(config.eps, config.eps_gap)[:2]
        self.grey_encoder = self.new_encoder()
        self.predictor = Predictor(self.encoder.width, config.bn_group)
        self.colour = InstanceMemory(self.encoder.width)
        self.grey = InstanceMemory(self.encoder.width)
        self._features: Tensor | None = None  # of the last `loss`, as are the grey ones
        self._grey_features: Tensor | None = None

    @property
    def views(self) -> tuple[View, ...]:
        (colour,) = super().views
        return colour, replace(colour, grey=True)

    def max_distance(self, epoch: int) -> float:
        """The refinement weighs all pairs of a cluster, however distant."""
        return BELOW_ONE

    def features(self, extract: Extract) -> Tensor:
        """The colour network's memory; the first epoch fills both memories, both from colour pictures.

        With `--refill` every epoch does.
        """
        if self.config.refill or not len(self.colour.rows):
            self.colour.fill(extract(self.encoder))
            self.grey.fill(extract(self.grey_encoder))
        return self.colour.rows

    def labels(self, graph: sparse.csr_matrix, epoch: int) -> np.ndarray:
        """Clusters, refined by a tighter clustering: every picture gets a class."""
        config = self.config
        labels, tight = (clustering.dbscan(graph, radius, config.min_samples) for radius in self.radii)
        return refine(labels, tight, graph, config.refine_ratio, config.refine_norm)

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """The rows stay; their classes change."""
        self.colour.relabel(labels)
        self.grey.relabel(labels)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Both networks against their own memories, and the predictor against the grey side."""
        config, index = self.config, batch.index
        pooled = self.encoder.pooled(batch.views[0])
        x, z = F.normalize(self.encoder.necked(pooled)), self.predictor(pooled)
        grey = self.grey_encoder(batch.views[1])
        self._features, self._grey_features = x.detach(), grey.detach()
        return {
            "colour": self.colour.loss(x, index, config.temp, config.focal),
            "grey": self.grey.loss(grey, index, config.temp, config.focal),
            "cluster": -F.cosine_similarity(self.grey.means[batch.labels], z).mean(),
            "instance": -F.cosine_similarity(self._grey_features, z).mean(),
        }

    def after_step(self, batch: Batch) -> None:
        self.colour.update(self._features, batch.index, self.config.momentum)
        self.grey.update(self._grey_features, batch.index, self.config.momentum)
