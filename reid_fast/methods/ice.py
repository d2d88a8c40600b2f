"""Inter-instance contrastive encoding (Chen et al., ICCV 2021, arXiv 2103.16364).

Beside Cluster Contrast: a teacher that follows the student is clustered and evaluated; class centres and camera proxies
stay as they are for an epoch; and images of a batch are contrasted with each other across views and networks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_fast import ops
from reid_fast.data.images import Batch, Rule, View, more_cameras
from reid_fast.device import to_device
from reid_fast.marks import Count, CountOrZero, Distance, Kept, NotNegative, Positive, Share
from reid_fast.memories import CameraProxies, PrototypeMemory
from reid_fast.methods.base import Method
from reid_fast.methods.settings import CameraSettings, CommunitySettings
from reid_fast.models.encoder import Encoder
from reid_fast.models.teacher import follow, new_teacher

_STREAM = 0x49434500  # keeps these draws apart from every other use of the run's seed
_STEPS = 256  # steps whose shuffles are drawn at once


@dataclass(frozen=True, kw_only=True)
class IceConfig(CameraSettings, CommunitySettings):
    """Contrast with class centres and with the images of the batch."""

    epochs: Count = 40
    iters: CountOrZero = 400
    batch_size: Count = 32
    num_instances: Count = 4
    bn_group: CountOrZero = 8
    step_size: CountOrZero = 0
    warmup_epochs: CountOrZero = 10
    eps: Distance = 0.55
    erase: Share = 0.6
    eval_step: Count = 1
    temp: Positive = 0.5
    """temperature of the contrast with class centres"""
    smoothing: Share = 0.1
    """share of that contrast's target that is spread over all clusters alike"""
    hard_temp: Positive = 0.1
    """temperature of the hard instance loss"""
    soft_temp: Positive = 0.4
    """temperature of the soft instance loss"""
    soft_weight: NotNegative = 10.0
    """weight of the soft instance loss"""
    ema: Kept = 0.999
    """share of its own weights that the teacher keeps in a step"""
    camera_agnostic: bool = False
    """use no camera ids, neither in the loss nor to pick images"""
    ice_norm: Literal["reference", "fixed"] = "reference"
    """camera proxies normalised as in the published code, each feature over all proxies, or each proxy"""

    @property
    def needs_cameras(self) -> bool:
        return not self.camera_agnostic

    @property
    def samples_by_camera(self) -> bool:
        return self.cam and not self.camera_agnostic


class InterInstanceContrast(Method):
    """`--camera-agnostic` drops the inter-camera loss and picks images without looking at cameras."""

    config: IceConfig
    recipes: ClassVar = {
        # What is clustered is the teacher: in 1,500 steps from scratch one that keeps 0.999 of itself finds too few.
        "small": {"eps": 0.5, "warmup_epochs": 2, "ema": 0.99},
    }

    def build(self) -> None:
        super().build()
        self.teacher = new_teacher(self.encoder)
        self.memory = PrototypeMemory(self.encoder.width)
        self.proxies = CameraProxies(self.encoder.width)
        self._drawn: tuple[tuple[int, int], Tensor] | None = None  # a block of steps, their images, their shuffles

    @property
    def model(self) -> Encoder:
        return self.teacher

    @property
    def others(self) -> dict[str, Encoder]:
        return {"student": self.encoder}

    @property
    def views(self) -> tuple[View, ...]:
        """Two strong views and the image itself."""
        (view,) = super().views
        strong = replace(view, blur=0.5)
        return strong, strong, View(flip=0.0, pad=0, erase=0.0)

    @property
    def sampling_rule(self) -> Rule:
        return more_cameras

    def fill_memory(self, features: Tensor, labels: np.ndarray) -> None:
        """Class centres, not normalised, and camera proxies; both stay for the epoch."""
        self.memory.fill(features, labels, normalize=False)
        if self.config.needs_cameras:
            self.proxies.fill(features, labels, self.images.target.cams)
            if self.config.ice_norm == "reference":
                self.proxies.rows = F.normalize(self.proxies.rows, dim=0)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Class, hard, soft and camera loss; the first one on features that are not normalised, as published."""
        config, labels = self.config, batch.labels
        x = batch.gather(self.encoder.necked(self.encoder.pooled(batch.views[0])))
        strong, weak = (self.teacher_features(batch, view) for view in (1, 2))
        with torch.autocast(x.device.type, enabled=False):
            hard = ops.hard_nce(x, strong, labels, config.hard_temp)
            soft = ops.soft_nce(x, strong, weak, config.soft_temp)
        centre = self.memory.step(x, labels, config.temp, normalize=False, smoothing=config.smoothing)
        losses = {"class": centre, "hard": hard, "soft": config.soft_weight * soft}
        if config.needs_cameras:
            losses |= self.proxies.step(
                x,
                labels,
                batch.cams,
                config.camera_temp,
                negatives=config.negatives,
                intra=False,
                inter=config.camera_weight,
                momentum=None,
            )
        return losses

    @torch.no_grad()
    def teacher_features(self, batch: Batch, view: int) -> Tensor:
        """[B, D] the teacher's L2-normalised features of a view.

        Its BatchNorm runs in training mode over groups of a shuffled batch, so that no group holds the student's.
        """
        assert batch.drawn is not None
        forth, back = batch.drawn[view - 1]
        shuffled = batch.own(batch.gather(batch.views[view])[forth])
        return batch.gather(self.teacher(shuffled))[back]

    def draw(self, batch: Batch) -> Tensor:
        """[2, 2, B] for each of two views of a step, the order of the shuffled batch and the way back.

        Those of many steps are drawn, and go to the device, at once.
        """
        block, step = divmod(batch.step, _STEPS)
        sizes = block, len(batch.labels)
        if self._drawn is None or self._drawn[0] != sizes:
            self._drawn = sizes, to_device(draw_shuffles(self.config.seed, *sizes), batch.labels.device)
        return self._drawn[1][step]

    def finish_step(self, batch: Batch) -> None:
        """Only the teacher moves."""
        follow(self.teacher, self.encoder, self.config.ema)


def draw_shuffles(seed: int, block: int, B: int) -> np.ndarray:
    """[steps, 2, 2, B] int64: of each step of a block and each of two views, a permutation and its inverse."""
    steps = range(block * _STEPS, (block + 1) * _STEPS)
    streams = [[np.random.default_rng([_STREAM, seed, step, view]) for view in (1, 2)] for step in steps]
    forth = np.array([[rng.permutation(B) for rng in of_step] for of_step in streams])
    return np.stack([forth, forth.argsort(axis=2)], axis=2)
