"""Camera-aware proxies (Wang et al., AAAI 2021, arXiv 2012.10674).

Beside Cluster Contrast: the memory has a row per camera and cluster; each image is contrasted within its camera and,
from epoch 5 on, pulled to its cluster's proxies in all cameras and away from the hardest others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from reid_fast.data.images import Batch, Rule, View, class_uniform
from reid_fast.marks import Count, CountOrZero, Distance, Kept, NotNegative
from reid_fast.memories import CameraProxies, number_proxies
from reid_fast.methods.base import Method
from reid_fast.methods.settings import CameraSettings, CommunitySettings


@dataclass(frozen=True, kw_only=True)
class CapConfig(CameraSettings, CommunitySettings):
    """Camera-aware proxies."""

    iters: CountOrZero = 0
    batch_size: Count = 32
    num_instances: Count = 4
    bn_group: CountOrZero = 32
    eps: Distance = 0.5
    k1: Count = 20
    warmup_epochs: CountOrZero = 10
    warmup_factor: NotNegative = 0.01
    stem_relu: bool = False
    momentum: Kept = 0.2
    """share of the old proxy that an update keeps"""
    camera_epoch: CountOrZero = 5
    """epochs before the inter-camera contrast joins in"""


class CameraAwareProxies(Method):
    """Batches hold whole proxies, not clusters; both losses are sums over cameras of per-camera means, as published."""

    config: CapConfig

    def build(self) -> None:
        super().build()
        self.proxies = CameraProxies(self.encoder.width)

    @property
    def views(self) -> tuple[View, ...]:
        (view,) = super().views
        return (replace(view, erase_area=(0.02, 0.2), erase_aspect=(0.3, 3.0), erase_across=True),)

    @property
    def sampling_rule(self) -> Rule:
        return class_uniform

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        self.proxies.fill(features, labels, self.images.target.cams)

    def sampled_classes(self, labels: np.ndarray) -> np.ndarray:
        return number_proxies(labels, self.images.target.cams)[1]

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        return self.proxies.step(
            batch.gather(self.encoder(batch.views[0])),
            batch.labels,
            batch.cams,
            config.camera_temp,
            negatives=config.negatives,
            intra=True,
            inter=config.camera_weight if batch.epoch >= config.camera_epoch else 0.0,
            momentum=config.momentum,
        )
