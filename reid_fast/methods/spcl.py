"""Self-paced contrastive learning with a hybrid memory (Ge et al., NeurIPS 2020, arXiv 2006.02713).

Beside Cluster Contrast: the memory holds every picture and is what is clustered, so features are extracted once;
outliers train as classes of their own; and only pictures on which a tighter and a looser clustering agree stay
together. With `--source` the memory begins with a row per source identity.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from reid_fast import clustering
from reid_fast.config import Config
from reid_fast.data.images.batch import Batch
from reid_fast.data.sets.records import ImageSet
from reid_fast.labels.agree import radii, self_paced
from reid_fast.memories.memory import InstanceMemory
from reid_fast.methods.base import Extract, Method


class SelfPacedContrast(Method):
    """Memory and labels run over all pictures; some class numbers are unused."""

    adapts = True
    needs_radius = True
    defaults: ClassVar[dict[str, Any]] = {
        "iters": 400,
        "batch_size": 64,
        "num_instances": 4,
        "bn_group": 16,
        "momentum": 0.2,
        "eps_gap": 0.02,
    }
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "msmt17": {"iters": 800},
        "veri776": {"iters": 800},
        # From scratch the encoder outruns the rows, and radii 0.02 apart agree on less: a quarter more is set apart.
        "small": {"eps": 0.5, "eps_gap": 0.005, "refill": True},
    }

    def __init__(self, config: Config, train: ImageSet, source: ImageSet | None = None) -> None:
        super().__init__(config, train, source)
        self.radii = radii(config.eps, config.eps_gap)
        self.instances = InstanceMemory(self.encoder.width)
        self._features: Tensor | None = None  # of the last `loss`
        # Of the independence criterion: set in the first epoch, kept for the whole run.
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(torch.nan, dtype=torch.float64))

    def max_distance(self, epoch: int) -> float:
        return max(self.radii)

    def features(self, extract: Extract) -> Tensor:
        """The training pictures' rows of the memory, which the first epoch fills from the initial encoder.

        With `--refill` every epoch fills them, from the encoder of that time.
        """
        if self.config.refill or not len(self.instances.rows):
            self.instances.fill(torch.cat([self.source_centroids(extract), extract(self.model)]))
        return self.instances.rows[self.source_classes :]

    def labels(self, graph: sparse.csr_matrix, epoch: int) -> np.ndarray:
        """Clusters at three radii, then the reliability criteria: every picture gets a class."""
        clusterings = (clustering.dbscan(graph, radius, self.config.min_samples) for radius in self.radii)
        threshold = None if self.threshold.isnan() else self.threshold.item()
        labels, threshold = self_paced(*clusterings, threshold)
        self.threshold.fill_(threshold)
        return labels

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """The rows stay; their classes change."""
        S = self.source_classes
        self.instances.relabel(np.concatenate([np.arange(S), S + labels]))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Softmax over classes, each scored by the mean over its members."""
        x = self.encoder(batch.views[0])
        self._features = x.detach()
        return {"contrast": self.domains * self.instances.loss(x, self.rows(batch), self.config.temp)}

    def after_step(self, batch: Batch) -> None:
        self.instances.update(self._features, self.rows(batch), self.config.momentum)

    def rows(self, batch: Batch) -> Tensor:
        """[B] the memory's row of each picture: its own, or its identity's in the source."""
        own = batch.index < len(self.train_set)
        return torch.where(own, self.source_classes + batch.index, batch.labels)
