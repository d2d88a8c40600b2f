"""CAP with the memory of Cluster Contrast (Dai et al., ACCV 2022, arXiv 2103.11568).

Two memories: cluster prototypes with Cluster Contrast's loss and update, and CAP's camera proxies with theirs. Results
are published but no formula: the sum of the losses is this project's reading. `--no-intra` is the other one, which
leaves out CAP's contrast within a camera, as ICE does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from reid_fast.config import Overlay
from reid_fast.data.images import Batch
from reid_fast.marks import CountOrZero, Kept
from reid_fast.memories import CameraProxies
from reid_fast.methods.base import PrototypeContrast
from reid_fast.methods.settings import CameraSettings, CommunitySettings, UpdateSettings


@dataclass(frozen=True, kw_only=True)
class CapCcConfig(UpdateSettings, CameraSettings, CommunitySettings):
    """Two memories."""

    camera_momentum: Kept = 0.2
    """share of the old camera proxy that an update keeps"""
    camera_epoch: CountOrZero = 5
    """epochs before the inter-camera contrast joins in"""
    intra: bool = True
    """contrast within each camera too"""


class CameraAwareClusterContrast(PrototypeContrast):
    """Encoder, clustering, batches and schedule are Cluster Contrast's."""

    config: CapCcConfig
    recipes: ClassVar[Mapping[str, Overlay]] = {
        **PrototypeContrast.recipes,
        "vit": {**PrototypeContrast.recipes["vit"], "update": "hard"},
    }

    def build(self) -> None:
        super().build()
        self.proxies = CameraProxies(self.encoder.width)

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        super().fill_memory(features, labels)
        self.proxies.fill(features, labels, self.images.target.cams)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        config, x = self.config, batch.gather(self.encoder(batch.views[0]))
        return self.contrast(x, batch) | self.proxies.step(
            x,
            batch.labels,
            batch.cams,
            config.camera_temp,
            negatives=config.negatives,
            intra=config.intra,
            inter=config.camera_weight if batch.epoch >= config.camera_epoch else 0.0,
            momentum=config.camera_momentum,
        )
