"""Camera-aware proxies (Wang et al., AAAI 2021, arXiv 2012.10674).

Beside Cluster Contrast: the memory has a row per camera and cluster; each picture is contrasted within its camera and,
from epoch 5 on, pulled to its cluster's proxies in all cameras and away from the hardest others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from reid_fast.config import Config
from reid_fast.data.images.augmentation import View
from reid_fast.data.images.batch import Batch
from reid_fast.data.images.sampler import Rule, class_uniform
from reid_fast.data.sets.records import ImageSet
from reid_fast.memories.memory import CameraProxies, camera_proxies
from reid_fast.methods.base import Method


class CameraAwareProxies(Method):
    """Batches hold whole proxies, not clusters; both losses are sums over cameras of per-camera means, as published."""

    needs_cams = True
    defaults: ClassVar[dict[str, Any]] = {
        "iters": 0,
        "batch_size": 32,
        "num_instances": 4,
        "bn_group": 32,
        "eps": 0.5,
        "k1": 20,
        "momentum": 0.2,
        "warmup_epochs": 10,
        "warmup_factor": 0.01,
        "stem_relu": False,
    }
    recipes: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, config: Config, train: ImageSet, source: ImageSet | None = None) -> None:
        super().__init__(config, train, source)
        self.proxies = CameraProxies(self.encoder.width)
        self._features: Tensor | None = None  # of the last `loss`

    @property
    def views(self) -> tuple[View, ...]:
        (view,) = super().views
        return (replace(view, erase_area=(0.02, 0.2), erase_aspect=(0.3, 3.0), erase_across=True),)

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        self.proxies.fill(features, labels, self.train_set.cams)

    def plan(self, labels: np.ndarray, epoch: int, rule: Rule = class_uniform) -> np.ndarray:
        _, proxies = camera_proxies(labels, self.train_set.cams)
        return super().plan(proxies, epoch, rule)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        x = self.encoder(batch.views[0])
        self._features = x.detach()
        losses = {"intra": self.proxies.within(x, batch.labels, batch.cams, config.camera_temp)}
        if batch.epoch >= config.camera_epoch:
            inter = self.proxies.across(x, batch.labels, batch.cams, config.camera_temp, config.negatives)
            losses["inter"] = config.camera_weight * inter
        return losses

    def after_step(self, batch: Batch) -> None:
        self.proxies.update(self._features, batch.labels, batch.cams, self.config.momentum)
