"""CAP with the memory of Cluster Contrast (Dai et al., ACCV 2022, arXiv 2103.11568).

Two memories: cluster prototypes with Cluster Contrast's loss and update, and CAP's camera proxies with theirs. Results
are published but no formula: the sum of the losses is this project's reading. `--no-intra` is the other one, which
leaves out CAP's contrast within a camera, as ICE does.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from reid_fast.config import Config
from reid_fast.data.images.batch import Batch
from reid_fast.data.sets.records import ImageSet
from reid_fast.memories.memory import CameraProxies
from reid_fast.methods.base import Method


class CameraAwareClusterContrast(Method):
    """Encoder, clustering, batches and schedule are Cluster Contrast's."""

    needs_cams = True
    defaults: ClassVar[dict[str, Any]] = {"camera_momentum": 0.2}

    def __init__(self, config: Config, train: ImageSet, source: ImageSet | None = None) -> None:
        super().__init__(config, train, source)
        self.proxies = CameraProxies(self.encoder.width)
        self._features: Tensor | None = None  # of the last `loss`

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        super().fill_memory(features, labels)
        self.proxies.fill(features, labels, self.train_set.cams)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        x = self.encoder(batch.views[0])
        self._features = x.detach()
        losses = self.contrast(x, batch)
        if config.intra:
            losses["intra"] = self.proxies.within(x, batch.labels, batch.cams, config.camera_temp)
        if batch.epoch >= config.camera_epoch:
            inter = self.proxies.across(x, batch.labels, batch.cams, config.camera_temp, config.negatives)
            losses["inter"] = config.camera_weight * inter
        return losses

    def after_step(self, batch: Batch) -> None:
        self.proxies.update(self._features, batch.labels, batch.cams, self.config.camera_momentum)
