"""Self-paced contrastive learning with a hybrid memory (Ge et al., NeurIPS 2020, arXiv 2006.02713).

Beside Cluster Contrast: the memory holds every image and is what is clustered, so features are extracted once;
outliers train as classes of their own; and only images on which a tighter and a looser clustering agree stay
together. With `--source` the memory begins with a row per source identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from reid_fast import clustering
from reid_fast.data.images import Batch
from reid_fast.labels.agree import compared_eps, self_paced
from reid_fast.marks import Count, CountOrZero
from reid_fast.memories import InstanceMemory
from reid_fast.methods.base import Extract, Method
from reid_fast.methods.settings import InstanceSettings, SourceSettings


@dataclass(frozen=True, kw_only=True)
class SpclConfig(InstanceSettings, SourceSettings):
    """Self-paced contrast."""

    iters: CountOrZero = 400
    batch_size: Count = 64
    num_instances: Count = 4
    bn_group: CountOrZero = 16


class SelfPacedContrast(Method):
    """Memory and labels run over all images; some class numbers are unused."""

    config: SpclConfig
    recipes: ClassVar = {
        "msmt17": {"iters": 800},
        "veri776": {"iters": 800},
        # From scratch the encoder outruns the rows, and eps 0.02 apart agree on less: a quarter more is set apart.
        "small": {"eps": 0.5, "eps_gap": 0.005, "refill": True},
    }

    def build(self) -> None:
        super().build()
        self.compared_eps = compared_eps(self.config.eps, self.config.eps_gap)
        self.memory = InstanceMemory(self.encoder.width)
        # Of the independence criterion: set in the first epoch, kept for the whole run.
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(torch.nan, dtype=torch.float64))

    def max_distance(self, epoch: int) -> float:
        return max(self.compared_eps)

    def extract_features(self, extract: Extract) -> Tensor:
        """The target's rows of the memory, which the first epoch fills from the initial encoder.

        With `--refill` every epoch fills them, from the encoder of that time. The source's rows stay: its images are
        encoded with their own BatchNorm in training, with the target's elsewhere.
        """
        if not len(self.memory.rows):
            self.memory.fill(torch.cat([self.source_centroids(extract), extract(self.model)]))
        elif self.config.refill:
            self.memory.fill(torch.cat([self.memory.rows[: self.images.source_classes], extract(self.model)]))
        return self.memory.rows[self.images.source_classes :]

    def assign_labels(self, graph: sparse.csr_matrix, epoch: int) -> np.ndarray:
        """Clusters at three eps, then the reliability criteria: every image gets a class."""
        labels, tight, loose = (clustering.dbscan(graph, eps, self.config.min_samples) for eps in self.compared_eps)
        threshold = None if self.threshold.isnan() else self.threshold.item()
        labels, threshold = self_paced(labels, tight, loose, threshold)
        self.threshold.fill_(threshold)
        return labels

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """The rows stay; their classes change."""
        S = self.images.source_classes
        self.memory.relabel(np.concatenate([np.arange(S), S + labels]))

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Softmax over classes, each scored by the mean over its members."""
        config, x = self.config, batch.gather(self.encoder(batch.views[0]))
        loss = self.memory.step(x, self.rows_of(batch), config.temp, config.momentum)
        return {"contrast": self.images.domains * loss}

    def rows_of(self, batch: Batch) -> Tensor:
        """[B] the memory's row of each image: its own, or its identity's in the source."""
        target = batch.index - self.images.first
        return torch.where(target >= 0, self.images.source_classes + target, batch.labels)
